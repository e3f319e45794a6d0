"""Captured requests sent again: as themselves and as every other one, to every worker, at any time.

Whoever reads the wire has whole requests with valid signatures. Scheme 2 binds a signature to its
request; scheme 1 to body and time only, so there the service must remember what it has seen.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple

import pytest

from tests.api.attacks import (
    SETTINGS,
    Answer,
    Attempt,
    publish_attacked,
    send,
    signed,
    stopped_clock,
    stored,
    vote,
)
from tests.api.servers import Server
from tests.builders import hotkey, sample_body
from warehouse.backends import open_read_log
from warehouse.hotkeys import hotkey_of
from warehouse.log import LogReader
from warehouse.settings import WarehouseSettings

USED = "this signature was already used"
USED_FOR_ANOTHER = "this signature was already used for another request"
NO_SIGNATURE = "X-Signature does not verify"
STALE = "X-Timestamp is stale"
MINER = hotkey("miner")
# Hotkeys for the blacklist, each used once: no key is derived for them.
FRESH_HOTKEYS = (hotkey_of(number.to_bytes(32, "big")) for number in itertools.count(1 << 200))
LATEST_TASK = 1_000


class Route(NamedTuple):
    """A signed request: who makes it, and how. Every one is accepted when it is fresh."""

    method: str
    path: str
    body: Callable[[], bytes]


def _document(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _sample() -> bytes:
    return _document(**sample_body())


def _fits_all() -> bytes:
    """Return a body that every write takes: each ignores the fields of the others."""
    sample = sample_body(task_id=LATEST_TASK)
    return _document(**sample, samples=[sample], hotkey=next(FRESH_HOTKEYS))


# One key that may do everything makes all requests: nothing but the signature stands in the way.
STANDING = hotkey_of(b"\x55" * 32)  # stays on the blacklist
REMOVABLE = hotkey_of(b"\x66" * 32)  # is taken off it by the requests that are captured
ROUTES = {
    "one sample": Route("POST", "/samples", _sample),
    "a batch": Route("POST", "/samples/batch", lambda: b'{"samples": [%b]}' % _sample()),
    "a task": Route("POST", "/tasks", lambda: _document(task_id=LATEST_TASK)),
    "an addition": Route("POST", "/blacklist", lambda: _document(hotkey=next(FRESH_HOTKEYS))),
    "one sample that fits all": Route("POST", "/samples", _fits_all),
    "a batch that fits all": Route("POST", "/samples/batch", _fits_all),
    "a task that fits all": Route("POST", "/tasks", _fits_all),
    "an addition that fits all": Route("POST", "/blacklist", _fits_all),
    "a removal": Route("DELETE", f"/blacklist/{REMOVABLE}", lambda: b""),
    "all miners": Route("GET", "/miners/all", lambda: b""),
    "valid miners": Route("GET", "/miners/valid", lambda: b""),
    "a validator's samples": Route("GET", f"/samples/validator/{hotkey('big')}", lambda: b""),
    "a miner's samples": Route("GET", f"/samples/miner/{MINER}?limit=5", lambda: b""),
    "a public read": Route("GET", "/weights", lambda: b""),
    "a read that finds nothing": Route("GET", "/nothing", lambda: b""),
    "a head": Route("HEAD", "/miners/valid", lambda: b""),
}
# What a captured request is sent as, beside what was captured.
OTHERS = {
    "the removal of another": Route("DELETE", f"/blacklist/{STANDING}", lambda: b""),
    "a sample with a query": Route("POST", "/samples?x=1", lambda: b""),
    "a task with a query": Route("POST", "/tasks?x=1", lambda: b""),
    "a task, percent-encoded": Route("POST", "/%74asks", lambda: b""),
    "a task with a newline": Route("POST", "/tasks%0A", lambda: b""),
    "another page of samples": Route("GET", f"/samples/miner/{MINER}?limit=6", lambda: b""),
}
TARGETS = {name: (route.method, route.path) for name, route in (ROUTES | OTHERS).items()}
PUBLIC = ("GET", "/weights"), ("GET", "/nothing")
MAKER = "admin"


class Captured(NamedTuple):
    """Every request as it was let in, where it may be replayed to, and the log."""

    requests: dict[tuple[str, int], Attempt]
    ports: dict[str, int]
    log: LogReader


def accepted(port: int, attempt: Attempt) -> Answer:
    answer = send(port, attempt)
    assert answer.status == (404 if attempt.target == "/nothing" else 200), answer
    return answer


def blacklisted(port: int, target: str) -> None:
    """Put a hotkey on the blacklist, whether it is there or not."""
    accepted(port, signed("admin", "POST", "/blacklist", _document(hotkey=target)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> WarehouseSettings:
    """A home that the tests here share."""
    settings = WarehouseSettings(leoma_home=tmp_path_factory.mktemp("home"))
    publish_attacked(settings)
    return settings


@pytest.fixture(scope="module")
def captured(home: WarehouseSettings) -> Iterator[Captured]:
    """Every route's request in both schemes, captured from a worker that has ended since."""
    log = open_read_log(home)
    with Server(SETTINGS, home) as beside:
        with Server(SETTINGS, home) as ended:
            requests = {}
            accepted(ended.port, signed("admin", "POST", "/tasks", _document(task_id=LATEST_TASK)))
            blacklisted(ended.port, STANDING)
            for (name, route), scheme in itertools.product(ROUTES.items(), (1, 2)):
                blacklisted(ended.port, REMOVABLE)
                attempt = signed(MAKER, route.method, route.path, route.body(), scheme=scheme)
                accepted(ended.port, attempt)
                requests[name, scheme] = attempt
            # So that a replayed removal would change something, and a replayed vote too.
            blacklisted(ended.port, REMOVABLE)
            accepted(ended.port, vote(MAKER, passed=False))
        with Server(SETTINGS, home) as restarted:
            ports = {"a worker beside": beside.port, "a restarted worker": restarted.port}
            yield Captured(requests, ports, log)
    log.close()


