"""`make soak`: the whole service under steady load for half an hour; nothing may grow or be lost.

`leoma serve` with two workers and a courier, object storage, and materialisations every minute: by
Dagster's daemon as in production (its sensor looks once a minute), or each as a process of its own
(`--runs command`). All settings are the defaults. The exit code is 1 if a criterion fails.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from api.client import LeomaClient
from cli.processes import Child, ProcessError, Processes, StopRequested, free_port, stop_signals
from pipelines.jobs import TABLES
from tests.bench import history, report, soak_report, soak_watch, storage
from tests.bench.environment import clean_environment
from tests.bench.servers import Bench, BenchError, api_arguments
from tests.bench.soak_load import TASK_SAMPLES, Plan
from warehouse.backends import open_kept_log
from warehouse.files import locked
from warehouse.log import LogError
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_keeper import SqliteKeeper

ROOT = Path("build/soak")
# Where `make bench` keeps its own; the same ones do.
HISTORIES = Path("build/bench")
BEGIN_SECONDS = 6.0
START_SECONDS_MAX = 120.0
ENDED_SECONDS_MAX = 90.0
RUN_SECONDS_MAX = 600.0
WATCH_SECONDS = 0.2
GRACE_SECONDS = 20
WORKERS = 2
MATERIALIZE = ("-m", "cli.main", "materialize")
# So that no run of the soak has a backlog from before it.
ALL_TEXTS = {"ARCHIVE_TEXTS_PER_RUN_MAX": str(10**9)}
STREAMS = ("writes", "reads")
RECENT = 20_000
TOLD = 5


@dataclass(frozen=True)
class Wanted:
    """What the options say."""

    minutes: float
    samples_per_second: float
    reads_per_second: float
    history: int
    sample_seconds: float
    run_seconds: int
    runs: str
    has_storage: bool
    root: Path
    picture: Path

    @property
    def seconds(self) -> float:
        return self.minutes * 60


def environment(home: Path, root: Path, run_seconds: int) -> dict[str, str]:
    """Return the settings of the service: what must be given, and otherwise its defaults."""
    return {
        **clean_environment(root),
        "LEOMA_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "CHAIN_SOURCE": str(home / "metagraph.json"),
        "NETUID": "99",
        "ADMIN_HOTKEYS": history.hotkey("admin"),
        "SENSOR_INTERVAL_SECONDS": str(run_seconds),
        "METRICS_PORT": str(free_port(0)),
    }


class Commands:
    """`leoma materialize` as a process of its own, on the minute."""

    def __init__(self, processes: Processes, run_seconds: int) -> None:
        self._processes = processes
        self._run_seconds = run_seconds
        self._begin_unix = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._done: list[dict[str, Any]] = []

    def prepare(self) -> dict[str, Child]:
        """Start what lasts: nothing."""
        return {}

    def begin(self, begin_unix: float) -> None:
        """Have the first run a minute after the beginning."""
        self._begin_unix = begin_unix
        self._thread.start()

    def stop(self) -> list[dict[str, Any]]:
        """Wait for the run under way; return all."""
        self._end.set()
        self._thread.join()
        return self._done

    def _run(self) -> None:
        number = 1
        while not self._end.wait(self._begin_unix + number * self._run_seconds - time.time()):
            at, is_ok = time.time(), True
            try:
                self._processes.run("materialize", MATERIALIZE, RUN_SECONDS_MAX)
            except ProcessError as error:
                is_ok = False
                click.echo(f"{error}\n{error.tail}", err=True)
            seconds = time.time() - at
            self._done.append({"at": at - self._begin_unix, "seconds": seconds, "is_ok": is_ok})
            # What is missed is not made up for.
            number = 1 + int((time.time() - self._begin_unix) / self._run_seconds)


class Daemon:
    """Dagster's code server and daemon, whose sensor starts the runs."""

    def __init__(self, processes: Processes, home: Path) -> None:
        self._processes = processes
        self._home = home
        self._begin_unix = 0.0

    def prepare(self) -> dict[str, Child]:
        """Start both."""
        port, cli = free_port(0), ["-m", "cli.main", "dagster"]
        code = self._processes.start("code-server", [*cli, "code-server", "--port", str(port)])
        self._processes.wait_until(
            code, "the pipelines are loaded", lambda: free_port(port) != port, START_SECONDS_MAX
        )
        daemon = self._processes.start("daemon", [*cli, "daemon", "--code-port", str(port)])
        return {"code proxy": code, "daemon": daemon}

    def begin(self, begin_unix: float) -> None:
        """Note when the load begins; the sensor has its own clock."""
        self._begin_unix = begin_unix

    def stop(self) -> list[dict[str, Any]]:
        """Return the runs that made tables since the beginning and have ended."""
        # Only this needs all of Dagster in this process.
        from dagster import DagsterInstance, DagsterRunStatus, RunsFilter  # noqa: PLC0415

        ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
        asked = RunsFilter(job_name=TABLES, statuses=ended)
        # Its storage looks there for where it is.
        os.environ["DAGSTER_HOME"] = str(self._home / "dagster")
        with DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
            records = instance.get_run_records(asked)
        return [
            {
                "at": record.start_time - self._begin_unix,
                "seconds": record.end_time - record.start_time,
                "is_ok": record.dagster_run.is_success,
            }
            for record in reversed(records)
            if record.start_time and record.end_time and record.start_time > self._begin_unix
        ]


