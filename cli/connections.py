"""What a connection may do before and after its requests: time and bytes of a head, slow readers.

uvicorn bounds none of it, and the application sees a request only once its head is there. The
limits are the application's settings, which the lifespan hands to every connection.
"""

import asyncio
from collections import Counter
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.clients import Clients
from api.settings import ApiSettings

# A body in chunks is larger on the wire than the body is.
BODY_ON_WIRE_MAX = 2
CHUNK_BYTES_MAX = 256 * 1024
CONTINUE = b"HTTP/1.1 100"
# A body that is longer is not copied to have it behind its head.
JOINED_BYTES_MAX = 64 * 1024
HEAD_IS_TOO_LARGE = b'{"detail":"the head of the request is larger than HEADER_BYTES_MAX"}'


# How many connections each client has to this worker.
CONNECTIONS: Counter[str] = Counter()


@lru_cache(1)
def clients_of(settings: ApiSettings) -> Clients:
    """Return who tells clients apart; one for all connections."""
    return Clients(settings)


class HeadTooLargeError(Exception):
    """A head, or what follows a body in chunks, is larger than allowed."""


class QuietTransport:
    """A transport that sends an answer in one piece, and nothing once it is closing.

    uvicorn tells only the newest of several requests on a connection that nobody is there any more,
    and that one late: the answer of another would be an error, with a traceback in the log, which
    anybody could have as often as it likes.

    uvicorn writes the head of an answer by itself, and that was a system call of its own, and woke
    the client for a head without a body. Here it waits for what comes after it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # At hand, as each answer asks.
        self._write = transport.write
        self.is_closing = transport.is_closing
        # Of the head that waits; and whether what is written next is one.
        self._head = b""
        self._is_next_head = True

    def __getattr__(self, name: str) -> Any:
        """Be the transport in everything else."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or let go."""
        if self._head:
            head, self._head = self._head, b""
            if len(data) <= JOINED_BYTES_MAX:
                data = head + data
            elif not self.is_closing():
                self._write(head)
        elif self._is_next_head and not data.startswith(CONTINUE):
            self._is_next_head = False
            self._head = data
            return
        if not self.is_closing():
            self._write(data)

    def flush(self) -> None:
        """Send a head that waits."""
        if self._head:
            self.write(b"")

    def end_answer(self) -> None:
        """Send what is left of an answer; what comes next is another one's head."""
        self.flush()
        self._is_next_head = True

    def close(self) -> None:
        """Close when everything is sent."""
        self.flush()
        self._transport.close()


