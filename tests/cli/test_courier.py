"""The courier as a process: alone, killed, beside the API, and what `leoma outbox` tells of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from threading import Event

import apsw
import click
import httpx
import psutil
import pytest

from cli import courier as courier_module
from cli.main import run
from cli.processes import free_port, kept_running
from tests.api.conftest import publish_subnet
from tests.builders import hotkey, sample_body, signed_headers
from tests.leoma_serve import LeomaServe
from tests.object_storage import KEYS, Faults
from tests.warehouse.builders import append, sample
from warehouse.backends import open_outbox
from warehouse.log import Failure
from warehouse.sqlite_log import SqliteLog

SECONDS_MAX = 60


def wait_for(condition):
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def faults(object_server):
    with Faults(object_server.port) as proxy:
        yield proxy


@pytest.fixture
def environment(home, bucket, faults):
    """Settings with the bucket behind the proxy."""
    key_id, secret, _ = KEYS["writer"]
    return {
        "LEOMA_HOME": str(home),
        "S3_ENDPOINT_URL": faults.url,
        "S3_SAMPLES_BUCKET": bucket,
        "S3_READ_ACCESS_KEY_ID": key_id,
        "S3_READ_SECRET_ACCESS_KEY": secret,
        "S3_WRITE_ACCESS_KEY_ID": key_id,
        "S3_WRITE_SECRET_ACCESS_KEY": secret,
        "OUTBOX_LEASE_SECONDS": "1",
        "OUTBOX_POLL_SECONDS": "0.05",
    }


@pytest.fixture
def log(warehouse_settings):
    opened = SqliteLog(warehouse_settings)
    yield opened
    opened.close()


@pytest.fixture
def stored(object_server, bucket):
    """What is in the bucket, by key."""

    def keys():
        client = object_server.client()
        listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
        client.close()
        return {entry["Key"] for entry in listed}

    return keys


@contextlib.contextmanager
def leoma(environment, *arguments):
    """Run `leoma arguments...` as a process; kill what is left of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def key(task):
    return f"{task}/evaluation_results/{hotkey('validator')}.json"


def is_drained(log):
    return log.backlog(1).depth == 0


def test_results_are_uploaded_until_it_is_told_to_end(environment, log, stored):
    with leoma(environment, "courier") as process:
        for task in range(10):
            append(log, sample(task=task))
        wait_for(lambda: is_drained(log))
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
    assert stored() == {key(task) for task in range(10)}


def test_sigterm_finishes_the_upload_under_way(environment, log, faults, stored):
    append(log, sample(task=1))
    faults.mode = "hold"
    with leoma(environment, "courier") as process:
        wait_for(lambda: faults.puts)
        process.terminate()
        faults.released.set()
        assert process.wait(SECONDS_MAX) == 0
    assert is_drained(log)
    assert stored() == {key(1)}


def test_what_a_killed_courier_had_in_hand_is_finished_by_another(environment, log, faults, stored):
    for task in range(40):
        append(log, sample(task=task))
    faults.mode = "stall"
    with leoma(environment, "courier") as process:
        wait_for(lambda: len(faults.puts) == 8)
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS_MAX)
    assert open_outbox(log.settings).status().in_flight > 0
    faults.mode = "pass"
    with leoma(environment, "courier"):
        wait_for(lambda: is_drained(log))
    assert stored() == {key(task) for task in range(40)}


def test_without_object_storage_it_waits_to_be_ended(home):
    with leoma({"LEOMA_HOME": str(home)}, "courier") as process:
        assert "not configured" in process.stderr.readline()
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0