class Soak:
    """One soak, from a copy of a history to what it showed."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._scratch = wanted.root.absolute() / "load"
        self._logs = wanted.root.absolute() / "logs"
        shutil.rmtree(self._scratch, ignore_errors=True)
        for directory in (self._scratch, self._logs):
            directory.mkdir(parents=True, exist_ok=True)
        # Lines of the two streams that were read already.
        self._answers: dict[str, list[soak_report.Answer]] = {"writes": [], "reads": []}
        self._read_bytes = dict.fromkeys(self._answers, 0)

    def run(self) -> dict[str, Any]:
        """Soak the service; return what was measured."""
        wanted = self._wanted
        home, first_task, head = prepared_home(wanted)
        given = environment(home, wanted.root.absolute(), wanted.run_seconds)
        click.echo("Making the first tables ...")
        with Processes(self._logs, {**given, **ALL_TEXTS}, GRACE_SECONDS) as processes:
            processes.run("first-tables", MATERIALIZE, RUN_SECONDS_MAX)
        with ExitStack() as stack:
            if wanted.has_storage:
                given |= stack.enter_context(object_storage(self._scratch, home))
            measured = self._serve(stack, given, home, first_task)
        click.echo("Comparing the ledger with the log, and checking the log ...")
        return {**measured, **self._checked(WarehouseSettings(leoma_home=home), head)}

    def _serve(
        self, stack: ExitStack, given: Mapping[str, str], home: Path, first_task: int
    ) -> dict[str, Any]:
        wanted = self._wanted
        service, dagster, runners, load = (
            stack.enter_context(Processes(self._logs, given, GRACE_SECONDS)) for _ in range(4)
        )
        port = free_port(0)
        bench = Bench(service, self._scratch)
        supervisor = bench.serve(api_arguments(port, WORKERS), port, "/health/ready")
        # Before it listens, a worker gets none of the connections that then last.
        service.wait_until(
            supervisor,
            "all workers are ready",
            lambda: soak_watch.workers_ready(supervisor.process.pid) == WORKERS,
            START_SECONDS_MAX,
        )
        roots = {"supervisor": supervisor}
        is_command = wanted.runs == "command"
        runs = Commands(runners, wanted.run_seconds) if is_command else Daemon(dagster, home)
        roots |= runs.prepare()
        with LeomaClient(f"http://127.0.0.1:{port}", history.keypair("admin")) as admin:
            admin.announce_task(first_task + 1)
        plan = Plan(
            str(self._scratch),
            port,
            time.time() + BEGIN_SECONDS,
            wanted.seconds,
            wanted.samples_per_second,
            wanted.reads_per_second,
            first_task,
        )
        plan.write(self._scratch / "plan.json")
        players = [self._start(load, "sign"), *(self._start(load, "play", s) for s in STREAMS)]
        pids = {name: child.process.pid for name, child in roots.items()}
        runs.begin(plan.begin_unix)
        try:
            samples = []
            for at in self._moments(plan, (service, dagster), players):
                # As Prometheus does.
                metrics = f"http://127.0.0.1:{given['METRICS_PORT']}/metrics"
                httpx.get(metrics, trust_env=False).raise_for_status()
                samples.append({"at": round(at, 2), **soak_watch.sample(pids, home)})
                self._read_answers()
                self._tell(samples[-1])
        finally:
            made = runs.stop()
        self._read_answers()
        return self._figures(samples, made)

    def _start(self, load: Processes, role: str, *arguments: str) -> Child:
        command = ["-m", "tests.bench.soak_load", role, str(self._scratch / "plan.json")]
        return load.start("-".join((role, *arguments)), [*command, *arguments])

    def _moments(
        self, plan: Plan, services: tuple[Processes, ...], players: list[Child]
    ) -> Iterator[float]:
        """Yield the seconds since the beginning at each interval, until all is answered."""
        interval, number = self._wanted.sample_seconds, 0
        while any(code is None for code in codes(players)):
            for processes in services:
                processes.check()
            at = time.time() - plan.begin_unix
            if at > plan.seconds + ENDED_SECONDS_MAX:
                raise BenchError("the load does not end")
            if number * interval <= at < plan.seconds:
                yield at
                number = 1 + int((time.time() - plan.begin_unix) / interval)
            else:
                time.sleep(WATCH_SECONDS)

    def _read_answers(self) -> None:
        for stream, answers in self._answers.items():
            with (self._scratch / f"{stream}.answers").open() as file:
                file.seek(self._read_bytes[stream])
                content = file.read()
            whole = content[: content.rfind("\n") + 1]
            self._read_bytes[stream] += len(whole)
            answers.extend(soak_report.read_answers(whole.splitlines()))

    def _tell(self, sample: Mapping[str, Any]) -> None:
        """Show how far it is, and the last interval."""
        since = sample["at"] - 2 * self._wanted.sample_seconds
        parts = [f"{sample['at'] / 60:6.2f} of {self._wanted.minutes:g} min"]
        for stream, answers in self._answers.items():
            recent = [one for one in answers[-RECENT:] if one.due > since]
            failures = sum(not one.is_ok for one in answers)
            p99 = soak_report.percentile([one.latency_ms for one in recent] or [0.0], 99)
            parts.append(f"{stream} p99 {p99:6.1f} ms, {failures} failed")
        workers = [one for name, one in sample["processes"].items() if name.startswith("worker")]
        memory = "/".join(f"{one['rss_mb']:.0f}" for one in workers)
        handles = "/".join(str(one["handles"]) for one in workers)
        parts.append(f"workers {memory} MB, {handles} handles; WAL {sample['wal_mb']:.0f} MB")
        click.echo("; ".join(parts))

    def _figures(self, samples: list[dict[str, Any]], made: list[dict[str, Any]]) -> dict[str, Any]:
        posts = [one for one in self._answers["writes"] if soak_report.is_submission(one)]
        reads, wanted = self._answers["reads"], self._wanted
        if not (posts and reads and samples):
            raise BenchError("nothing was measured")
        return {
            "seconds": wanted.seconds,
            "samples_per_second": wanted.samples_per_second,
            "reads_per_second": wanted.reads_per_second,
            "history": wanted.history,
            "runs_by": wanted.runs,
            "run_seconds": wanted.run_seconds,
            "has_storage": wanted.has_storage,
            "posts": soak_report.latencies(posts),
            "reads": soak_report.latencies(reads),
            "routes": soak_report.by_route([*self._answers["writes"], *reads]),
            "post_minutes": soak_report.in_slices(posts, 60),
            "post_slices": soak_report.in_slices(posts, wanted.sample_seconds),
            "read_slices": soak_report.in_slices(reads, wanted.sample_seconds),
            "growth": soak_report.growth(samples),
            "runs": [{**one, "at": round(one["at"], 1)} for one in made],
            "samples": samples,
        }

    def _checked(self, settings: WarehouseSettings, head: int) -> dict[str, Any]:
        log = SqliteKeeper(settings)
        try:
            ledger = soak_report.compared(log, self._scratch / "writes.ledger", head)
            problems = log.check()
            records = log.head() - log.dropped_through()
        finally:
            log.close()
        for line in [*ledger.lost[:TOLD], *ledger.doubled[:TOLD], *problems[:TOLD]]:
            click.echo(line, err=True)
        return {
            "ledger": {
                **ledger._asdict(), "lost": len(ledger.lost), "doubled": len(ledger.doubled)
            },
            "fsck": {"records": records, "problems": len(problems)},
        }  # fmt: skip


def codes(players: Sequence[Child]) -> list[int | None]:
    """Return the exit codes so far; raise `ProcessError` if one is not 0."""
    found = [child.process.poll() for child in players]
    for child, code in zip(players, found, strict=True):
        if code:
            raise ProcessError(f"{child.name} ended with exit code {code}.", child.tail())
    return found


def prepared_home(wanted: Wanted) -> tuple[Path, int, int]:
    """Return a home with a history of its own, the first new task and the log's head."""
    shape = history.Shape.of(wanted.history)
    histories = wanted.root if wanted.root != ROOT else HISTORIES
    histories.mkdir(parents=True, exist_ok=True)
    with locked(histories / "lock", timeout_seconds=1):
        made = history.made_history(histories.absolute(), shape, int(time.time()))
        click.echo("Copying the history ...")
        home = history.working_copy(made, wanted.root.absolute())
    log = open_kept_log(WarehouseSettings(leoma_home=home))
    try:
        return home, (log.latest_sampled_task() or 0) + 1, log.head()
    finally:
        log.close()


