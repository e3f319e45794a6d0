"""The API's weights as a validator takes them: one request, with the server's clock beside them."""

import contextlib
import email.utils
import socket
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from api.answers import (
    AnswerError,
    LeomaError,
    MalformedAnswerError,
    UnreachableError,
    Weights,
    answer_error,
    contract,
    document,
    one_object,
)
from api.client import LOOPBACK_HOSTS, RETRIED_STATUSES, backoff_seconds
from cli.setting import Served

REQUEST = "GET /weights"
ATTEMPTS_MAX = 2
ANSWER_BYTES_MAX = 4 * 2**20


def fetch(url: str, timeout_seconds: float) -> Served:
    """Ask for the current weights, twice if need be; raise `LeomaError` when that fails.

    Each attempt ends within `timeout_seconds` of its first connection, however slowly the answer
    drips in. Of the address errors have scheme, host and port: the rest may be a password.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        raise UnreachableError("the API's address cannot be read: give http://host:port") from None
    for attempt in range(ATTEMPTS_MAX):
        try:
            return _asked_once(address, timeout_seconds)
        except LeomaError as error:
            is_passing = isinstance(error, UnreachableError) or (
                isinstance(error, AnswerError) and error.status in RETRIED_STATUSES
            )
            if not is_passing or attempt + 1 == ATTEMPTS_MAX:
                raise
            time.sleep(backoff_seconds(attempt))
    raise AssertionError("the last attempt returns or raises")


def _asked_once(address: httpx.URL, timeout_seconds: float) -> Served:
    response = _response(address, timeout_seconds)
    try:
        if response.status_code != 200:
            raise answer_error(REQUEST, response)
        answer = one_object(document(REQUEST, response))
        with contract(REQUEST):
            _refuse_other_types(answer)
            return Served(
                weights=Weights.of(answer),
                server_time=_date(response),
                local_time=datetime.now(UTC),
            )
    # JSON that nests without end, and numbers beyond all that there are.
    except (RecursionError, OverflowError) as error:
        raise MalformedAnswerError(
            f"{REQUEST} was answered with something that cannot be read: {error}"
        ) from error


def _response(address: httpx.URL, timeout_seconds: float) -> httpx.Response:
    """Return the whole answer; raise `UnreachableError` for none, or one that does not end."""
    with (
        _Limit(timeout_seconds) as limit,
        httpx.Client(
            base_url=address,
            timeout=timeout_seconds,
            headers={"User-Agent": "leoma-client", "Cache-Control": "no-cache"},
            # A proxy of the environment cannot know this machine's loopback.
            trust_env=address.host not in LOOPBACK_HOSTS,
        ) as http,
    ):
        try:
            with http.stream("GET", "/weights", extensions={"trace": limit.trace}) as streamed:
                return httpx.Response(
                    streamed.status_code,
                    headers=_plain_headers(streamed),
                    content=_whole(streamed),
                )
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            if limit.is_over.is_set():
                what = "the answer did not end in time"
            place = f"{address.scheme}://{address.netloc.decode()}"
            raise UnreachableError(f"{REQUEST} at {place} got no answer: {what}") from None


class _Limit:
    """Cuts the connections of an attempt when its time is over, which wakes who waits for them.

    The library's own timeout begins anew with every byte, and an answer may drip for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note each connection that the library makes."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self.is_over.is_set():
                self._cut()

    def _cut(self) -> None:
        self.is_over.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                # The plain one's, since that of a socket with TLS takes the TLS off its reader.
                socket.socket.shutdown(one, socket.SHUT_RDWR)


def _plain_headers(streamed: httpx.Response) -> dict[str, str]:
    """Return the headers without those about an encoding that is undone already."""
    dropped = ("content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in streamed.headers.items() if name not in dropped}


def _whole(streamed: httpx.Response) -> bytes:
    content = b""
    for chunk in streamed.iter_bytes():
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise MalformedAnswerError(f"{REQUEST}: the answer has over {ANSWER_BYTES_MAX} bytes")
    return content


def _refuse_other_types(answer: Mapping[str, Any]) -> None:
    for name in ("winner_hotkey", "burn_reason"):
        if not isinstance(answer[name], str | None):
            raise TypeError(f"{name} is no text")


def _date(response: httpx.Response) -> datetime:
    """Return the server's clock; a `ValueError` where it is not said."""
    text = response.headers.get("Date", "")
    moment = email.utils.parsedate_to_datetime(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
