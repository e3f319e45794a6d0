"""Health, readiness and time."""

import asyncio
import contextlib
import errno
import os
import re
import time

import apsw
import pytest

from api.app import create_api
from api.models import HealthResponse
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, publish, sample_body
from tests.warehouse.builders import append, sample
from warehouse import sqlite_late, sqlite_log, sqlite_schema
from warehouse.log import WrongLogError
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_transaction import Transaction

SECONDS_MAX = 20


class Locks:
    """The log's lock, which cannot be opened while `is_broken`."""

    def __init__(self):
        self.is_broken, self.lock = False, sqlite_schema.locked_in_turn

    @contextlib.contextmanager
    def __call__(self, path, timeout_seconds):
        if self.is_broken:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        with self.lock(path, timeout_seconds):
            yield


@pytest.fixture
def locks(monkeypatch):
    made = Locks()
    for module in (sqlite_schema, sqlite_log):
        monkeypatch.setattr(module, "locked_in_turn", made)
    monkeypatch.setattr(sqlite_late, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(sqlite_log, "TRY_SECONDS", 0.05)
    return made


def vote(server, task):
    return server.signed(
        "big", "POST", "/samples", sample_body(task_id=task, miner_hotkey=hotkey("old"))
    )


def problems(server):
    return " ".join(server.get("/health").json()["problems"])


def wait_until_healthy(server):
    deadline = time.monotonic() + SECONDS_MAX
    while server.get("/health").json()["status"] != "healthy":
        assert time.monotonic() < deadline, problems(server)
        time.sleep(0.02)


def test_healthy(server):
    response = server.get("/health")
    answer = HealthResponse.model_validate_json(response.content)
    assert (answer.status, answer.problems) == ("healthy", [])
    assert answer.database
    assert answer.metagraph_synced
    assert answer.last_sync is not None
    assert 0 <= answer.snapshot_age_seconds < 300
    assert answer.snapshot_id == server.get("/weights").json()["snapshot_id"]
    assert response.headers["Cache-Control"] == "no-store"


def test_before_the_first_generation(warehouse_settings):
    with Server(API_SETTINGS, warehouse_settings) as running:
        answer = running.get("/health").json()
        assert answer == {
            "status": "degraded",
            "version": answer["version"],
            "database": True,
            "metagraph_synced": False,
            "last_sync": None,
            "snapshot_id": None,
            "snapshot_age_seconds": None,
            "problems": ["no generation has been published yet"],
        }
        ready = running.get("/health/ready")
        assert (ready.status_code, ready.json()["detail"]) == (503, answer["problems"][0])
        assert running.get("/health/live").status_code == 200
        publish_subnet(warehouse_settings)
        deadline = time.monotonic() + 2
        while running.get("/health/ready").status_code != 200:
            assert time.monotonic() < deadline


def test_stale_metagraph_and_stale_weights_are_degraded(warehouse_settings):
    now_ms = time.time_ns() // 1_000_000
    publish(
        warehouse_settings,
        {"metagraph_synced_at_ms": now_ms - 901_000, "valid_until_ms": now_ms - 1},
    )
    with Server(API_SETTINGS, warehouse_settings) as running:
        response = running.get("/health")
        answer = response.json()
        assert response.status_code == 200
        assert answer["status"] == "degraded"
        assert answer["metagraph_synced"] is False
        assert len(answer["problems"]) == 2
        # It still serves what it has, with the fields that say how old it is.
        assert running.get("/weights").status_code == 200


def test_results_that_wait_for_long_are_degraded(warehouse_settings):
    publish_subnet(warehouse_settings)
    log = SqliteLog(warehouse_settings)
    for task in (1, 2):
        append(log, sample(task=task))
    connection = apsw.Connection(str(log.path))
    configured = warehouse_settings.model_copy(update={"s3_samples_bucket": "samples"})

    def problems(settings, oldest_seconds):
        oldest_ms = time.time_ns() // 1_000_000 - oldest_seconds * 1000
        connection.execute("UPDATE outbox SET queued_at_ms = ? WHERE task_id = 1", (oldest_ms,))
        with Server(API_SETTINGS, settings) as running:
            answer = running.get("/health").json()
        assert (answer["status"] == "degraded") == bool(answer["problems"])
        # Without a key to sign links with that is said as well; it is no matter here.
        return [problem for problem in answer["problems"] if "evaluation results" in problem]

    assert problems(configured, 500) == []
    assert problems(warehouse_settings, 1_000) == []
    (problem,) = problems(configured, 1_000)
    assert re.fullmatch(
        r"2 evaluation results wait for object storage, the oldest for 1\d\d\d seconds", problem
    )
    log.close()


def test_a_worker_starts_without_the_log_and_says_what_cannot_be_opened(warehouse_settings, locks):
    publish_subnet(warehouse_settings)
    locks.is_broken = True
    with Server(API_SETTINGS, warehouse_settings) as running:
        assert running.get("/weights").status_code == 200
        for answer in (
            running.get("/samples/list"), running.get("/health/ready"), vote(running, 1),
        ):  # fmt: skip
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
        health = running.get("/health").json()
        assert (health["status"], health["database"]) == ("degraded", False)
        assert f"{warehouse_settings.log_path} cannot be opened" in problems(running)
        assert "Too many open files" in problems(running)
        assert "look at the disk of LEOMA_HOME" in problems(running)
        locks.is_broken = False
        wait_until_healthy(running)
        assert running.get("/health/ready").status_code == 200
        assert vote(running, 1).status_code == 200


def test_a_log_that_is_only_read_is_up_and_degraded(warehouse_settings, locks):
    publish_subnet(warehouse_settings)
    SqliteLog(warehouse_settings).close()
    locks.is_broken = True
    with Server(API_SETTINGS, warehouse_settings) as running:
        assert running.get("/samples/list").json() == []
        assert vote(running, 1).status_code == 503
        health = running.get("/health").json()
        assert (health["status"], health["database"]) == ("degraded", True)
        assert "nothing can be stored" in problems(running)
        locks.is_broken = False
        wait_until_healthy(running)
        assert vote(running, 1).status_code == 200


def test_a_worker_does_not_start_on_a_log_of_a_later_version(warehouse_settings):
    async def start():
        app = create_api(API_SETTINGS, warehouse_settings)
        async with app.router.lifespan_context(app):
            pass

    SqliteLog(warehouse_settings).close()
    with contextlib.closing(apsw.Connection(str(warehouse_settings.log_path))) as connection:
        connection.pragma("user_version", 99)
    with pytest.raises(WrongLogError, match="has schema version 99; this software reads"):
        asyncio.run(start())


def test_health_finds_out_by_itself_that_commits_succeed_again(warehouse_settings, locks):
    publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        assert vote(running, 1).status_code == 200
        locks.is_broken = True
        assert vote(running, 2).status_code == 503
        time.sleep(10 * sqlite_log.TRY_SECONDS)
        assert "nothing can be stored" in problems(running)
        locks.is_broken = False
        wait_until_healthy(running)
        # Nothing was stored to find that out.
        assert len(running.get("/samples/list").json()) == 1


def test_damage_that_an_append_met_is_told_until_one_is_stored(
    warehouse_settings, locks, monkeypatch
):
    def damaged(*_):
        raise apsw.CorruptError("malformed")

    publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        with monkeypatch.context() as patched:
            patched.setattr(Transaction, "append_samples", damaged)
            assert vote(running, 1).status_code == 503
        time.sleep(10 * sqlite_log.TRY_SECONDS)
        assert "damaged" in problems(running)
        assert vote(running, 1).status_code == 200
        wait_until_healthy(running)


def test_time(server):
    assert abs(server.get("/time").json()["unix"] - time.time()) <= 5
