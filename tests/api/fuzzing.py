"""The real server under fuzz: what is sent and answered is counted, what it grew by is measured.

LEOMA_TORTURE=1 is the long form: many more requests, from another seed each time; a failure tells
it. The short form has the same requests every time.
"""

import contextlib
import json
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import psutil

from tests.api.conftest import publish_subnet
from tests.builders import hotkey
from tests.leoma_serve import LeomaServe
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_keeper import SqliteKeeper

IS_LONG = os.environ.get("LEOMA_TORTURE") == "1"
SEED = int(
    os.environ.get("FUZZ_SEED") or (random.SystemRandom().randrange(2**32) if IS_LONG else 7)
)
# How long each of the loops below goes on in the long form.
LOOP_SECONDS = float(os.environ.get("FUZZ_SECONDS", "75"))
# No answer may take longer, however busy the machine; it would be one that never comes.
ANSWER_SECONDS_MAX = 30.0
# With all the requests of a connection, each as slow as the limits let it be.
CONNECTION_SECONDS_MAX = 20.0
# What a worker may have more after all of it than after the first requests. Its caches are bounded:
# 16 MiB of rendered answers, SQLite's pages, addresses and keys. A leak of 1 kB a request would be
# 100 MB in the long form.
GROWTH_BYTES_MAX = 64 * 2**20
GROWTH_HANDLES_MAX = 12
GROWTH_THREADS_MAX = 6
THREADS_OF_A_WORKER = 6  # those that read, of three kinds
WARMING_REQUESTS = 8 * THREADS_OF_A_WORKER
LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9]) [A-Za-z][^\r\n]*")
NO_CONTENT = {204, 304}


class Answer(NamedTuple):
    """One answer, read strictly: what follows it begins like the next one or there is nothing."""

    status: int
    headers: dict[str, str]
    content: bytes


class NotHttpError(Exception):
    """What the server sent is no sequence of answers."""


def taken(received: bytes, *, is_head: bool) -> tuple[Answer | None, bytes]:
    """Return the first answer, None while it is not whole, and what follows it."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return None, received
    line, *fields = head.split(b"\r\n")
    matched = LINE.fullmatch(line)
    if not matched:
        raise NotHttpError(received[:200])
    headers: dict[str, str] = {}
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not name or b" " in name:
            raise NotHttpError(head)
        headers[name.decode().lower()] = value.strip().decode("latin-1")
    status = int(matched[1])
    if status < 200 or status in NO_CONTENT or is_head:
        return Answer(status, headers, b""), rest
    if headers.get("transfer-encoding") == "chunked":
        return _in_chunks(Answer(status, headers, b""), received, rest)
    length = int(headers["content-length"])
    if len(rest) < length:
        return None, received
    return Answer(status, headers, rest[:length]), rest[length:]


def _in_chunks(answer: Answer, received: bytes, rest: bytes) -> tuple[Answer | None, bytes]:
    content = b""
    while True:
        size, found, rest = rest.partition(b"\r\n")
        if not found or len(rest) < int(size, 16) + 2:
            return None, received
        content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if int(size, 16) == 0:
            return answer._replace(content=content), rest


def exchange(port: int, pieces: Sequence[bytes], *, leaves: bool = False) -> bytes:
    """Send pieces and return what comes until the server ends it; `leaves`: do not wait for it."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), CONNECTION_SECONDS_MAX) as connection:
        # Each piece on its own, as networks have them.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.monotonic() + CONNECTION_SECONDS_MAX
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.001)
            while not leaves and (piece := connection.recv(262_144)):
                received += piece
                assert time.monotonic() < deadline, "it goes on for ever"
    return bytes(received)


def answers_in(received: bytes, sent: bytes) -> list[Answer]:
    """Return the answers in what came; the last one may be cut where the connection was."""
    answers = []
    while received:
        # Only whole answers are told by their length; that to a HEAD has a length and no content.
        answer, rest = taken(received, is_head=False)
        if b"HEAD" in sent and (answer is None or not _is_json_or_nothing(answer)):
            answer, rest = taken(received, is_head=True)
        if answer is None:
            break
        answers.append(answer)
        received = rest
    return answers


