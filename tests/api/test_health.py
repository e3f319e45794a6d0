"""Health, readiness and time."""

import re
import time

import apsw

from api.models import HealthResponse
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import publish
from tests.warehouse.builders import append, sample
from warehouse.sqlite_log import SqliteLog


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


def test_time(server):
    assert abs(server.get("/time").json()["unix"] - time.time()) <= 5
