"""The disk of a running API fills up, turns read-only, or runs out of handles, and recovers.

Nobody restarts anything: submissions are answered 503 while it lasts, everything published goes on
being answered, and the first repeat afterwards is stored.
"""

import errno
import itertools
import json
import time

import httpx
import pytest

from tests.builders import hotkey, publish, sample_body, signed_headers
from tests.faults.shim import Control, environment
from tests.leoma_serve import LeomaServe
from tests.warehouse.builders import settings
from warehouse.sqlite_keeper import SqliteKeeper

# Both workers, each more than once, as connections happen to fall.
ROUNDS = 6
TRIES_MAX = 200
HEALTHY_SECONDS_MAX = 60
READS = ("/weights", "/scores/rank", "/miners/list", "/health", "/time", "/health/live")
LIVE_READS = ("/samples/list?limit=5", "/tasks/1", "/blacklist", "/health/ready")
NO_HANDLES = "no handle is left"
TROUBLES = {
    "the disk is full": (("write", "create", "mkdir"), errno.ENOSPC),
    "the disk is read-only": (
        ("write", "truncate", "create", "rename", "unlink", "mkdir", "symlink", "open_write"),
        errno.EROFS,
    ),
    NO_HANDLES: (("create", "open_read", "open_write"), errno.EMFILE),
    "the disk fails every sync": (("sync",), errno.EIO),
}


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

    def wait_until_healthy(self):
        """A worker looks at the pointer four times a second, and then says that it can read it."""
        deadline = time.monotonic() + HEALTHY_SECONDS_MAX
        while (health := self.ask("GET", "/health").json())["status"] != "healthy":
            assert time.monotonic() < deadline, health

    def log_and_problems(self):
        keeper = SqliteKeeper(self.settings)
        try:
            votes = itertools.chain.from_iterable(keeper.votes_between(0, keeper.head()))
            return {vote.seq: vote.latency_ms for vote in votes}, keeper.check()
        finally:
            keeper.close()


@pytest.fixture
def machine(shim, tmp_path):
    made = Machine(shim, tmp_path)
    made.api.start()
    try:
        # One that starts in mid-trouble cannot, and then uvicorn ends them all.
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


def test_health_says_that_nothing_can_be_stored(machine):
    assert machine.post(machine.signed()).status_code == 200
    machine.control.fail_from_now_on(*TROUBLES["the disk is full"])
    # Each worker tells of its own commits: until both have tried, one may not know.
    told = []
    while told[-ROUNDS:] != ["degraded"] * ROUNDS:
        assert len(told) < TRIES_MAX, told
        assert machine.post(machine.signed()).status_code == 503
        health = machine.ask("GET", "/health").json()
        told.append(health["status"])
        if told[-1] == "degraded":
            assert "nothing can be stored" in " ".join(health["problems"])
    machine.control.heal()
    told = []
    while told[-ROUNDS:] != ["healthy"] * ROUNDS:
        assert len(told) < TRIES_MAX, told
        assert machine.post(machine.signed()).status_code == 200
        told.append(machine.ask("GET", "/health").json()["status"])
