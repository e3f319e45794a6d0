"""The name of one request, in its answer, in our lines about it, and in those of a proxy."""

import re
from uuid import uuid4

from starlette.types import Scope

# Taken over from a proxy, so that its lines and ours are found together.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")


def request_id(scope: Scope) -> str:
    """Return the id that the client or a proxy gave, or a new one; the same for one request."""
    found: str | None = scope["state"].get("request_id")
    if found is None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        found = given.decode() if REQUEST_ID.fullmatch(given) else uuid4().hex
        scope["state"]["request_id"] = found
    return found
