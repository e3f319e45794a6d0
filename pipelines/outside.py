"""What every question to a service outside is held to, whichever service it is.

A question has one limit of time for all of it, however slowly the answer drips in; an answer has a
limit of size; the environment's proxies and certificates are not consulted; and a service that does
not answer raises `NoAnswer`, which is never evidence against anybody.
"""

import contextlib
import email.utils
import math
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from enum import Enum
from typing import Any, Self

import httpcore2
import httpx2

BODY_BYTES_MAX = 8 * 2**20
HEADER_CHARS_MAX = 200
PRINTABLE_CHARS_MAX = 200
WINDOW_USED_UP = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})\b")

Clock = Callable[[], int]

# When the question that this thread is putting must have its answer, on time.monotonic's clock.
_due_at: ContextVar[float] = ContextVar("_due_at", default=math.inf)


class Cause(Enum):
    """Why there is no answer, which decides what to do about it."""

    OUTAGE = "the service does not answer: ask again later"
    REFUSED = "the service refuses us, whatever we ask: ask no more"
    UNUSABLE = "the service answers, but not about this: asking again gains nothing"


class NoAnswer(Exception):  # noqa: N818 - not an error of ours: an outcome that callers count
    """A service gave no definite answer. The sentence holds no key, address or text of theirs."""

    def __init__(
        self, reason: str, cause: Cause = Cause.OUTAGE, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.retry_after_seconds = retry_after_seconds


class Unusable(Exception):  # noqa: N818 - becomes a NoAnswer before anybody sees it
    """An answer that is not read on: too large, encoded unasked, or from somewhere else."""


@contextlib.contextmanager
def due_within(seconds: float) -> Iterator[None]:
    """Give everything that this thread asks through a bounded client this long, in all."""
    token = _due_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _due_at.reset(token)


def bounded_client(*, follow_redirects: bool) -> httpx2.Client:
    """Return a client that keeps what this module promises, safe for use by several threads.

    A status that says that the service cannot answer now is raised as `NoAnswer`. Redirects,
    where they are followed, stay on the host that was asked.
    """
    return httpx2.Client(
        transport=_BoundedTransport(),
        trust_env=False,
        timeout=None,  # `due_within` limits the whole, not one wait at a time
        follow_redirects=follow_redirects,
        max_redirects=3,
        # A few hundred bytes of gzip can be gigabytes: without an encoding, size is what it seems.
        headers={"accept-encoding": "identity"},
        event_hooks={"response": [_refuse_outages, _stay_on_the_host]},
    )


def no_answer(error: Exception) -> NoAnswer:
    """Say in our own words why a question failed; the error's own may hold a key or an address."""
    if isinstance(error, NoAnswer):
        return error
    if isinstance(error, Unusable):
        return NoAnswer(str(error), Cause.UNUSABLE)
    if isinstance(error, httpcore2.TimeoutException | httpx2.TimeoutException):
        return NoAnswer("timed out")
    if isinstance(error, httpcore2.ConnectError | httpx2.ConnectError):
        return NoAnswer("could not connect")
    if isinstance(error, httpcore2.NetworkError | httpcore2.ProtocolError):
        return NoAnswer("the connection broke")
    return NoAnswer(f"failed with {type(error).__name__}")


def no_answer_of_status(status: int, headers: Mapping[str, str]) -> NoAnswer:
    """Say what a status that answers nothing means for asking again."""
    reason = f"HTTP {status}"
    if status in {401, 403}:
        return NoAnswer(f"{reason}: our credentials are refused", Cause.REFUSED)
    if _is_outage(status):
        return NoAnswer(reason, Cause.OUTAGE, retry_after_seconds(headers))
    return NoAnswer(reason, Cause.UNUSABLE)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long the service asks to be left alone; None when it does not say so clearly.

    Hugging Face tells the end of a window that is used up as `RateLimit: "api";r=0;t=55`.
    """
    text = headers.get("retry-after", "").strip()[:HEADER_CHARS_MAX]
    if text.isascii() and text.isdigit():
        return float(text)
    window = WINDOW_USED_UP.search(headers.get("ratelimit", "")[:HEADER_CHARS_MAX])
    if not text and window is not None:
        return float(window[1])
    # By the server's own clock where it tells it: ours may be wrong.
    until, date = _instant(text), _instant(headers.get("date", ""))
    if until is None:
        return None
    return max(0.0, until - (time.time() if date is None else date))


def header_secret(name: str, value: str) -> str:
    """Return a key as it goes into a header; `ValueError` without the value when it cannot."""
    value = value.strip()
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"{name} holds characters that no key has: set it again, on one line")
    return value


def now_ms() -> int:
    """Return the wall clock in UTC milliseconds."""
    return time.time_ns() // 1_000_000


def printable(text: str) -> str:
    """Return a service's text as it may be stored and shown: one line, of limited length.

    What cannot be printed is replaced, half a surrogate pair included.
    """
    shown = text[:PRINTABLE_CHARS_MAX]
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)


def _instant(http_date: str) -> float | None:
    """Return an HTTP date in seconds since 1970."""
    fields = email.utils.parsedate_tz(http_date)
    try:
        return None if fields is None else float(email.utils.mktime_tz(fields))
    except (ValueError, OverflowError):
        return None


def _seconds_left(timeout: float | None) -> float | None:
    """Return how long one wait on a socket may take; raise when the question's time is over."""
    left = _due_at.get() - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the question's time is over")
    if left == math.inf:
        return timeout
    return left if timeout is None else min(timeout, left)


def _is_outage(status: int) -> bool:
    return status in {408, 425, 429} or status >= 500


def _refuse_outages(response: httpx2.Response) -> None:
    """Raise before anybody reads the body, which may be anything in an outage."""
    if _is_outage(response.status_code):
        raise no_answer_of_status(response.status_code, response.headers)


def _stay_on_the_host(response: httpx2.Response) -> None:
    """Refuse to be sent elsewhere: the configured address decides who is asked."""
    if not response.has_redirect_location:
        return
    target = response.url.join(response.headers["location"])
    asked = response.url
    if (target.scheme, target.host, target.port) != (asked.scheme, asked.host, asked.port):
        raise Unusable("redirected to another host")


class _BoundedTransport(httpx2.BaseTransport):
    """One pool of connections, each wait of which ends when the question is due."""

    def __init__(self) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=None,
            keepalive_expiry=30.0,
            network_backend=_DueBackend(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self._pool.handle_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_BoundedBody(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _BoundedBody(httpx2.SyncByteStream):
    """A body, until it is larger than any that is asked for."""

    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        encodings = {
            value.lower()
            for name, value in self._answer.headers
            if name.lower() == b"content-encoding"
        }
        if encodings - {b"identity", b""}:
            raise Unusable("an encoding that was not asked for")
        body_bytes = 0
        for chunk in self._answer.iter_stream():
            body_bytes += len(chunk)
            if body_bytes > BODY_BYTES_MAX:
                raise Unusable(f"an answer of more than {BODY_BYTES_MAX} bytes")
            yield chunk

    def close(self) -> None:
        self._answer.close()


class _DueBackend(httpcore2.SyncBackend):
    """Plain sockets that wait no longer than until the question is due."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError("the host's name is not known") from error
        # One address after the other here: the library would give each of them the whole time.
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for *_, address in found:
            try:
                stream = super().connect_tcp(
                    str(address[0]), port, _seconds_left(timeout), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _DueStream(stream)
        raise failure


class _DueStream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _seconds_left(timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> Self:
        stream = self._stream.start_tls(ssl_context, server_hostname, _seconds_left(timeout))
        return type(self)(stream)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