def _is_json_or_nothing(answer: Answer) -> bool:
    if answer.headers.get("content-type") != "application/json":
        return not answer.content.startswith(b"HTTP/1.1 ")
    try:
        json.loads(answer.content)
    except ValueError:
        return False
    return True


class Told:
    """What was counted: requests, answers by status, the slowest answer. Threads share it."""

    def __init__(self) -> None:
        self.requests = self.connections = self.cut = 0
        self.statuses: Counter[int] = Counter()
        self.slowest_seconds = 0.0
        self.acknowledged: set[int] = set()
        self._guard = threading.Lock()

    def sent(self, requests: int) -> None:
        """Count a connection and the requests on it."""
        with self._guard:
            self.connections += 1
            self.requests += requests

    def answered(self, answer: Answer | None, seconds: float) -> None:
        """Count an answer; None for a connection that was cut without one."""
        with self._guard:
            self.slowest_seconds = max(self.slowest_seconds, seconds)
            if answer is None:
                self.cut += 1
                return
            self.statuses[answer.status] += 1

    def stored(self, content: bytes) -> None:
        """Note the ids of samples that were acknowledged."""
        answer = json.loads(content)
        ids = {one["id"] for one in (answer if isinstance(answer, list) else [answer])}
        with self._guard:
            self.acknowledged |= ids


class Line:
    """A connection that is kept from request to request, and made anew when it was closed."""

    def __init__(self, port: int, told: Told) -> None:
        self._port = port
        self._told = told
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, request: bytes, *, is_head: bool = False) -> Answer:
        """Send a request and return its answer. One kept line may have been closed meanwhile."""
        self._told.sent(1)
        begun = time.monotonic()
        for is_last in (False, True):
            is_kept = self._socket is not None
            answer = self._asked(request, is_head=is_head)
            if answer is not None:
                break
            # Closed before a byte of the answer: for a kept line that is its idle time.
            is_idle = is_kept and not is_last
            assert is_idle, f"no answer to {request[:2000]!r}"
        seconds = time.monotonic() - begun
        self._told.answered(answer, seconds)
        assert answer is not None
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    def _asked(self, request: bytes, *, is_head: bool) -> Answer | None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS_MAX)
        received = b""
        try:
            with contextlib.suppress(ConnectionError):
                self._socket.sendall(request)
            while piece := self._socket.recv(262_144):
                received += piece
                answer, rest = taken(received, is_head=is_head)
                while answer is not None and answer.status < 200:
                    answer, rest = taken(rest, is_head=is_head)
                if answer is not None:
                    # What cannot be parsed is refused before anybody knows that it is a HEAD.
                    is_refused = is_head and answer.headers.get("connection") == "close"
                    assert not rest or is_refused, f"{request[:2000]!r} has a rest: {rest[:500]!r}"
                    return answer
        except ConnectionError:
            pass
        self.close()
        assert not received, f"half an answer to {request[:2000]!r}: {received[:500]!r}"
        return None


def refuse_failure(answer: Answer, request: object) -> None:
    """Fail on any 5xx but a 503 that is one of the documented ones: JSON, and when to try again."""
    if answer.status < 500:
        return
    assert answer.status == 503, (answer, request)
    assert "retry-after" in answer.headers, (answer, request)
    assert isinstance(json.loads(answer.content)["detail"], str), (answer, request)


class Measured(NamedTuple):
    """What one worker has."""

    resident_bytes: int
    handles: int
    threads: int


