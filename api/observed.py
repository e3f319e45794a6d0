"""Every request, as operators see it: counted by route, and told in the log when it matters.

Around the other layers, so that their refusals are seen, too; the layer of prebuilt answers counts
them itself. A line of the log has method, route, status, duration, hotkey and request id; never a
body, a signature or a query. What anybody can provoke is counted and not told, but for what fails:
a line of that costs its sender a request. A refusal names its id, so that whoever reports it and
the line are brought together.
"""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import Service
from api.request_ids import request_id

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
                if status >= 400:
                    named = (b"x-request-id", request_id(scope).encode())
                    message = {**message, "headers": [*message["headers"], named]}
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            note(scope, _route(scope), status, time.perf_counter() - begun)


def note(scope: Scope, route: str, status: int, seconds: float) -> None:
    """Count a request that was answered, and tell of it if it matters."""
    service: Service = scope["state"]["service"]
    method: str = scope["method"]
    # Anybody may make a method up; a label is kept for ever.
    label = method if method in READS or method in {"POST", "DELETE"} else OTHER
    service.metrics.request(route, label, str(status), seconds)
    level = _level(scope, route, status)
    if logger.isEnabledFor(level):
        tell(level, scope, route, status, seconds)


def tell(level: int, scope: Scope, route: str, status: int, seconds: float) -> None:
    """Write a line about a request."""
    facts = {
        "request_id": request_id(scope),
        "method": scope["method"],
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        # Only whose signature verified: a name that anybody may give tells nothing.
        "hotkey": scope["state"].get("hotkey"),
    }
    logger.log(level, "request", extra=facts)


def _level(scope: Scope, route: str, status: int) -> int:
    if status >= 500:
        return logging.WARNING
    is_let_in = "hotkey" in scope["state"]
    is_admins = is_let_in and scope["method"] not in READS and not route.startswith("/samples")
    return logging.INFO if is_admins else logging.DEBUG


def _route(scope: Scope) -> str:
    """Return the route's template: with the path itself there would be a label a hotkey."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    service: Service = scope["state"]["service"]
    latest = service.snapshots.latest
    path: str = scope["path"]
    return path if latest is not None and path in latest.answers else OTHER
