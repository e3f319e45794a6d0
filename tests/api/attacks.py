"""What an attacker has: requests as bytes on a socket, forged signatures, and captured requests.

Bytes, so that no client library mends what is malformed on purpose. What is expected of the service
stands in the tables of `test_attacks` and `tests.test_attack_replays`.
"""

import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import base58
from substrateinterface import Keypair

from api.settings import ApiSettings
from tests.api.conftest import API_SETTINGS
from tests.builders import RAO, hotkey, keypair, publish, sample_body, signed_headers
from warehouse.hotkeys import ZERO_HOTKEY, hotkey_of
from warehouse.log import LogReader
from warehouse.settings import WarehouseSettings

TIMEOUT_SECONDS = 20
EVERY_SEQ = 2**62
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # of s in a signature
FIELD_PRIME = 2**255 - 19  # of R
MARKER = 1 << 255  # what schnorrkel sets in s to tell its signatures from those of ed25519

# Who is blacklisted from the beginning, and who will be by the test that has the name.
ADMINS = ("admin", "fallen", "ousted")
VALIDATORS = ("big", "middle", "small", "shut", "late1", "late2", "slow1", "slow2")
# A few hotkeys make all attacks: what they may send a second must not refuse them first.
SETTINGS: ApiSettings = API_SETTINGS.model_copy(
    update={
        "admin_hotkeys": frozenset(hotkey(name) for name in ADMINS),
        "rate_per_hotkey": 0,
    }
)
# Encodings of no point or of a point of which a signature could be guessed: none may speak, though
# the metagraph had them as validators with stake.
WEAK_KEYS = {
    "zero": bytes(32),
    "one": b"\x01" + bytes(31),
    "two": b"\x02" + bytes(31),
    "three": b"\x03" + bytes(31),
    "four": b"\x04" + bytes(31),
    "zero with the sign bit": bytes(31) + b"\x80",
    "the prime, which is zero again": FIELD_PRIME.to_bytes(32, "little"),
    "the prime and one": (FIELD_PRIME + 1).to_bytes(32, "little"),
    "minus one": (FIELD_PRIME - 1).to_bytes(32, "little"),
    "all bits": b"\xff" * 32,
}


def publish_attacked(settings: WarehouseSettings) -> None:
    """Publish a subnet in which every weak key is a registered validator."""
    names = [hotkey(name) for name in VALIDATORS]
    weak = [hotkey_of(key) for key in WEAK_KEYS.values()]
    assert ZERO_HOTKEY in weak
    rows: list[dict[str, Any]] = [
        {"hotkey": one, "uid": uid, "stake_rao": 10_000 * RAO}
        for uid, one in enumerate([*names, *weak])
    ]
    rows.append({"hotkey": hotkey("poor"), "uid": 99, "stake_rao": RAO, "is_registered": False})
    publish(
        settings,
        validators=sorted(rows, key=lambda row: row["hotkey"]),
        miners=[{"hotkey": hotkey("old"), "uid": 107}],
        blacklist=[{"hotkey": hotkey("outcast")}],
    )


class Attempt(NamedTuple):
    """A request as it goes out. `framing` are the headers that say where the body ends."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    framing: tuple[bytes, ...] | None = None

    def with_header(self, name: str, value: bytes | str | None) -> Self:
        """Return the attempt with another value of a header; None leaves it out."""
        text = value.encode() if isinstance(value, str) else value
        kept = tuple(one for one in self.headers if one[0].lower() != name.lower().encode())
        return self._replace(
            headers=kept if text is None else (*kept, (name.encode(), text)),
        )

    def with_more(self, name: str, value: bytes | str) -> Self:
        """Return the attempt with a header added to those that it has."""
        text = value.encode() if isinstance(value, str) else value
        return self._replace(headers=(*self.headers, (name.encode(), text)))

    def header(self, name: str) -> bytes:
        """Return the value of a header."""
        return dict(self.headers)[name.encode()]

    def head(self) -> bytes:
        """Return what comes before the body."""
        length = b"Content-Length: %d" % len(self.body)
        lines = [
            f"{self.method} {self.target} HTTP/1.1".encode("utf-8", "surrogateescape"),
            b"Host: x",
            b"Connection: close",
            *(name + b": " + value for name, value in self.headers),
            *((length,) if self.framing is None else self.framing),
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n"


class Answer(NamedTuple):
    """What came back. `status` 0: the server cut the connection without a word."""

    status: int
    content: bytes

    @property
    def detail(self) -> str:
        """The `detail` of a refusal as text, else all of the answer."""
        try:
            document = json.loads(self.content)
        except ValueError:
            return self.content.decode("utf-8", "replace")
        return str(document.get("detail", document) if isinstance(document, dict) else document)


def chunked(attempt: Attempt, *, more: tuple[bytes, ...] = ()) -> Attempt:
    """Return the same request with its body in chunks of seven bytes."""
    pieces = [attempt.body[start : start + 7] for start in range(0, len(attempt.body), 7)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return attempt._replace(body=body, framing=(b"Transfer-Encoding: chunked", *more))


def _answer(connection: socket.socket) -> Answer:
    received = bytearray()
    # A server that refuses a request before all of it has come may reset the connection.
    with suppress(ConnectionError):
        while piece := connection.recv(65_536):
            received += piece
    head, _, content = bytes(received).partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ", 2)[1]) if head else 0, content)


def send(port: int, attempt: Attempt) -> Answer:
    """Send a request and return its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        with suppress(ConnectionError):
            connection.sendall(attempt.head() + attempt.body)
        return _answer(connection)


