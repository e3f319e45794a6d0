"""Every request, as operators see it: counted by route, and told in the log when it matters.

The outermost layer, so that refusals of the others are seen, too. A line of the log has method,
route, status, duration, hotkey and request id; never a body, a signature or a query. What anybody
can provoke is counted and not told, or whoever likes fills the disk with lines.
"""

import logging
import re
import time
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import Service

# Taken over from a proxy, so that its lines and ours are found together.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
OTHER = "other"
READS = frozenset({"GET", "HEAD", "OPTIONS"})

logger = logging.getLogger("api.requests")


class Observed:
    """Counts requests and times them; tells of failures and admins' acts, of all on `debug`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            seconds = time.perf_counter() - begun
            service: Service = scope["state"]["service"]
            route, method = _route(scope, service), scope["method"]
            # Anybody may make a method up; a label is kept for ever.
            label = method if method in READS or method in {"POST", "DELETE"} else OTHER
            service.metrics.requests.labels(route, label, str(status)).observe(seconds)
            level = _level(scope, route, status)
            if logger.isEnabledFor(level):
                facts = {
                    "request_id": request_id(scope),
                    "method": method,
                    "route": route,
                    "status": status,
                    "duration_ms": round(seconds * 1000, 1),
                    # Only who was let in: a name that anybody may give tells nothing.
                    "hotkey": scope["state"].get("hotkey"),
                }
                logger.log(level, "request", extra=facts)


def _level(scope: Scope, route: str, status: int) -> int:
    if status >= 500:
        return logging.WARNING
    is_let_in = "hotkey" in scope["state"]
    is_admins = is_let_in and scope["method"] not in READS and not route.startswith("/samples")
    return logging.INFO if is_admins else logging.DEBUG


def request_id(scope: Scope) -> str:
    """Return the id that the client or a proxy gave, or a new one; the same for one request."""
    found: str | None = scope["state"].get("request_id")
    if found is None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        found = given.decode() if REQUEST_ID.fullmatch(given) else uuid4().hex
        scope["state"]["request_id"] = found
    return found


def _route(scope: Scope, service: Service) -> str:
    """Return the route's template: with the path itself there would be a label a hotkey."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    latest = service.snapshots.latest
    path: str = scope["path"]
    return path if latest is not None and path in latest.answers else OTHER
