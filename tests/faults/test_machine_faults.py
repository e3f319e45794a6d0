"""The disk of a running API fills up, turns read-only, or runs out of handles, and recovers.

Nobody restarts anything: submissions are answered 503 while it lasts, everything published goes on
being answered, and the first repeat afterwards is stored. A worker that dies in mid-trouble is
replaced by one that does the same.
"""

import contextlib
import errno
import itertools
import json
import time

import httpx
import psutil
import pytest

from tests.builders import hotkey, publish, sample_body, signed_headers
from tests.faults.shim import Control, environment
from tests.leoma_serve import LeomaServe, spawned_by
from tests.warehouse.builders import settings
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import TRY_SECONDS

# Both workers, each more than once, as connections happen to fall.
ROUNDS = 6
# So many equal answers in a row are of both workers, but for one of 2,000 cases.
LOOKS = 12
TRIES_MAX = 200
SECONDS_MAX = 60
READS = ("/weights", "/scores/rank", "/miners/list", "/health", "/time", "/health/live")
LIVE_READS = ("/samples/list?limit=5", "/tasks/1", "/blacklist", "/health/ready")
READ_ONLY = "the disk is read-only"
NO_HANDLES = "no handle is left"
NO_HANDLES_TO_WRITE = "no handle is left when the log is opened"
TROUBLES = {
    "the disk is full": (("write", "create", "mkdir"), errno.ENOSPC),
    READ_ONLY: (
        ("write", "truncate", "create", "rename", "unlink", "mkdir", "symlink", "open_write"),
        errno.EROFS,
    ),
    NO_HANDLES: (("create", "open_read", "open_write"), errno.EMFILE),
    "the disk fails every sync": (("sync",), errno.EIO),
}
# In which a worker starts. Where there are handles for reading it has the tables.
STARTS = {
    READ_ONLY: TROUBLES[READ_ONLY],
    NO_HANDLES: TROUBLES[NO_HANDLES],
    NO_HANDLES_TO_WRITE: (("create", "open_write"), errno.EMFILE),
}


def short_of(troubles, *chosen):
    """Keep those that are not chosen for the long form: they take a service each."""
    return [
        trouble if trouble in chosen else pytest.param(trouble, marks=pytest.mark.torture)
        for trouble in troubles
    ]


class Machine:
    """An API with two workers under the shim, and a validator that remembers what it was told."""

    def __init__(self, shim, directory):
        root = directory / "disk"
        root.mkdir()
        self.settings = settings(root / "home")
        publish(self.settings, validators=[{"hotkey": hotkey("v")}])
        self.control = Control(directory / "control")
        self.api = LeomaServe(
            self.settings.leoma_home, **environment(shim, root, self.control.path)
        )
        self.tasks, self.acknowledged = itertools.count(1), {}

    def ask(self, method, path, **request):
        # A connection of its own: the next one may be another worker's.
        with httpx.Client(base_url=self.api.url, trust_env=False, timeout=60) as http:
            return http.request(method, path, **request)

    def signed(self):
        task = next(self.tasks)
        body = json.dumps({"samples": [sample_body(task_id=task, latency_ms=task)]}).encode()
        headers = signed_headers("v", body, method="POST", path="/samples/batch", scheme=2)
        return {"content": body, "headers": headers}

    def post(self, request):
        answer = self.ask("POST", "/samples/batch", **request)
        if answer.status_code == 200:
            (row,) = answer.json()
            assert self.acknowledged.setdefault(row["id"], row["latency_ms"]) == row["latency_ms"]
        return answer

    def health(self):
        return self.ask("GET", "/health").json()

    def wait_until_healthy(self):
        """All that is done is to look; both workers say so in the end."""
        deadline = time.monotonic() + SECONDS_MAX
        seen = 0
        while seen < LOOKS:
            health = self.health()
            seen = seen + 1 if health["status"] == "healthy" else 0
            assert time.monotonic() < deadline, health
            time.sleep(0.05)

    def listening(self):
        """Return the workers that have started."""
        found = set()
        for one in spawned_by(self.api.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(socket.status == psutil.CONN_LISTEN for socket in one.net_connections()):
                    found.add(one)
        return found

    def replace(self, worker):
        """Kill a worker, and wait until another one has started in its place."""
        worker.kill()
        deadline = time.monotonic() + SECONDS_MAX
        while worker in (now := self.listening()) or len(now) < self.api.workers:
            assert self.api.process.poll() is None, "the whole service ended"
            assert time.monotonic() < deadline, "no worker started"
            time.sleep(0.05)

    def log_and_problems(self):
        keeper = SqliteKeeper(self.settings)
        try:
            latencies = {}
            for votes in keeper.votes_between(0, keeper.head()):
                latencies |= dict(zip(votes.seq, votes.latency_ms, strict=True))
            return latencies, keeper.check()
        finally:
            keeper.close()


@pytest.fixture
def machine(shim, tmp_path):
    made = Machine(shim, tmp_path)
    made.api.start()
    try:
        made.api.wait_until_all_are_ready()
        yield made
    finally:
        made.api.kill()


@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_the_api_goes_on_and_recovers_by_itself(machine, trouble):
    for _ in range(ROUNDS):
        assert machine.post(machine.signed()).status_code == 200
    machine.control.plan(None)
    machine.control.fail_from_now_on(*TROUBLES[trouble])

    refused = [machine.signed() for _ in range(ROUNDS)]
    for request in refused:
        answer = machine.post(request)
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) > 0
    for path in READS * 2:
        assert machine.ask("GET", path).status_code == 200, path
    for path in LIVE_READS * 2:
        answer = machine.ask("GET", path)
        # A thread that never read before needs a handle.
        is_excused = trouble == NO_HANDLES and answer.status_code == 503
        assert answer.status_code == 200 or is_excused, answer.text
    assert machine.control.injected > 0

    machine.control.heal()
    for request in refused:
        answer = machine.post(request)
        assert answer.status_code == 200, answer.text
    for _ in range(ROUNDS):
        assert machine.post(machine.signed()).status_code == 200
    for path in (*READS, *LIVE_READS):
        assert machine.ask("GET", path).status_code == 200, path
    machine.wait_until_healthy()
    assert machine.log_and_problems() == (machine.acknowledged, [])
    assert len(machine.acknowledged) == 3 * ROUNDS


