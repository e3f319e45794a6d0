"""Live routes under load: reads of the log, signed where they must be, and samples one by one."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.processes import Processes, free_port
from tests.bench import history
from tests.bench.frames import framed
from tests.bench.servers import (
    ROUND_SECONDS,
    ROUNDS,
    WARM_SECONDS,
    Bench,
    Load,
    Memory,
    api_arguments,
)

# More than two cores will ever take, so that a round does not run out of requests.
SINGLES_PER_SECOND_MAX = 6_000
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
            rounds.append(bench.once(port, singles(range(start, start + tasks))))
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
