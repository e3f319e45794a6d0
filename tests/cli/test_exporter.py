"""`/metrics` of a real `leoma serve`: all workers together, and the state of log and tables."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from api.metrics import Metrics
from cli.serve import counters_of
from tests.api.conftest import publish_subnet
from tests.builders import wait_for
from tests.leoma_serve import LeomaServe

ALERTS = Path(__file__).parent.parent.parent / "docs" / "alerts.yaml"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serving(warehouse_settings):
    publish_subnet(warehouse_settings)
    started = []

    def start(workers, **settings):
        port = free_port()
        home = warehouse_settings.leoma_home
        api = LeomaServe(home, workers, METRICS_PORT=str(port), **settings)
        api.metrics_url = f"http://127.0.0.1:{port}/metrics"
        api.start()
        started.append(api)
        api.wait_until_ready()
        return api

    yield start
    for api in started:
        if api.process.poll() is None:
            api.kill()


def scraped(api):
    answer = httpx.get(api.metrics_url, trust_env=False)
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_workers_count_together(serving, warehouse_settings, workers):
    api = serving(workers)
    # A connection each, so that the kernel gives some to every worker.
    for _ in range(40):
        assert httpx.get(f"{api.url}/weights", trust_env=False).status_code == 200
    name = 'leoma_http_request_seconds_count{method="GET",route="/weights",status="200"}'
    wait_for(lambda: float(scraped(api).get(name, 0)) >= 40)
    found = scraped(api)
    assert float(found[name]) == 40
    assert float(found["leoma_log_head"]) == 0
    assert float(found["leoma_log_lag_records"]) == 0
    assert float(found["leoma_weights_valid_seconds"]) > 0
    assert float(found["leoma_chain_sync_age_seconds"]) >= 0
    directory = counters_of(warehouse_settings.leoma_home)
    assert list(directory.glob("*.db"))
    api.process.send_signal(signal.SIGTERM)
    assert api.process.wait(30) == 0
    assert not directory.exists()


def test_what_cannot_be_read_is_absent_and_the_rest_is_there(serving, warehouse_settings):
    api = serving(1)
    path = warehouse_settings.log_path
    for name in (path.name, path.name + "-wal", path.name + "-shm"):
        path.with_name(name).unlink(missing_ok=True)
    path.mkdir()
    found = scraped(api)
    assert "leoma_log_head" not in found
    assert "leoma_generation_age_seconds" in found


def test_without_readable_tables_their_gauges_are_absent(serving, warehouse_settings):
    api = serving(1)
    (warehouse_settings.warehouse_path / "current.json").write_text('{"snapshot_id"')
    found = scraped(api)
    assert "leoma_weights_valid_seconds" not in found
    assert "leoma_log_head" in found


def test_a_second_service_leaves_the_counters_of_the_first_alone(serving, warehouse_settings):
    api = serving(1)
    assert httpx.get(f"{api.url}/weights", trust_env=False).status_code == 200
    second = LeomaServe(warehouse_settings.leoma_home, 1, METRICS_PORT=str(free_port()))
    command = [sys.executable, "-m", "cli.main", "serve", "--port", str(second.port)]
    ended = subprocess.run(
        command, env=second.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert "another `leoma serve` shows the metrics" in ended.stderr
    name = 'leoma_http_request_seconds_count{method="GET",route="/weights",status="200"}'
    wait_for(lambda: name in scraped(api))
    assert float(scraped(api)[name]) == 1


def test_the_alerts_ask_for_what_there_is(serving):
    api = serving(1)
    httpx.get(f"{api.url}/weights", trust_env=False)
    answer = httpx.get(api.metrics_url, trust_env=False).text
    # What has not happened yet is not in an answer.
    counted = {metric.name for metric in Metrics().registry.collect()}
    there = set(re.findall(r"# TYPE (\w+)", answer)) | {"leoma_bucket_silent_seconds"} | counted
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"leoma_\w+", rule["expr"])}
    assert {re.sub(r"_(count|sum|bucket|total)$", "", name) for name in asked} <= there
    assert len(rules) == len({rule["alert"] for rule in rules}) > 10


def test_a_port_that_is_taken_is_told(warehouse_settings):
    publish_subnet(warehouse_settings)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        api = LeomaServe(warehouse_settings.leoma_home, 1, METRICS_PORT=str(taken.getsockname()[1]))
        command = [sys.executable, "-m", "cli.main", "serve", "--port", str(api.port)]
        ended = subprocess.run(
            command, env=api.environment, capture_output=True, text=True, check=False
        )
    assert ended.returncode == 1
    assert "Address already in use; choose another one with METRICS_PORT" in ended.stderr


def test_logs_are_json_where_programs_read_them(warehouse_settings):
    publish_subnet(warehouse_settings)
    api = LeomaServe(warehouse_settings.leoma_home, 1, LOG_FORMAT="json")
    command = [sys.executable, "-m", "cli.main", "serve", "--port", str(api.port)]
    with subprocess.Popen(
        command, env=api.environment, stderr=subprocess.PIPE, text=True
    ) as api.process:
        api.wait_until_ready()
        api.process.terminate()
        lines = [json.loads(line) for line in api.process.stderr]
    assert {"timestamp", "level", "logger", "event"} <= set(lines[0])
    assert any(line["logger"] == "api.snapshot" for line in lines)
    assert not any("\x1b" in json.dumps(line) for line in lines)
