"""Answers that were rendered when their generation was loaded, as messages of the server."""

import logging
import time
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import SIGNATURE
from api.caching import is_match
from api.dependencies import Service
from api.edge import DATA_HEADERS
from api.limits import EXPOSED_HEADERS, AddressRates
from api.observed import logger, tell
from api.settings import ApiSettings

NO_BODY: Message = {"type": "http.response.body", "body": b""}


class Prebuilt(NamedTuple):
    """The ASGI messages of one answer."""

    etag: bytes
    start: Message
    body: Message
    not_modified: Message


def prebuilt(etag: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> Prebuilt:
    """Return the messages of a JSON answer that has `headers` and an ETag."""
    common = [*headers, (b"etag", etag.encode())]
    full = [
        *common,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return Prebuilt(
        etag.encode(),
        {"type": "http.response.start", "status": 200, "headers": full},
        {"type": "http.response.body", "body": body},
        {"type": "http.response.start", "status": 304, "headers": common},
    )


class PrebuiltAnswers:
    """Answers the materialised routes without parameters straight from the current snapshot.

    The outermost layer: what the others do about such an answer is done here, or is in its bytes.
    FastAPI declares the same routes, for the documentation and for what this layer leaves to it: a
    query string, authentication headers, no snapshot yet, or a request beyond its sender's rate.
    """

    def __init__(self, app: ASGIApp, rates: AddressRates, settings: ApiSettings) -> None:
        self._app = app
        self._rates = rates
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._exposed = (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode())
        cache_control = f"public, max-age={settings.cache_max_age_seconds}"
        self._headers = [*DATA_HEADERS, (b"cache-control", cache_control.encode())]
        if settings.cors_origins:
            self._headers.append((b"vary", b"Origin"))
        else:
            # Said to everybody: an answer that a cache keeps must suit the next page as well.
            self._headers += [(b"access-control-allow-origin", b"*"), self._exposed]
        self._snapshot_id = ""
        self._answers: dict[str, Prebuilt] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        begun = time.perf_counter()
        answer = self._answer(scope)
        if answer is None:
            await self._app(scope, receive, send)
            return
        if_none_match, origin = b"", b""
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                if_none_match = if_none_match + b"," + value if if_none_match else value
            elif name == b"origin":
                origin = value
            elif name == SIGNATURE:
                await self._app(scope, receive, send)
                return
        # Asked last, since it takes from the sender's credit; who refuses is inside.
        if self._rates.wait_seconds(scope):
            await self._app(scope, receive, send)
            return
        is_known = bool(if_none_match) and is_match(answer.etag, if_none_match)
        start = answer.not_modified if is_known else answer.start
        if origin in self._origins:
            allowed = [
                (b"access-control-allow-origin", origin),
                self._exposed,
            ]
            start = {**start, "headers": [*start["headers"], *allowed]}
        await send(start)
        await send(NO_BODY if is_known else answer.body)
        # As `observed.note`, in a third of the time: nothing of it can matter to an operator.
        status = "304" if is_known else "200"
        seconds = time.perf_counter() - begun
        service: Service = scope["state"]["service"]
        service.metrics.request(scope["path"], scope["method"], status, seconds)
        if logger.isEnabledFor(logging.DEBUG):
            tell(logging.DEBUG, scope, scope["path"], int(status), seconds)

    def _answer(self, scope: Scope) -> Prebuilt | None:
        if (
            scope["type"] != "http"
            or scope["method"] not in ("GET", "HEAD")
            or scope["query_string"]
        ):
            return None
        service: Service = scope["state"]["service"]
        snapshot = service.snapshots.latest
        if snapshot is None:
            return None
        if snapshot.snapshot_id != self._snapshot_id:
            self._answers = {
                path: prebuilt(snapshot.etag, body, self._headers)
                for path, body in snapshot.answers.items()
            }
            self._snapshot_id = snapshot.snapshot_id
        return self._answers.get(scope["path"])
