"""How much one client, and all of them together, may have of a worker: rates, time, memory.

Two layers of ASGI: `AddressRates` before all that is dear, and `Bounds` around what is not answered
at once. What a connection may do before and after its requests is said in `cli.connections`.
"""

import asyncio

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.clients import Clients
from api.dependencies import Service
from api.errors import (
    BodiesFullError,
    TooManyRequestsError,
    error_response,
    limit_response,
    overload_response,
)
from api.settings import ApiSettings

EXPOSED_HEADERS = (
    "ETag", "Retry-After", "X-Evaluation-Verified", "X-Request-ID", "X-Server-Time"
)  # fmt: skip
VARYING = (b"vary", b"Origin")


class AddressRates:
    """Refuses what one address puts beyond its rate, before anything dear is done for it."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, clients: Clients) -> None:
        self._app = app
        self._settings = settings
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        wait_seconds = self.wait_seconds(scope) if scope["type"] == "http" else 0.0
        if not wait_seconds:
            await self._app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        service.metrics.rate_limited.labels("address").inc()
        refusal = TooManyRequestsError(wait_seconds)
        answer = limit_response(refusal, self._settings.retry_after_seconds)
        await with_cors(answer, self._settings)(scope, receive, send)

    def wait_seconds(self, scope: Scope) -> float:
        """Count a request; return 0, or how long its sender must wait to put one."""
        settings = self._settings
        if not settings.rate_per_address:
            return 0.0
        client = self._clients.client(scope.get("client"))
        if client is None:
            return 0.0
        service: Service = scope["state"]["service"]
        return service.rates.wait_seconds(
            client, settings.rate_per_address, settings.rate_per_address_burst
        )


class Held:
    """What is under way of one client, or of all, and how many bytes of bodies it may be."""

    __slots__ = ("body_bytes", "body_bytes_max", "requests")

    def __init__(self, body_bytes_max: int) -> None:
        self.requests = 0
        self.body_bytes = 0
        self.body_bytes_max = body_bytes_max


class UnderWay:
    """The messages of one request, counted."""

    def __init__(self, receive: Receive, send: Send, held: tuple[Held, ...]) -> None:
        self._receive = receive
        self._send = send
        self._held = held
        self._body_bytes = 0
        self.is_read = self.is_answered = False

    async def receive(self) -> Message:
        """Receive; raise `BodiesFullError` where there is no room for what came."""
        message = await self._receive()
        count = len(message.get("body", b""))
        self.is_read = not message.get("more_body", False)
        self._body_bytes += count
        for held in self._held:
            held.body_bytes += count
        if any(held.body_bytes > held.body_bytes_max for held in self._held):
            raise BodiesFullError
        return message

    async def send(self, message: Message) -> None:
        """Send."""
        self.is_answered = True
        await self._send(message)

    def begin(self) -> None:
        """Count the request."""
        for held in self._held:
            held.requests += 1

    def end(self) -> None:
        """Give back what was held."""
        for held in self._held:
            held.requests -= 1
            held.body_bytes -= self._body_bytes


class Deadlines:
    """Ends what takes longer than `seconds`, by one timer for all that is under way.

    A timer for each request took longer than all else that bounds it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # In the order in which they are due.
        self._due: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, limit: asyncio.Timeout) -> None:
        """Have a limit expire in time, unless it ends before."""
        loop = asyncio.get_running_loop()
        due = self._due[limit] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._expire)

    def end(self, limit: asyncio.Timeout) -> None:
        """Forget a limit."""
        self._due.pop(limit, None)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, now = None, loop.time()
        for limit, due in [*self._due.items()]:
            if due > now:
                self._timer = loop.call_at(due, self._expire)
                break
            del self._due[limit]
            limit.reschedule(now)


class Bounds:
    """Bounds requests in number, in time and in the bytes of their bodies, per worker.

    One address may have a part of that, or it could keep everybody else out by sending slowly.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings, clients: Clients) -> None:
        self._app = app
        self._settings = settings
        self._clients = clients
        self.held = Held(settings.body_bytes_under_way_max)
        self._deadlines = Deadlines(settings.request_seconds_max)
        # Of those that have something under way.
        self._held_by: dict[str, Held] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = self._clients.client(scope.get("client"))
        if client is None:
            await self._bounded(scope, receive, send, self.held)
            return
        own = self._held_by.get(client) or Held(self._settings.body_bytes_per_address_max)
        if own.requests >= self._settings.requests_per_address_max:
            detail = "too many requests of this address are under way; try again"
            await self._refused(detail, scope, receive, send)
            return
        self._held_by[client] = own
        try:
            await self._bounded(scope, receive, send, own, self.held)
        finally:
            if not own.requests:
                self._held_by.pop(client, None)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, *held: Held) -> None:
        if self.held.requests >= self._settings.concurrent_requests_max:
            await self._refused("too many requests are under way; try again", scope, receive, send)
            return
        request = UnderWay(receive, send, held)
        request.begin()
        try:
            async with asyncio.timeout(None) as limit:
                self._deadlines.begin(limit)
                try:
                    await self._app(scope, request.receive, request.send)
                finally:
                    self._deadlines.end(limit)
        except BodiesFullError as error:
            await self._refused(str(error), scope, receive, send)
        except TimeoutError:
            # What was begun and not taken is cut off by the server, which sees it unfinished.
            if not limit.expired():
                raise
            if not request.is_answered:
                await self._too_slow(scope, receive, send, is_read=request.is_read)
        finally:
            request.end()

    async def _too_slow(self, scope: Scope, receive: Receive, send: Send, *, is_read: bool) -> None:
        seconds = self._settings.request_seconds_max
        if is_read or scope["method"] in ("GET", "HEAD"):
            await self._refused(
                f"no answer within {seconds:g} seconds; try again", scope, receive, send
            )
            return
        detail = f"the request did not arrive within {seconds:g} seconds"
        await error_response(408, detail, {"Connection": "close"})(scope, receive, send)

    async def _refused(self, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        answer = overload_response(detail, self._settings.retry_after_seconds)
        await with_cors(answer, self._settings)(scope, receive, send)


class Cors(CORSMiddleware):
    """CORS, without its work where no page of another origin asks."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or any(name == b"origin" for name, _ in scope["headers"]):
            await super().__call__(scope, receive, send)
            return

        async def send_varying(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), VARYING]}
            await send(message)

        await self.app(scope, receive, send_varying)


def with_cors(app: ASGIApp, settings: ApiSettings) -> ASGIApp:
    """Let pages of other origins read what an application answers, refusals too."""
    return Cors(
        app,
        allow_origins=settings.cors_origins or ("*",),
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=EXPOSED_HEADERS,
    )