class Fuzzed:
    """`leoma serve` with two workers and data, whose growth is measured from the first requests."""

    def __init__(self, settings: WarehouseSettings, **environment: str) -> None:
        self.told = Told()
        self._settings = settings
        self._log_path = settings.leoma_home / "serve.log"
        self._environment = {
            "ADMIN_HOTKEYS": hotkey("admin"),
            # The limits have tests of their own; here they would keep what is meant to get through.
            "RATE_PER_HOTKEY": "0",
            "RATE_PER_ADDRESS": "0",
            "MAX_BODY_SIZE": "200000",
            **environment,
        }
        self.grown: dict[int, tuple[Measured, Measured]] = {}

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._serve.port)

    def __enter__(self) -> Self:
        publish_subnet(self._settings)
        self._log = self._log_path.open("wb")
        self._serve = LeomaServe(self._settings.leoma_home, log=self._log, **self._environment)
        self._serve.start()
        try:
            self._serve.wait_until_all_are_ready()
            self._warm()
            self._before = self._measured()
        except BaseException:
            self._serve.kill()
            self._log.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._serve.process.terminate()
            assert self._serve.process.wait(60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._serve.kill()
            self._log.close()
        if kind is None:
            said = self._log_path.read_text()
            assert "Traceback" not in said, said[:5000]
            self._refuse_loss()

    def answers_properly(self) -> bool:
        """Tell whether it serves, by an answer that is rendered and one that is read live."""
        with Line(self.port, self.told) as line:
            weights = line.ask(b"GET /weights HTTP/1.1\r\nHost: l\r\n\r\n")
            latest = line.ask(b"GET /samples/list?limit=1 HTTP/1.1\r\nHost: l\r\n\r\n")
        return (
            (weights.status, latest.status) == (200, 200)
            and json.loads(weights.content)["winner_hotkey"] == hotkey("old")
            and isinstance(json.loads(latest.content), list)
        )

    def _warm(self) -> None:
        """Have every thread and every connection that there will be."""
        request = b"GET /samples/list HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n"

        def ask(_: int) -> None:
            with Line(self.port, self.told) as line:
                assert line.ask(request).status == 200

        with ThreadPoolExecutor(2 * THREADS_OF_A_WORKER) as pool:
            list(pool.map(ask, range(WARMING_REQUESTS)))

    def _measured(self) -> dict[int, Measured]:
        found = {}
        for worker in self._serve.serving():
            deadline = time.monotonic() + 30
            while any(one.status == psutil.CONN_ESTABLISHED for one in worker.net_connections()):
                assert time.monotonic() < deadline, "a connection is not let go of"
                time.sleep(0.05)
            found[worker.pid] = Measured(
                worker.memory_info().rss, worker.num_fds(), worker.num_threads()
            )
        return found

    def refuse_growth(self) -> None:
        """Fail where a worker is another one than before, or has more than it may."""
        after = self._measured()
        assert after.keys() == self._before.keys(), "a worker died"
        for pid, now in after.items():
            was = self._before[pid]
            self.grown[pid] = (was, now)
            assert now.resident_bytes - was.resident_bytes <= GROWTH_BYTES_MAX, (was, now)
            assert now.handles - was.handles <= GROWTH_HANDLES_MAX, (was, now)
            assert now.threads - was.threads <= GROWTH_THREADS_MAX, (was, now)

    def _refuse_loss(self) -> None:
        """Fail where the log is not whole, or lacks a sample that was acknowledged."""
        log = SqliteKeeper(self._settings)
        try:
            assert log.check() == []
            stored = {seq for votes in log.votes_between(0, log.head()) for seq in votes.seq}
        finally:
            log.close()
        assert self.told.acknowledged <= stored

    def figures(self) -> dict[str, int]:
        """Say what was answered, and what the workers have more than before, at most."""
        more = [
            (now.resident_bytes - was.resident_bytes, now.handles - was.handles)
            for was, now in self.grown.values()
        ]
        return {
            "samples stored": len(self.told.acknowledged),
            "ms for the slowest answer": round(1000 * self.told.slowest_seconds),
            "MiB more in a worker": max(one for one, _ in more) // 2**20,
            "handles more in a worker": max(one for _, one in more),
            **{f"times {status}": count for status, count in sorted(self.told.statuses.items())},
        }


def indices(count: int) -> Iterator[int]:
    """Count up: so far in the short form, as long as LOOP_SECONDS in the long one."""
    deadline = time.monotonic() + LOOP_SECONDS
    number = 0
    while time.monotonic() < deadline if IS_LONG else number < count:
        yield number
        number += 1


def at_once(threads: int, count: int, work: Callable[[Iterator[int]], None]) -> None:
    """Do `work` in several threads, which share the numbers of the cases."""
    numbers = indices(count)
    guard = threading.Lock()
    is_over = threading.Event()

    def shared() -> Iterator[int]:
        while not is_over.is_set():
            with guard:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    def watched() -> None:
        try:
            work(shared())
        except BaseException:
            is_over.set()  # the others need not go on
            raise

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(watched) for _ in range(threads)]:
            future.result()
