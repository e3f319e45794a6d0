"""How much one client, and all of them together, may have of a worker: rates, time, memory.

Two layers of ASGI: `AddressRates` before everything, and `Bounds` around what is not answered at
once. What a connection may do before and after its requests is said in `cli.connections`.
"""

import asyncio
from functools import lru_cache
from ipaddress import ip_address, ip_network

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import Service
from api.errors import (
    BodiesFullError,
    TooManyRequestsError,
    error_response,
    limit_response,
    overload_response,
)
from api.rates import network_of
from api.settings import ApiSettings

ADDRESSES_KEPT = 4_096
EXPOSED_HEADERS = ("ETag", "Retry-After", "X-Evaluation-Verified", "X-Server-Time")


class AddressRates:
    """Refuses what one address puts beyond its rate, before anything else is looked at.

    A trusted proxy that names no client is not limited itself: it stands for all of them, or it is
    a program on this machine.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings
        self._is_trusted = lru_cache(ADDRESSES_KEPT)(self._looked_up)
        self._trusted = [ip_network(one) for one in settings.trusted_proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        settings, client = self._settings, scope.get("client")
        if (
            client is not None
            and scope["type"] == "http"
            and settings.rate_per_address
            and not self._is_trusted(client[0])
        ):
            service: Service = scope["state"]["service"]
            wait_seconds = service.rates.wait_seconds(
                network_of(client[0]), settings.rate_per_address, settings.rate_per_address_burst
            )
            if wait_seconds:
                service.metrics.rate_limited.labels("address").inc()
                refusal = TooManyRequestsError(wait_seconds)
                answer = limit_response(refusal, settings.retry_after_seconds)
                await with_cors(answer, settings)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _looked_up(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


class Bounds:
    """Bounds requests in number, in time and in the bytes of their bodies, per worker."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings
        self._requests = 0
        self._body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._requests >= self._settings.concurrent_requests_max:
            await self._refused("too many requests are under way; try again", scope, receive, send)
            return
        held_bytes, is_read, is_answered = 0, False, False

        async def receive_counted() -> Message:
            nonlocal held_bytes, is_read
            message = await receive()
            count = len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            held_bytes += count
            self._body_bytes += count
            if self._body_bytes > self._settings.body_bytes_under_way_max:
                raise BodiesFullError
            return message

        async def send_noted(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        self._requests += 1
        try:
            async with asyncio.timeout(self._settings.request_seconds_max) as limit:
                await self._app(scope, receive_counted, send_noted)
        except BodiesFullError as error:
            await self._refused(str(error), scope, receive, send)
        except TimeoutError:
            # What was begun and not taken is cut off by the server, which sees it unfinished.
            if not limit.expired():
                raise
            if not is_answered:
                await self._too_slow(scope, receive, send, is_read=is_read)
        finally:
            self._requests -= 1
            self._body_bytes -= held_bytes

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


def with_cors(app: ASGIApp, settings: ApiSettings) -> ASGIApp:
    """Let pages of other origins read what an application answers, refusals too."""
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins or ("*",),
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=("*",),
        allow_credentials=bool(settings.cors_origins),
        expose_headers=EXPOSED_HEADERS,
    )
