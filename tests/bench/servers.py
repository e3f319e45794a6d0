"""What is measured over HTTP: the API and the bare application, under load from other processes."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from cli.processes import Child, Processes, free_port
from tests.bench import history
from tests.bench.frames import framed, write_frames
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_reads import SqliteReader

CONNECTIONS = 32
WARM_SECONDS, ROUND_SECONDS, ROUNDS = 1.0, 3.0, 5
START_SECONDS_MAX = 60.0
# How long wrk waits for an answer.
ANSWER_SECONDS_MAX = 30
LOAD_SCRIPT = Path(__file__).with_name("load.lua")
# More than two cores will ever take, so that a round of writes does not run out of requests.
BATCHES_PER_SECOND_MAX = 450
BATCHES_A_TASK = history.VALIDATORS * (history.MINERS // history.BATCH)
READ_PATHS = ("/weights", "/scores/rank", "/scores", "/scores/stats", "/miners/list")
NOT_MODIFIED = "/weights, not modified"


class BenchError(Exception):
    """Something failed, so there is no figure."""


@dataclass(frozen=True)
class Load:
    """What one round measured."""

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int


class Bench:
    """Starts servers and loads on a directory for scratch files."""

    def __init__(self, processes: Processes, scratch: Path) -> None:
        self.processes = processes
        self.scratch = scratch

    def serve(self, arguments: Sequence[str], port: int, ready: str) -> Child:
        """Start a server and wait until `ready` answers with 200."""
        child = self.processes.start("server", arguments)

        def is_ready() -> bool:
            try:
                url = f"http://127.0.0.1:{port}{ready}"
                return httpx.get(url, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        self.processes.wait_until(child, "the server is ready", is_ready, START_SECONDS_MAX)
        return child

    def play(self, port: int, requests: Path, seconds: float, *, is_once: bool) -> Load:
        """Send the requests of a file, by wrk, over and over or each `is_once`, for some seconds.

        A request that `is_once` and was sent must not be sent again: raises `BenchError` when there
        are none left, and for any answer but 2xx and 3xx.
        """
        options = f"-t1 -c{CONNECTIONS} -d{seconds:.0f} --timeout={ANSWER_SECONDS_MAX}".split()
        url, turns = f"http://127.0.0.1:{port}", "once" if is_once else "again"
        played = subprocess.run(
            ["wrk", *options, "-s", str(LOAD_SCRIPT), url, "--", str(requests), turns],
            stdout=subprocess.PIPE,
            check=False,
        )
        lines = played.stdout.splitlines()
        result = json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else {}
        bad = ("refused", "broken", "has_run_out")
        if not result or not result["requests"] or any(result[name] for name in bad):
            raise BenchError(f"the load failed: {result or played.stdout.decode()}")
        return Load(
            result["requests"] / result["seconds"],
            result["p50_ms"],
            result["p99_ms"],
            result["requests"],
        )

    def written(self, requests: Iterable[bytes]) -> Path:
        """Write requests to a file for `play`."""
        path = self.scratch / "requests"
        write_frames(path, requests)
        return path

    def cycle(self, port: int, requests: Sequence[bytes], seconds: float) -> Load:
        """Send requests over and over."""
        return self.play(port, self.written(requests), seconds, is_once=False)

    def gets(
        self, port: int, path: str, seconds: float, headers: Mapping[str, str] | None = None
    ) -> Load:
        """GET a path over and over."""
        return self.cycle(port, [framed("GET", path, headers or {})], seconds)


class Memory:
    """The largest resident memory of any worker of a server, watched from `with` to its end."""

    def __init__(self, child: Child) -> None:
        self._process = psutil.Process(child.process.pid)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.rss_mb = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def now(self) -> float:
        """Return what the largest one has now."""
        found = 0.0
        for process in [self._process, *self._process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found = max(found, process.memory_info().rss / 2**20)
        return found

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self.rss_mb = max(self.rss_mb, self.now())


def bare_answers(port: int, scratch: Path) -> Path:
    """Write down the API's answers, for the bare application to repeat."""
    answers = {}
    for path in READ_PATHS:
        response = httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)
        left_to_uvicorn = {"date", "server"}
        answers[path] = {
            "headers": [
                (name, value)
                for name, value in response.headers.items()
                if name not in left_to_uvicorn
            ],
            "body": response.text,
        }
    written = scratch / "answers.json"
    written.write_text(json.dumps(answers))
    return written


def api_arguments(port: int, workers: int) -> list[str]:
    """Return how the API is started."""
    serve = ["-m", "cli.main", "serve", "--log-level", "warning"]
    return [*serve, "--port", str(port), "--workers", str(workers)]


def bare_arguments(port: int) -> list[str]:
    """Return how the bare application is started: uvicorn as the API has it."""
    loop = ["--loop", "uvloop", "--http", "httptools", "--no-server-header"]
    quiet = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    return [
        "-m",
        "uvicorn",
        "--factory",
        "tests.bench.bare:app",
        "--port",
        str(port),
        *loop,
        *quiet,
    ]