class BoundedConnection(HttpToolsProtocol):
    """An HTTP/1.1 connection that cannot be held open, or filled, by saying or reading little."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; close at once where there are too many already."""
        self._quiet = QuietTransport(transport)
        super().connection_made(self._quiet)  # type: ignore[arg-type]
        self._settings: ApiSettings = self.app_state["service"].settings
        self._is_in_head = True
        self._is_head_too_large = False
        self._refused: str | None = None
        self._chunk_bytes = self._wire_bytes = self._head_bytes = 0
        self._wire_bytes_max = (
            self._settings.header_bytes_max
            + BODY_ON_WIRE_MAX * self._settings.max_body_size
            + CHUNK_BYTES_MAX
        )
        # One for each thing that must happen in time: a head, and the taking of an answer.
        self._head_timer: asyncio.TimerHandle | None = None
        self._taken_timer: asyncio.TimerHandle | None = None
        self._is_counted = self._take_room()
        if not self._is_counted:
            transport.abort()
            return
        self._await_head()

    def _take_room(self) -> bool:
        """Tell whether there is room for this connection, and take it."""
        # Of the peer, whatever a request of it says of whom it is for.
        peer = self.transport.get_extra_info("peername")
        self._client = clients_of(self._settings).client(peer)
        if len(self.connections) > self._settings.connections_max:
            return False
        if self._client is not None:
            if CONNECTIONS[self._client] >= self._settings.connections_per_address_max:
                return False
            CONNECTIONS[self._client] += 1
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._is_counted and self._client is not None:
            CONNECTIONS[self._client] -= 1
            if not CONNECTIONS[self._client]:
                del CONNECTIONS[self._client]
        self._head_came()
        self._answer_taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; uvicorn parses it and starts the requests."""
        self._chunk_bytes = len(data)
        self._wire_bytes += self._chunk_bytes
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._is_in_head:
            if self._wire_bytes > self._wire_bytes_max:
                self.transport.abort()
            elif self._is_idle() and self._head_timer is None:
                self._await_head()
        elif self._wire_bytes > self._settings.header_bytes_max:
            # One header that never ends: the parser keeps it, and says nothing yet.
            self._is_head_too_large = True
            self.send_400_response("")
        elif self._head_timer is None:
            self._await_head()

    def on_message_begin(self) -> None:
        """Note that a head begins, in the piece that came last."""
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0
        self._wire_bytes = self._chunk_bytes

    def on_url(self, url: bytes) -> None:
        """Count a piece of the request's target."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header. One that comes after a body in chunks is none: it was not there when the
        request was judged, or came past a proxy that judged it.
        """
        self._head_bytes += len(name) + len(value)
        if self._is_in_head:
            super().on_header(name, value)
        else:
            self._weigh_head()

    def on_headers_complete(self) -> None:
        """Start the request. Of a head that comes in pieces the length was looked at before."""
        self._weigh_head()
        self._is_in_head = False
        self._head_came()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Await the next request, or see to it that the connection ends."""
        self._quiet.end_answer()
        super().on_response_complete()
        if self._refused is not None and not self.transport.is_closing():
            self.send_400_response(self._refused)
        if self.transport.is_closing():
            self._await_taking(self._settings.keep_alive_seconds)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or too large a head."""
        if self._awaits_answer():
            # Not now: it would pass for the answer to a request before, by which something may be
            # stored. Nothing more is read meanwhile, since nobody counts it.
            self._refused = msg
            self.flow.pause_reading()
            return
        if not self._is_head_too_large:
            super().send_400_response(msg)
        else:
            length = str(len(HEAD_IS_TOO_LARGE)).encode()
            lines = [STATUS_LINE[431], b"content-type: application/json\r\ncontent-length: "]
            lines += [length, b"\r\nconnection: close\r\n\r\n", HEAD_IS_TOO_LARGE]
            self.transport.write(b"".join(lines))
            self.transport.close()
        self._await_taking(self._settings.keep_alive_seconds)

    def pause_writing(self) -> None:
        """Wait for who reads slowly, for as long as a request may take."""
        super().pause_writing()
        self._await_taking(self._settings.request_seconds_max)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._answer_taken()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is idle; one whose last answer is not taken by now is cut."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _weigh_head(self) -> None:
        if self._head_bytes > self._settings.header_bytes_max:
            self._is_head_too_large = True
            raise HeadTooLargeError

    def _awaits_answer(self) -> bool:
        """Tell whether a request that came whole is not answered yet."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _is_idle(self) -> bool:
        """Tell whether nothing is under way, and nothing waits for the connection to go on.

        What is no part of a request, an empty line or the rest of a body that nobody wanted, ends
        uvicorn's own wait for the next one.
        """
        is_answered = self.cycle is not None and self.cycle.response_complete
        return is_answered and self.timeout_keep_alive_task is None

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(
            self._settings.header_seconds_max, self.transport.abort
        )

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _await_taking(self, seconds: float) -> None:
        # Closing waits until everything is sent, for ever if nobody reads it.
        self._answer_taken()
        self._taken_timer = self.loop.call_later(seconds, self.transport.abort)

    def _answer_taken(self) -> None:
        if self._taken_timer is not None:
            self._taken_timer.cancel()
            self._taken_timer = None


def server_options(settings: ApiSettings) -> dict[str, Any]:
    """Return how uvicorn must be configured for the settings to hold."""
    return {
        "http": BoundedConnection,
        "ws": "none",
        "timeout_keep_alive": settings.keep_alive_seconds,
        "timeout_graceful_shutdown": settings.shutdown_seconds_max,
        "proxy_headers": True,
        "forwarded_allow_ips": list(settings.trusted_proxies),
    }