@contextmanager
def sent_slowly(port: int, attempt: Attempt) -> Iterator[Callable[[], Answer]]:
    """Send all but the end of a body once the server waits for it; the rest goes when called.

    The server says 100 when the application begins to read: by then it has checked the headers.
    """
    slow = attempt.with_more("Expect", "100-continue")
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(slow.head())
        said = b""
        while not said.endswith(b"\r\n\r\n"):
            said += connection.recv(1)
        assert said.startswith(b"HTTP/1.1 100"), said
        connection.sendall(slow.body[:-1])

        def finish() -> Answer:
            connection.sendall(slow.body[-1:])
            return _answer(connection)

        yield finish


def signed(
    name: str, method: str, path: str, body: bytes = b"", *, scheme: int = 2, **signing: Any
) -> Attempt:
    """Return a request as its sender signs it."""
    headers = signed_headers(name, body, method=method, path=path, scheme=scheme, **signing)
    pairs = tuple((header.encode(), value.encode()) for header, value in headers.items())
    return Attempt(method, path, pairs, body)


def vote(
    name: str = "big", *, scheme: int = 2, timestamp: str | None = None, **fields: Any
) -> Attempt:
    """Return a valid POST /samples; where it is let in a sample is stored."""
    body = json.dumps(sample_body(**fields)).encode()
    return signed(name, "POST", "/samples", body, scheme=scheme, timestamp=timestamp)


def resigned(
    attempt: Attempt, change: Callable[[bytes], bytes | str], *, key: Keypair | None = None
) -> Attempt:
    """Return a scheme-1 request signed over another message, or by another key."""
    digest = hashlib.sha256(attempt.body).hexdigest()
    message = f"{digest}:{attempt.header('X-Timestamp').decode()}".encode()
    signature = (key or keypair("big")).sign(change(message))
    return attempt.with_header("X-Signature", signature.hex())


def forged(attempt: Attempt, change: Callable[[bytes], bytes]) -> Attempt:
    """Return the request with its signature's bytes changed."""
    signature = bytes.fromhex(attempt.header("X-Signature").decode())
    return attempt.with_header("X-Signature", change(signature).hex())


def with_s(change: Callable[[int], int], *, is_marked: bool = True) -> Callable[[bytes], bytes]:
    """Return a change of the scalar s of a signature."""

    def changed(signature: bytes) -> bytes:
        s = change(int.from_bytes(signature[32:], "little") & ~MARKER)
        return signature[:32] + (s | (MARKER if is_marked else 0)).to_bytes(32, "little")

    return changed


def with_r(change: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Return a change of the point R of a signature."""

    def changed(signature: bytes) -> bytes:
        r = change(int.from_bytes(signature[:32], "little")) % 2**256
        return r.to_bytes(32, "little") + signature[32:]

    return changed


def address(key: bytes, prefix: bytes, checksum_bytes: int = 2) -> str:
    """Return an SS58 address of any network prefix, written in any way."""
    payload = prefix + key
    checksum = hashlib.blake2b(b"SS58PRE" + payload).digest()[:checksum_bytes]
    return str(base58.b58encode(payload + checksum).decode())


@contextmanager
def stopped_clock() -> Iterator[Callable[[int], None]]:
    """Stop the clock of the whole process at a full second; call what is given to move it."""
    stopped_at_ns = time.time_ns() // 10**9 * 10**9

    def move(seconds: int) -> None:
        nonlocal stopped_at_ns
        stopped_at_ns += seconds * 10**9

    with (
        patch.object(time, "time_ns", lambda: stopped_at_ns),
        patch.object(time, "time", lambda: stopped_at_ns / 1e9),
    ):
        yield move


class Stored(NamedTuple):
    """Everything that a log holds, and what it comes to."""

    head: int
    submissions: list[Any]
    votes: list[Any]
    texts: list[Any]
    events: list[Any]
    admin_state: Any
    outbox: Any


def _all(chunks: Iterable[Iterable[Any]]) -> list[Any]:
    return [row for chunk in chunks for row in chunk]


def stored(log: LogReader) -> Stored:
    """Read all of a log, but not which signatures were used up: an attack may use its own."""
    return Stored(
        log.head(),
        _all(log.submissions_between(0, EVERY_SEQ)),
        _all(votes.rows() for votes in log.votes_between(0, EVERY_SEQ)),
        _all(log.texts_between(0, EVERY_SEQ)),
        log.events_between(0, EVERY_SEQ),
        log.admin_state(),
        log.backlog(EVERY_SEQ),
    )
