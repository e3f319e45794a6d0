"""The service as a whole: how soon it is ready, how old its answers are, and what a run costs them.

API, runs and loads share the cores, with the settings that an operator gets.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from cli.processes import Processes, free_port
from pipelines.settings import PipelineSettings
from tests.bench import history
from tests.bench.frames import framed, write_frames
from tests.bench.report import Figure
from tests.bench.servers import Bench, BenchError, api_arguments

STARTS, FRESH_SAMPLES = 5, 8
WORKERS = 2
# Between two samples whose way is measured: a run is over by then, as on a subnet.
PAUSE_SECONDS = 7.0
FRESH_SECONDS_MAX = 120.0
# Paced, so that an answer that is late does not put off the next question.
READS_PER_SECOND, READ_SECONDS, READ_CONNECTIONS = 500, 20, 32
RUNS_MIN, RUNS_MAX = 3, 1_000


def starting(logs: Path, environment: Mapping[str, str], scratch: Path) -> Figure:
    """Measure from the start of `leoma serve` to the first 200 of /health/ready."""
    seconds = []
    for _ in range(STARTS):
        port = free_port(0)
        with Processes(logs, environment, 10) as processes:
            begun = time.perf_counter()
            Bench(processes, scratch).serve(api_arguments(port, WORKERS), port, "/health/ready")
            seconds.append(time.perf_counter() - begun)
    return Figure("API ready after a start", seconds, "s", is_rate=False, target=1.5)


def freshness(logs: Path, environment: Mapping[str, str], scratch: Path, task: int) -> Figure:
    """Measure from the 200 of a POST to weights that count it, with Dagster's sensor."""
    port, code_port = free_port(0), str(free_port(0))
    seconds = []
    dagster_home = {"DAGSTER_HOME": str(Path(environment["LEOMA_HOME"]) / "dagster")}
    with Processes(logs, {**environment, **dagster_home}, 20) as processes:
        bench = Bench(processes, scratch)
        bench.serve(api_arguments(port, WORKERS), port, "/health/ready")
        cli = ["-m", "cli.main", "dagster"]
        processes.start("code-server", [*cli, "code-server", "--port", code_port])
        processes.start("daemon", [*cli, "daemon", "--code-port", code_port])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            # The first one waits for Dagster's start as well.
            _seconds_to_weights(client, task, 0)
            for number in range(1, FRESH_SAMPLES + 1):
                time.sleep(PAUSE_SECONDS + number * 0.3)
                seconds.append(_seconds_to_weights(client, task, number))
    return Figure("From POST to weights", seconds, "s", is_rate=False, target=15)


def _seconds_to_weights(client: httpx.Client, task: int, number: int) -> float:
    body = json.dumps(history.judgements(0, task)[number]).encode()
    signed = history.signed(
        history.keypair("validator"), "POST", "/samples", body, int(time.time())
    )
    headers = {**history.headers(signed), "Content-Type": "application/json"}
    answer = client.post("/samples", content=body, headers=headers)
    answer.raise_for_status()
    seq, begun = int(answer.json()["id"]), time.perf_counter()
    while client.get("/weights").json()["watermark"] < seq:
        if time.perf_counter() - begun > FRESH_SECONDS_MAX:
            raise BenchError("a sample did not come to the weights")
        time.sleep(0.05)
    return time.perf_counter() - begun


def reads_beside_runs(logs: Path, environment: Mapping[str, str], scratch: Path) -> list[Figure]:
    """Measure /weights alone, and while one run follows the other."""
    port = free_port(0)
    requests = scratch / "weights"
    request = framed("GET", "/weights", {})
    write_frames(requests, [request] * (READS_PER_SECOND * READ_SECONDS))
    with Processes(logs, environment, 10) as processes:
        Bench(processes, scratch).serve(api_arguments(port, WORKERS), port, "/health/ready")
        alone = _latencies_ms(scratch, port, requests)
        with _runs(environment) as ended:
            beside = _latencies_ms(scratch, port, requests)
    if len(ended) < RUNS_MIN:
        raise BenchError(f"only {len(ended)} runs ended while /weights was read")
    p99 = [statistics.quantiles(one, n=100)[98] for one in (alone, beside)]
    return [
        Figure("GET /weights, p99, no run", [p99[0]], "ms", is_rate=False),
        Figure(
            "GET /weights, p99, beside runs",
            [p99[1]],
            "ms",
            is_rate=False,
            target=20,
            note=f"{READS_PER_SECOND} requests/s, {len(ended)} runs one after the other, "
            f"slowest answer {max(beside):.0f} ms",
        ),
    ]


def _latencies_ms(scratch: Path, port: int, requests: Path) -> list[float]:
    plan = {
        "port": port,
        "connections": READ_CONNECTIONS,
        "begin_unix": time.time() + 2,
        "per_second": READS_PER_SECOND,
        "requests": str(requests),
        "has_ids": False,
    }
    path = scratch / "plan.json"
    path.write_text(json.dumps(plan))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.paced", str(path)], stdout=subprocess.PIPE, check=True
    )
    played: dict[str, Any] = json.loads(ended.stdout)
    if played["first_failure"]:
        raise BenchError(f"a request failed: {played['first_failure']}")
    latencies: list[float] = played["latencies_ms"]
    return latencies


@contextmanager
def _runs(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Have one run follow the other, each with all votes counted anew, niced as under Dagster.

    Yields a list that has, afterwards, a line for each that ended.
    """
    lines: list[str] = []
    nice = str(PipelineSettings().run_nice)
    runs = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.runs", "moved", str(RUNS_MAX), nice],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert runs.stdout is not None
        # The first one also imports what it needs.
        runs.stdout.readline()
        yield lines
    finally:
        # In the middle of one, most likely: the next one makes up for it.
        runs.kill()
        lines += runs.communicate()[0].splitlines()