def allowed_statuses(name: str, scheme: int, target: tuple[str, str]) -> tuple[int, ...]:
    """Return how a replay may be answered; what it may store is nothing in any case."""
    route = ROUTES[name]
    is_itself = target == (route.method, route.path)
    if target in PUBLIC:
        return (404,) if target[1] == "/nothing" else (200,)
    if target[0] in ("GET", "HEAD"):
        # A read changes nothing: scheme 1 lets whoever has an empty body's signature read more.
        return (200,) if is_itself or scheme == 1 else (401,)
    if is_itself:
        # The sender of samples, who lost the answer, gets it again.
        return (200,) if target[1].startswith("/samples") else (409,)
    if scheme == 2:
        return (401,)
    return (409, 422)  # used for another write, or a body that is none of this route


REPLAYS = [
    (name, scheme, target_name, worker)
    for name in ROUTES
    for scheme in (1, 2)
    for target_name in TARGETS
    for worker in ("a worker beside", "a restarted worker")
]


@pytest.mark.parametrize(
    ("name", "scheme", "target_name", "worker"),
    REPLAYS,
    ids=[f"{name} as {other}, scheme {n}, to {worker}" for name, n, other, worker in REPLAYS],
)
def test_replay_stores_nothing(captured: Captured, name, scheme, target_name, worker):
    original, target = captured.requests[name, scheme], TARGETS[target_name]
    before = stored(captured.log)
    answer = send(captured.ports[worker], original._replace(method=target[0], target=target[1]))
    assert answer.status in allowed_statuses(name, scheme, target), answer
    assert stored(captured.log) == before
    assert before.admin_state.blacklist.keys() >= {STANDING, REMOVABLE}


# Writes that were not let in, sent again when they would be.


@pytest.fixture
def workers(captured: Captured) -> tuple[int, int]:
    """Two workers of the home; what happens is told to one and tried on the other."""
    beside, restarted = captured.ports.values()
    return beside, restarted


def test_replay_of_an_old_vote_never_overwrites_a_newer_one(captured: Captured, workers):
    for scheme in (1, 2):
        old = vote("middle", scheme=scheme, task_id=7, passed=True)
        first = accepted(workers[0], old)
        accepted(workers[0], vote("middle", scheme=scheme, task_id=7, passed=False))
        before = stored(captured.log)
        for worker in workers:
            again = send(worker, old)
            assert (again.status, again.content) == (200, first.content)
            assert not newest_vote(captured.log, "middle", 7)
        assert stored(captured.log) == before


