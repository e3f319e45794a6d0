"""Live routes under load: reads of the log, signed where they must be, and samples one by one."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cli.processes import Processes, free_port
from tests.bench import history
from tests.bench.frames import framed
from tests.bench.servers import (
    BATCHES_A_TASK,
    BATCHES_PER_SECOND_MAX,
    READ_PATHS,
    ROUND_SECONDS,
    ROUNDS,
    WARM_SECONDS,
    Bench,
    Load,
    Memory,
    api_arguments,
    full_batches,
    stored,
)

# More than two cores will ever take, so that a round does not run out of requests.
SINGLES_PER_SECOND_MAX = 6_000
HOLD_ROUND_SECONDS = 8.0
# For one second of batches.
HOLD_TASKS = -(-BATCHES_PER_SECOND_MAX // BATCHES_A_TASK)
OLD_MINER = "/tasks?miner_hotkey=, 20,000 tasks"


def reads(tasks: int, old_miner: str, now_unix: int) -> dict[str, list[bytes]]:
    """Return the requests of each live route, of many validators, miners and tasks."""
    newest = range(max(1, tasks - 100), tasks + 1)
    found: dict[str, list[bytes]] = {
        "/samples/list?limit=200": [framed("GET", "/samples/list?limit=200", {})],
        "/tasks/{id}/miner/{hotkey}": [
            framed("GET", f"/tasks/{task}/miner/{history.hotkey('miner', task % 97)}", {})
            for task in newest
        ],
        "/tasks?miner_hotkey=": [
            framed("GET", f"/tasks?miner_hotkey={history.hotkey('miner', number)}", {})
            for number in range(history.MINERS)
        ],
        OLD_MINER: [framed("GET", f"/tasks?miner_hotkey={old_miner}", {})],
    }
    for kind, count in (("validator", history.VALIDATORS), ("miner", history.MINERS)):
        requests = []
        for number in range(count):
            path = f"/samples/{kind}/{history.hotkey(kind, number)}"
            key = history.keypair("validator", number % history.VALIDATORS)
            signed = history.signed(key, "GET", path, b"", now_unix)
            requests.append(framed("GET", path, history.headers(signed)))
        found[f"/samples/{kind}/{{hotkey}}"] = requests
    return found


def measure_live(
    logs: Path, environment: Mapping[str, str], scratch: Path, tasks: int, old_miner: str
) -> dict[str, Any]:
    """Return the rates of the live routes with one worker, each request of a route in turn."""
    port = free_port(0)
    rates: dict[str, list[Load]] = {}
    with Processes(logs, environment, 10) as processes:
        bench = Bench(processes, scratch)
        child = bench.serve(api_arguments(port, 1), port, "/health/ready")
        with Memory(child) as memory:
            for route, requests in reads(tasks, old_miner, int(time.time())).items():
                bench.cycle(port, requests, WARM_SECONDS)
                rates[route] = [bench.cycle(port, requests, ROUND_SECONDS) for _ in range(ROUNDS)]
    return {"rates": rates, "rss_mb": memory.rss_mb}


def hold(
    logs: Path,
    environment: Mapping[str, str],
    scratch: Path,
    shape: tuple[int, str, int],
    seconds: int,
) -> tuple[float, float]:
    """Load two workers with reads of all routes and with writes.

    `shape`: as many tasks as the history has, a miner with many of them, and the first new task.
    Returns what the largest worker holds afterwards and the most that one ever held, in MB.
    """
    tasks, old_miner, next_task = shape
    port = free_port(0)
    with Processes(logs, environment, 20) as processes:
        bench = Bench(processes, scratch)
        child = bench.serve(api_arguments(port, 2), port, "/health/ready")
        begun, told = time.monotonic(), 0
        with Memory(child) as memory, click.progressbar(length=seconds, file=sys.stderr) as bar:
            while told < seconds:
                for path in READ_PATHS:
                    bench.gets(port, path, ROUND_SECONDS)
                # Signed anew, since signatures expire.
                for requests in reads(tasks, old_miner, int(time.time())).values():
                    bench.cycle(port, requests, HOLD_ROUND_SECONDS)
                batches = full_batches(range(next_task, next_task + HOLD_TASKS))
                stored(bench, environment, port, batches, history.BATCH + 1, seconds=1)
                next_task += HOLD_TASKS
                bar.update(int(time.monotonic() - begun) - told)
                told = int(time.monotonic() - begun)
            return memory.now(), memory.rss_mb


def measure_singles(
    logs: Path, environment: Mapping[str, str], scratch: Path, first_task: int
) -> list[Load]:
    """Return the rates of samples that are sent one by one to two workers."""
    port = free_port(0)
    rounds = []
    with Processes(logs, environment, 20) as processes:
        bench = Bench(processes, scratch)
        bench.serve(api_arguments(port, 2), port, "/health/ready")
        a_task = history.VALIDATORS * history.MINERS
        tasks = -(-int(SINGLES_PER_SECOND_MAX * ROUND_SECONDS) // a_task)
        for number in range(ROUNDS):
            start = first_task + number * tasks
            # Each is a submission and its sample.
            one_by_one = singles(range(start, start + tasks))
            rounds.append(stored(bench, environment, port, one_by_one, 2))
    return rounds


def singles(tasks: range) -> Iterator[bytes]:
    """Yield one signed request a sample, the validators' in turn."""
    now_unix = int(time.time())
    for task in tasks:
        judged = [history.judgements(validator, task) for validator in range(history.VALIDATORS)]
        for miner in range(history.MINERS):
            for validator, entries in enumerate(judged):
                body = json.dumps(entries[miner]).encode()
                key = history.keypair("validator", validator)
                signed = history.signed(key, "POST", "/samples", body, now_unix)
                yield framed("POST", "/samples", history.headers(signed), body)