def measure_reads(logs: Path, environment: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """Return the rates of the materialised routes with one worker, and of the bare application.

    Rounds alternate, so that what else the machine does meets both.
    """
    ports = {"api": free_port(0), "bare": free_port(0)}
    found: dict[str, Any] = {path: {"api": [], "bare": []} for path in READ_PATHS}
    with Processes(logs, environment, 10) as processes:
        bench = Bench(processes, scratch)
        child = bench.serve(api_arguments(ports["api"], 1), ports["api"], "/health/ready")
        answers = bare_answers(ports["api"], scratch)
        with Processes(logs, {**environment, "BENCH_ANSWERS": str(answers)}, 10) as others:
            bare = Bench(others, scratch)
            others.start("bare", bare_arguments(ports["bare"]))
            _wait_for(lambda: _answers(ports["bare"]))
            with Memory(child) as memory:
                for path in READ_PATHS:
                    for kind, port in ports.items():
                        bare.gets(port, path, WARM_SECONDS)
                        found[path][kind].clear()
                    for _ in range(ROUNDS):
                        for kind, port in ports.items():
                            found[path][kind].append(bare.gets(port, path, ROUND_SECONDS))
                known = {"If-None-Match": _etag(ports["api"])}
                found[NOT_MODIFIED] = {"bare": found[READ_PATHS[0]]["bare"]}
                found[NOT_MODIFIED]["api"] = [
                    bare.gets(ports["api"], READ_PATHS[0], ROUND_SECONDS, known)
                    for _ in range(ROUNDS)
                ]
    return {"rates": found, "rss_mb": memory.rss_mb}


def _etag(port: int) -> str:
    url = f"http://127.0.0.1:{port}{READ_PATHS[0]}"
    return httpx.get(url, trust_env=False).headers["ETag"]


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/weights", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not is_so():
        if time.monotonic() > deadline:
            raise BenchError("the bare application does not answer")
        time.sleep(0.05)


def measure_writes(
    logs: Path, environment: Mapping[str, str], scratch: Path, first_task: int
) -> dict[str, Any]:
    """Return the rate of batches of 100 with two workers.

    `ROUNDS` rounds, each about tasks of its own: full batches of all validators, signed beforehand.
    """
    port = free_port(0)
    rounds = []
    tasks = -(-int(BATCHES_PER_SECOND_MAX * ROUND_SECONDS) // BATCHES_A_TASK)
    with Processes(logs, environment, 20) as processes:
        bench = Bench(processes, scratch)
        child = bench.serve(api_arguments(port, 2), port, "/health/ready")
        with Memory(child) as memory:
            for number in range(ROUNDS):
                start = first_task + number * tasks
                batches = full_batches(range(start, start + tasks))
                rounds.append(stored(bench, environment, port, batches, history.BATCH + 1))
    return {"rates": rounds, "rss_mb": memory.rss_mb, "samples_a_request": history.BATCH}


def stored(
    bench: Bench,
    environment: Mapping[str, str],
    port: int,
    requests: Iterable[bytes],
    records: int,
    *,
    seconds: float = ROUND_SECONDS,
) -> Load:
    """Send requests, each once, and return what was measured; there must be enough of them.

    Raises `BenchError` unless the log grew by what was answered, each time `records`. What was
    under way at the end counts or not.
    """
    # This takes seconds, in which what was under way before comes to its end.
    path = bench.written(requests)
    settings = WarehouseSettings(leoma_home=Path(environment["LEOMA_HOME"]))
    log = SqliteReader(settings, is_inspection=True)
    try:
        before = log.head()
        load = bench.play(port, path, seconds, is_once=True)
        grown = log.head() - before
    finally:
        log.close()
    if not load.requests * records <= grown <= (load.requests + CONNECTIONS) * records:
        raise BenchError(f"{load.requests} requests were answered, and the log grew by {grown}")
    return load


def full_batches(tasks: range) -> Iterator[bytes]:
    """Yield signed requests of full batches, the validators' in turn."""
    now_unix = int(time.time())
    for task_id in tasks:
        for validator in range(history.VALIDATORS):
            for signed, samples, _ in history.signed_batches(validator, task_id, now_unix):
                if len(samples) == history.BATCH:
                    yield framed("POST", signed.path, history.headers(signed), signed.body)


def syncs(environment: Mapping[str, str], times: int) -> dict[str, Any]:
    """Run `tests.bench.syncs`; return what it measured."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.syncs", str(times)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=False,
    )
    if ended.returncode:
        raise BenchError(f"the syncs failed with exit code {ended.returncode}")
    measured: dict[str, Any] = json.loads(ended.stdout)
    return measured


def materialisations(environment: Mapping[str, str], mode: str, times: int) -> list[dict[str, Any]]:
    """Run `tests.bench.runs` with these settings; return what each run said."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.runs", mode, str(times)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=False,
    )
    if ended.returncode:
        raise BenchError(f"a materialisation ({mode}) failed with exit code {ended.returncode}")
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith(b"{")]