def newest_vote(log: LogReader, name: str, task_id: int) -> bool:
    (sample,) = log.samples_of_task(str(task_id), 500, validator_hotkey=hotkey(name))
    return sample.passed


class Refused(NamedTuple):
    """A write that is refused now; `mend` makes that it would be let in; `target`: as what."""

    name: str
    make: Callable[[str], Attempt]
    status: int
    mend: Callable[[int, str], object] | None = None
    target: tuple[str, str] | None = None
    replayed: int = 409


def admin_write(method: str, path: str, body: bytes = b"") -> Attempt:
    return signed("admin", method, path, body, scheme=1)


def removal(target: str) -> tuple[str, str]:
    return "DELETE", f"/blacklist/{target}"


REFUSED = [
    Refused(
        "removal of what is not there",
        lambda fresh: admin_write("DELETE", f"/blacklist/{fresh}"),
        404,
        mend=blacklisted,
    ),
    Refused(
        "removal of what is not there, in scheme 2",
        lambda fresh: signed("admin", "DELETE", f"/blacklist/{fresh}"),
        404,
        mend=blacklisted,
    ),
    *(
        Refused(f"{what}, as a removal", lambda _, made=made: admin_write(*made), status,
                target=removal(STANDING))
        for what, made, status in (
            ("removal of what is not there", ("DELETE", f"/blacklist/{MINER}"), 404),
            ("removal of what is no hotkey", ("DELETE", "/blacklist/x"), 400),
            ("task without a body", ("POST", "/tasks"), 422),
            ("addition without a body", ("POST", "/blacklist"), 422),
            ("sample without a body", ("POST", "/samples"), 422),
            ("batch without a body", ("POST", "/samples/batch"), 422),
            ("removal of nothing", ("DELETE", "/blacklist"), 405),
            ("write on a read's route", ("POST", "/weights"), 405),
            ("write on no route", ("PUT", "/nothing"), 404),
        )
    ),
    Refused(
        "task that goes backwards, as an addition",
        lambda fresh: admin_write("POST", "/tasks", _document(task_id=1, hotkey=fresh)),
        409,
        target=("POST", "/blacklist"),
    ),
    Refused(
        "addition of no hotkey, as a task",
        lambda _: admin_write("POST", "/blacklist", _document(task_id=LATEST_TASK)),
        422,
        target=("POST", "/tasks"),
    ),
    Refused(
        "read with an addition's body",
        lambda fresh: admin_write("GET", "/weights", _document(hotkey=fresh)),
        200,
        target=("POST", "/blacklist"),
    ),
    Refused(
        "sample of a task that is not announced, as a task",
        lambda _: admin_write("POST", "/samples", _document(**sample_body(task_id=10**6))),
        400,
        target=("POST", "/tasks"),
    ),
    Refused(
        "batch that is too large, as a task",
        lambda _: admin_write(
            "POST", "/samples/batch", _document(samples=[sample_body()] * 101, task_id=LATEST_TASK)
        ),
        400,
        target=("POST", "/tasks"),
    ),
    Refused(
        "sample that does not fit, as a task",
        lambda _: admin_write("POST", "/samples", _document(task_id=LATEST_TASK)),
        422,
        target=("POST", "/tasks"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=[row.name for row in REFUSED])
def test_signature_of_a_refused_write_is_used_up(captured: Captured, workers, row: Refused):
    fresh = next(FRESH_HOTKEYS)
    attempt = row.make(fresh)
    before = stored(captured.log)
    assert send(workers[0], attempt).status == row.status
    assert stored(captured.log) == before
    if row.mend:
        row.mend(workers[0], fresh)
    before = stored(captured.log)
    if row.target:
        attempt = attempt._replace(method=row.target[0], target=row.target[1])
    for worker in (*workers, workers[0]):
        answer = send(worker, attempt)
        assert answer.status == row.replayed, answer
        assert stored(captured.log) == before


def sent_together(requests: Sequence[tuple[int, Attempt]]) -> list[int]:
    """Send requests to their workers at the same moment; return the statuses."""
    together = Barrier(len(requests))

    def sent(request: tuple[int, Attempt]) -> int:
        together.wait()
        return send(*request).status

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(sent, requests))


@pytest.mark.parametrize("attempt_number", range(10))
def test_same_signature_to_two_workers_at_once_is_good_for_one(
    captured: Captured, workers, attempt_number
):
    """Each is sent it for another hotkey; scheme 1 binds neither."""
    targets = [next(FRESH_HOTKEYS) for _ in workers]
    for target in targets:
        blacklisted(workers[0], target)
    head = captured.log.head()
    attempt = admin_write("DELETE", "/blacklist/")
    statuses = sent_together(
        [
            (worker, attempt._replace(target=attempt.target + target))
            for worker, target in zip(workers, targets, strict=True)
        ]
    )
    assert sorted(statuses) == [200, 409]
    assert captured.log.head() == head + 2


# The clock.


@pytest.fixture
def clock() -> Iterator[Callable[[int], None]]:
    """A clock that stands still until this is called."""
    with stopped_clock() as move:
        yield move


@pytest.mark.parametrize("scheme", [1, 2])
@pytest.mark.parametrize(
    ("moves", "status"),
    [((299,), 200), ((300,), 200), ((301,), 401), ((86_400 * 2,), 401), ((301, -301), 200),
     ((86_400 * 2, -86_400 * 2), 200), ((-300,), 200), ((-301,), 401)],
)  # fmt: skip
def test_vote_replayed_at_another_time(
    captured: Captured, workers, clock, *, scheme, moves, status
):
    """Also by a clock that goes back: what was used is used for ever."""
    old = vote("small", scheme=scheme, task_id=8, passed=True)
    accepted(workers[0], old)
    accepted(workers[0], vote("small", scheme=scheme, task_id=8, passed=False))
    for seconds in moves:
        clock(seconds)
        before = stored(captured.log)
        answer = send(workers[1], old)
        assert stored(captured.log) == before
    assert answer.status == status
    assert answer.status == 200 or STALE in answer.detail


@pytest.mark.parametrize("moves", [(0,), (300,), (-300,), (400, -400)])
def test_admins_write_replayed_at_another_time(captured: Captured, workers, clock, moves):
    attempt = admin_write("DELETE", f"/blacklist/{(target := next(FRESH_HOTKEYS))}")
    blacklisted(workers[0], target)
    accepted(workers[0], attempt)
    blacklisted(workers[0], target)
    before = stored(captured.log)
    for seconds in moves:
        clock(seconds)
        assert send(workers[1], attempt).status in (401, 409)
    assert stored(captured.log) == before


def test_read_of_an_admin_whose_clock_is_fast_is_remembered(captured: Captured, workers, clock):
    attempt = signed(
        "admin", "GET", "/miners/valid", scheme=1, timestamp=str(int(time.time()) + 400)
    )
    assert send(workers[0], attempt).status == 401
    clock(100)
    before = stored(captured.log)
    for worker in workers:
        answer = send(worker, attempt._replace(method="DELETE", target=f"/blacklist/{STANDING}"))
        assert (answer.status, answer.detail) == (409, USED)
    assert stored(captured.log) == before


class Early(NamedTuple):
    """A write from a fast clock, and the one that its sender makes in its place and then undoes."""

    make: Callable[[str, str | None], Attempt]
    undo: Callable[[int, str], object]


EARLY = {
    "a vote": Early(
        lambda _, at: vote("big", task_id=9, passed=True, timestamp=at),
        lambda port, _: accepted(port, vote("big", task_id=9, passed=False)),
    ),
    "a removal": Early(
        lambda fresh, at: signed("admin", "DELETE", f"/blacklist/{fresh}", timestamp=at),
        blacklisted,
    ),
}


@pytest.mark.parametrize("row", EARLY.values(), ids=EARLY)
def test_write_that_was_too_early_is_not_good_later(captured: Captured, workers, clock, row: Early):
    """Its sender was told the time, has signed anew, and has changed its mind since."""
    fresh = next(FRESH_HOTKEYS)
    blacklisted(workers[0], fresh)
    early = row.make(fresh, str(int(time.time()) + 301))
    assert send(workers[0], early).status == 401
    accepted(workers[0], row.make(fresh, None))
    row.undo(workers[0], fresh)
    before = stored(captured.log)
    clock(1)
    send(workers[1], early)
    assert stored(captured.log) == before


def test_vote_of_a_blacklisted_validator_is_not_good_later(captured: Captured, workers):
    """It is let in again, and has voted anew since: the old vote would replace the new one."""
    blacklisted(workers[0], hotkey("late1"))
    old = vote("late1", task_id=10, passed=True)
    assert send(workers[0], old).status == 401
    accepted(workers[0], signed("admin", *removal(hotkey("late1"))))
    accepted(workers[0], vote("late1", task_id=10, passed=False))
    before = stored(captured.log)
    send(workers[1], old)
    assert stored(captured.log) == before


# Reads of an admin, whose signature would do for a removal in scheme 1.


class Read(NamedTuple):
    """What an admin sends that is no write; `add` are headers beside the signed ones."""

    method: str
    target: str
    status: int
    add: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """How the row is called."""
        return f"{self.method} {self.target} {' '.join(name for name, _ in self.add)}".strip()


SIGNING = (b"X-Validator-Hotkey", b"X-Signature", b"X-Timestamp")
PREFLIGHT = (("Origin", "https://page.example"), ("Access-Control-Request-Method", "GET"))
READS = [
    Read("GET", "/weights", 200),
    Read("GET", "/weights?", 200),
    Read("GET", "/weights?at=1", 404),
    Read("GET", "/weights#x", 200),
    Read("GET", "http://elsewhere.example/weights", 200),
    Read("GET", "//weights", 404),
    Read("GET", "/%77eights", 200),
    Read("GET", "/weights", 304, (("If-None-Match", "*"),)),
    Read("GET", "/weights", 200, (("Origin", "https://page.example"),)),
    Read("GET", "/weights", 200, (("X-Signature-Version", "1"),)),
    Read("GET", "/weights", 200, (("Transfer-Encoding", "chunked"),)),
    Read("GET", "/health", 200),
    Read("GET", "/openapi.json", 200),
    Read("GET", "/docs", 200),
    Read("GET", "/miners/all", 200),
    Read("GET", "/miners/uid/x", 400),
    Read("GET", "/samples/list?limit=0", 422),
    Read("GET", f"/blacklist/{STANDING}", 200),
    Read("GET", "/tasks%0A", 400),
    Read("HEAD", "/weights", 200),
    Read("HEAD", "/miners/valid", 200),
    Read("OPTIONS", "/weights", 405),
    Read("TRACE", "/weights", 405),
    Read("PUT", "/tasks", 405),
    Read("PATCH", f"/blacklist/{STANDING}", 405),
    Read("PROPFIND", "/", 404),
    Read("POST", "/tasks%0A", 422),
    Read("POST", "/samples/list", 405),
    Read("DELETE", "/blacklist/a%2Fb", 404),
    Read("DELETE", "/blacklist/%0A", 400),
    Read("DELETE", "/blacklist/%FF", 400),
    Read("DELETE", "/tasks", 405),
    Read("OPTIONS", "/weights", 200, PREFLIGHT),
]  # fmt: skip


@pytest.mark.parametrize("row", READS, ids=[row.name for row in READS])
def test_read_of_an_admin_is_never_accepted_for_a_removal(captured: Captured, workers, row: Read):
    attempt = admin_write(row.method, row.target)
    for name, value in row.add:
        attempt = attempt.with_more(name, value)
    if ("Transfer-Encoding", "chunked") in row.add:
        attempt = attempt._replace(framing=(), body=b"0\r\n\r\n")
    blacklisted(workers[0], STANDING)
    before = stored(captured.log)
    assert send(workers[0], attempt).status == row.status
    signed_only = admin_write("DELETE", f"/blacklist/{STANDING}")._replace(
        headers=tuple(header for header in attempt.headers if header[0] in SIGNING)
    )
    for worker in workers:
        answer = send(worker, signed_only)
        assert (answer.status, answer.detail) == (409, USED)
    assert stored(captured.log) == before
