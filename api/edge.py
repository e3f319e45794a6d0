"""Around the routes: headers that browsers obey, and what admins' reads must not become.

Both are ASGI applications around another one.
"""

import re

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import (
    SIGNATURE,
    UnauthorizedError,
    credentials_of,
    is_signed,
    method_of,
    path_of,
    read_body,
)
from api.dependencies import Service
from api.errors import (
    BodyTooLargeError,
    TooManyRequestsError,
    error_response,
    limit_response,
    log_error_response,
)
from api.instants import now_ms
from api.limits import with_cors
from api.settings import ApiSettings
from warehouse.log import LogError

# No answer is a page but the API document, whose scripts FastAPI has from a CDN.
DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"style-src 'unsafe-inline' https://cdn.jsdelivr.net; img-src data: https:; "
    b"connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
ON_ALL = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
DATA_HEADERS = (*ON_ALL, (b"content-security-policy", DATA_POLICY))
PAGE_HEADERS = (*ON_ALL, (b"content-security-policy", PAGE_POLICY))
PAGES = frozenset({"/docs", "/redoc"})


class BrowserHeaders:
    """Adds to every answer what keeps browsers from doing more with it than showing it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = PAGE_HEADERS if scope["path"] in PAGES else DATA_HEADERS

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_guarded)


# These use a signature up themselves, whatever their outcome is.
ADMIN_WRITES = re.compile(r"POST /(tasks|blacklist)|DELETE /blacklist/[^/]+")
SAMPLE_WRITES = ("/samples", "/samples/batch")


class AdminReads:
    """Remembers the scheme-1 signatures of admins that arrive on anything but a write.

    Scheme 1 binds neither method nor path, so the signature of a read would also do for an admin's
    DELETE, whose body is empty too. It is remembered durably before the read is answered.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if (
            scope["type"] != "http"
            or not any(name == SIGNATURE for name, _ in scope["headers"])
            or ADMIN_WRITES.fullmatch(f"{scope['method']} {scope['path']}")
        ):
            await self._app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        request = Request(scope, receive)
        try:
            body = await self._remembered_body(request, service)
        except ClientDisconnect:
            return  # nobody is there to read an answer
        except (UnauthorizedError, BodyTooLargeError, TooManyRequestsError, LogError) as error:
            if isinstance(error, UnauthorizedError):
                service.metrics.auth_failures.labels(error.reason).inc()
            answer = with_cors(self._answer(error), self._settings)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive if body is None else _replayed(body, receive), send)

    def _answer(self, error: Exception) -> ASGIApp:
        if isinstance(error, UnauthorizedError):
            return error_response(401, error.detail)
        if isinstance(error, BodyTooLargeError):
            return error_response(413, str(error))
        retry_after_seconds = self._settings.retry_after_seconds
        if isinstance(error, LogError):
            return log_error_response(error, retry_after_seconds)
        return limit_response(error, retry_after_seconds)

    async def _remembered_body(self, request: Request, service: Service) -> bytes | None:
        """Return the body if it had to be read to know what was signed."""
        try:
            given = credentials_of(request)
        except UnauthorizedError as error:
            # Which of two is meant nobody knows, and either may be good for a write.
            if error.reason == "doubled":
                raise
            return None  # the route says so, if it cares
        settings = service.settings
        # One from the future is no good yet, but will be.
        age_seconds = now_ms() // 1000 - int(given.timestamp)
        if (
            given.scheme != 1
            or given.hotkey not in settings.admin_hotkeys
            or age_seconds > settings.signature_expiry_seconds
        ):
            return None
        body = await read_body(request, settings.max_body_size)
        # An admin that submits samples needs the signature for that; an empty body has none.
        is_submission = bool(body) and request.scope["path"] in SAMPLE_WRITES
        if not is_submission and is_signed(given, method_of(request), path_of(request), body):
            # A copy of it costs a commit as well.
            service.check_rate(given.hotkey)
            await service.remember_signature(given.signature, int(given.timestamp) * 1000)
        return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out a body that was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