def couriers_of(process):
    """The couriers that a process started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "courier" in child.cmdline()]
    return []


@pytest.mark.parametrize("workers", [1, 2])
def test_serving_keeps_one_courier_and_ends_it(
    environment, warehouse_settings, log, stored, workers
):
    publish_subnet(warehouse_settings)
    port = str(free_port(0))
    arguments = ["serve", "--port", port, "--workers", str(workers), "--log-level", "warning"]
    with leoma(environment, *arguments) as process:
        append(log, sample(task=1))
        wait_for(lambda: is_drained(log))
        (courier,) = couriers_of(process)
        courier.kill()
        append(log, sample(task=2))
        wait_for(lambda: is_drained(log))
        (another,) = couriers_of(process)
        assert another.pid != courier.pid
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
        assert not another.is_running()
        assert "leoma courier ended with exit code -9; again in" in process.stderr.read()
    assert stored() == {key(1), key(2)}


def test_a_courier_does_not_outlive_an_api_that_is_killed(environment, warehouse_settings):
    publish_subnet(warehouse_settings)
    with leoma(environment, "serve", "--port", str(free_port(0))) as process:
        wait_for(lambda: couriers_of(process))
        (courier,) = couriers_of(process)
        process.kill()
        process.wait(SECONDS_MAX)
        psutil.wait_procs([courier], SECONDS_MAX)
        assert not courier.is_running()


@pytest.mark.parametrize("is_configured", [True, False])
def test_no_courier_where_none_is_wanted(environment, warehouse_settings, home, is_configured):
    publish_subnet(warehouse_settings)
    given = environment if is_configured else {}
    arguments = ["--no-courier"] if is_configured else []
    api = LeomaServe(home, 1, **given)
    with leoma(
        {**given, "LEOMA_HOME": str(home)}, "serve", "--port", str(api.port), *arguments
    ) as process:
        api.process = process
        api.wait_until_ready()
        assert couriers_of(process) == []


def test_a_dead_bucket_fails_no_submission(environment, warehouse_settings, log, faults):
    publish_subnet(warehouse_settings)
    faults.mode = "stall"
    api = LeomaServe(warehouse_settings.leoma_home, **environment)
    api.start()
    try:
        api.wait_until_ready()
        with httpx.Client(base_url=api.url, trust_env=False, timeout=30) as http:
            for task in range(50):
                body = json.dumps(sample_body(task_id=task)).encode()
                headers = signed_headers("big", body, method="POST", path="/samples", scheme=2)
                assert http.post("/samples", content=body, headers=headers).status_code == 200
        wait_for(lambda: faults.puts)
        faults.mode = "pass"
        wait_for(lambda: is_drained(log))
    finally:
        api.kill()


def test_a_part_that_ends_by_itself_ends_the_whole():
    class Short:
        def run(self, stopping):
            raise ZeroDivisionError

    class Long:
        ended = Event()

        def run(self, stopping):
            stopping.wait()
            self.ended.set()

    with pytest.raises(click.ClickException, match="ended by itself"):
        courier_module.run_until_stopped([Long(), Short()])
    assert Long.ended.is_set()


def test_what_ends_is_started_again_and_waits_longer_each_time(monkeypatch, caplog):
    waits, enough = [], Event()

    class Stopping(Event().__class__):
        def wait(self, timeout=None):
            if timeout and timeout >= 1:
                waits.append(timeout)
                if len(waits) == 3:
                    enough.set()
                    return super().wait(SECONDS_MAX)
                return self.is_set()
            return super().wait(timeout)

    monkeypatch.setattr("cli.processes.threading.Event", Stopping)
    with kept_running(["no-such-command"]):
        assert enough.wait(SECONDS_MAX)
    assert waits == [2.0, 4.0, 8.0]
    assert "leoma no-such-command ended with exit code 2; again in 8 s" in caplog.text


def test_the_outbox_is_shown(log, home, monkeypatch, capsys):
    monkeypatch.setenv("LEOMA_HOME", str(home))
    assert run(["outbox"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("S3_SAMPLES_BUCKET is not set")
    assert said[1] == "No evaluation result waits."
    for task in range(3):
        append(log, sample(task=task))
    outbox = open_outbox(log.settings)
    claims = outbox.claim(2)
    outbox.failed([Failure(claims[0], "bad \x1b[31m bucket", 100)])
    outbox.close()
    apsw.Connection(str(log.path)).execute("UPDATE outbox SET queued_at_ms = queued_at_ms - 60000")
    monkeypatch.setenv("S3_SAMPLES_BUCKET", "samples")
    assert run(["outbox"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 evaluation results wait, 6")
    assert "1 in flight, 1 failures of one at most." in said
    assert "s ago: bad  [31m bucket\n" in said
    assert run(["outbox", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert 60 <= shown.pop("oldest_seconds") < 120
    assert 0 <= shown.pop("last_error_seconds") < 60
    assert shown == {
        "is_configured": True,
        "depth": 3,
        "in_flight": 1,
        "attempts_max": 1,
        "last_error": "bad \x1b[31m bucket",
    }


def test_an_outbox_that_cannot_be_read_is_one_line(home, monkeypatch, capsys):
    monkeypatch.setenv("LEOMA_HOME", str(home))
    (home / "log" / "log.sqlite").mkdir(parents=True)
    assert run(["outbox"]) == 1
    assert capsys.readouterr().err.startswith("Error: the log does not answer")