def test_workers_that_first_read_a_read_only_disk_store_the_first_repeat(machine):
    machine.control.fail_from_now_on(*TROUBLES[READ_ONLY])
    refused = [machine.signed() for _ in range(LOOKS)]
    for request in refused:
        assert machine.post(request).status_code == 503
    machine.control.heal()
    for request in refused:
        answer = machine.post(request)
        assert answer.status_code == 200, answer.text
    assert machine.log_and_problems() == (machine.acknowledged, [])


@pytest.mark.parametrize("trouble", short_of(TROUBLES, NO_HANDLES))
def test_health_says_that_nothing_can_be_stored_and_when_that_is_over(machine, trouble):
    # Both have what an append needs before it comes to the log.
    for _ in range(LOOKS):
        assert machine.post(machine.signed()).status_code == 200
    machine.control.fail_from_now_on(*TROUBLES[trouble])
    # Each worker tells of its own commits: until both have tried, one may not know.
    told = []
    while told[-LOOKS:] != ["degraded"] * LOOKS:
        assert len(told) < TRIES_MAX, told
        assert machine.post(machine.signed()).status_code == 503
        told.append(machine.health()["status"])
    # It stays so while nothing can be stored, though it is tried again and again.
    over = time.monotonic() + 2 * TRY_SECONDS
    while time.monotonic() < over:
        problems = " ".join(machine.health()["problems"])
        is_excused = trouble == NO_HANDLES and "unable to open" in problems
        assert "nothing can be stored" in problems or is_excused, problems
        time.sleep(0.1)
    machine.control.heal()
    machine.wait_until_healthy()
    for _ in range(LOOKS):
        assert machine.post(machine.signed()).status_code == 200
    assert machine.log_and_problems() == (machine.acknowledged, [])


@pytest.mark.parametrize("trouble", short_of(STARTS, NO_HANDLES_TO_WRITE))
def test_a_worker_that_starts_in_mid_trouble_serves_and_recovers_by_itself(machine, trouble):
    for _ in range(ROUNDS):
        assert machine.post(machine.signed()).status_code == 200
    machine.control.fail_from_now_on(*STARTS[trouble])
    one, other = machine.listening()
    machine.replace(one)
    # The other one has what it needs, and the new one takes nothing from it.
    statuses = {machine.ask("GET", "/weights").status_code for _ in range(2 * LOOKS)}
    assert statuses == ({200, 503} if trouble == NO_HANDLES else {200})

    # Now whoever answers has started in mid-trouble.
    machine.replace(other)
    for path in ("/health", "/time", "/health/live") * 2:
        assert machine.ask("GET", path).status_code == 200, path
    for path in ("/weights", "/scores/rank", "/miners/list", *LIVE_READS) * 2:
        answer = machine.ask("GET", path)
        assert answer.status_code == (503 if trouble == NO_HANDLES else 200), answer.text
        assert "Retry-After" in answer.headers or answer.status_code == 200
    refused = [machine.signed() for _ in range(ROUNDS)]
    for request in refused:
        answer = machine.post(request)
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) > 0
    health = machine.health()
    assert health["status"] == "degraded"
    assert "log.sqlite cannot be opened" in " ".join(health["problems"])
    assert "look at the disk of LEOMA_HOME" in " ".join(health["problems"])

    machine.control.heal()
    machine.wait_until_healthy()
    for request in refused:
        assert machine.post(request).status_code == 200
    for _ in range(LOOKS):
        assert machine.post(machine.signed()).status_code == 200
    for path in (*READS, *LIVE_READS):
        assert machine.ask("GET", path).status_code == 200, path
    assert machine.log_and_problems() == (machine.acknowledged, [])
    assert len(machine.acknowledged) == 2 * ROUNDS + LOOKS