@contextmanager
def object_storage(scratch: Path, home: Path) -> Iterator[dict[str, str]]:
    """Run an S3 server that gives way to the service; yield the settings of who uploads there."""
    with storage.running_server(scratch) as server:
        storage.be_nice(server)
        # The history's results are no part of this.
        storage.forget_results(WarehouseSettings(leoma_home=home))
        given = storage.storage(server, server.url, server.make_bucket())
        # The warehouse stays in its directory.
        yield {name: value for name, value in given.items() if name != "WAREHOUSE_URL"}


def soak(wanted: Wanted) -> bool:
    """Soak, report, and keep results and picture; tell whether all criteria are met."""
    surroundings = report.machine()
    result = {"machine": surroundings, **Soak(wanted).run()}
    found = soak_report.criteria(result)
    result["criteria"] = soak_report.as_json(found)
    click.echo(soak_report.text(result, found))
    results = wanted.root / "results.json"
    results.write_text(json.dumps(result, indent=1))
    soak_report.draw(result, wanted.picture)
    click.echo(f"\nAll of it: {results}\nThe picture: {wanted.picture}")
    return soak_report.is_passed(found)


@click.command()
@click.option("--minutes", default=30.0, show_default=True, type=click.FloatRange(0.05, 1440))
@click.option(
    "--samples-per-second", default=500.0, show_default=True, type=click.FloatRange(10, 20_000)
)
@click.option(
    "--reads-per-second", default=200.0, show_default=True, type=click.FloatRange(1, 20_000)
)
@click.option(
    "--history",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(TASK_SAMPLES, 100_000_000),
    help="Samples that are there before.",
)
@click.option("--sample-seconds", default=10.0, show_default=True, type=click.FloatRange(0.5, 60))
@click.option(
    "--run-seconds",
    default=60,
    show_default=True,
    type=click.IntRange(1, 3600),
    help="From one materialisation to the next.",
)
@click.option(
    "--runs",
    default="dagster",
    show_default=True,
    type=click.Choice(["dagster", "command"]),
    help="Who materialises: Dagster's daemon, or `leoma materialize`.",
)
@click.option(
    "--storage/--no-storage",
    "has_storage",
    default=True,
    show_default=True,
    help="With a bucket that the courier uploads results to.",
)
@click.option(
    "--root", default=ROOT, show_default=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option(
    "--picture",
    default=ROOT / "soak.svg",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
)
def main(**options: Any) -> None:
    """Soak the service: a steady load for long; nothing may grow, fail or be lost.

    Results are kept as ROOT/results.json and as a picture. Ctrl-C ends it without a result.
    """
    wanted = Wanted(**options)
    try:
        wanted.root.mkdir(parents=True, exist_ok=True)
        # Two at once would measure each other, in the same files.
        with stop_signals(), locked(wanted.root / "soak.lock", timeout_seconds=1):
            is_passed = soak(wanted)
    except (BenchError, ProcessError, LogError, OSError, httpx.HTTPError) as error:
        tail = getattr(error, "tail", "")
        raise click.ClickException(f"{error}\n{tail}") from error
    except StopRequested:
        sys.exit(130)
    sys.exit(not is_passed)


if __name__ == "__main__":
    main()
