"""`make bench`: measure the service on a large history, each figure beside the machine's limit.

Exits non-zero when something failed, not when something was slow: a missed target is marked.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from cli.processes import ProcessError, StopRequested, stop_signals
from tests.bench import history, limits, objects, outbox, report, servers, storage, together
from tests.bench.environment import clean_environment
from tests.bench.live import OLD_MINER, hold, measure_live, measure_singles
from tests.bench.page import page
from tests.bench.report import Figure
from tests.bench.runs import NEW_SAMPLES
from warehouse.files import locked
from warehouse.log import LogError
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

ROOT = Path("build/bench")
RUNS = 5
REBUILD, AGAIN = "Rebuild from the log alone", "Run without news"
GROWN, MOVED = f"Run after {NEW_SAMPLES:,} new samples", "Run after stakes moved"
OLD_MINER_TASKS = 20_000
SYNCS = 221  # 200 after the first ones, which fill caches
SYNCS_MB_MAX = 16  # what the allocator may keep; a leak of one answer a sync is more
OUTAGE_SECONDS = 60
PARTS = (
    "runs", "publishing", "reads", "together", "live", "writes", "singles", "syncs", "links",
    "outbox", "outage",
)  # fmt: skip
# What takes an hour is measured when it is asked for.
LONG_PARTS = ("hold",)
NEED_TABLES = {"together", "reads", "live", "writes", "singles", "hold"}
NEED_WRK = {"reads", "live", "writes", "singles", "hold"}
HOLD_MINUTES = 60
# Of a log with 10,000,000 samples; a shorter one takes its share.
REBUILD_SECONDS_MAX, REBUILT_SAMPLES = 120.0, 10_000_000
RUN_MB_MAX, WORKER_MB_MAX = 500, 150
LIVE_TARGETS = {
    "/samples/list?limit=200": 400,
    "/samples/validator/{hotkey}": 600,
    "/samples/miner/{hotkey}": 600,
    "/tasks/{id}/miner/{hotkey}": 1500,
    OLD_MINER: 60,
}
Value = TypeVar("Value")


class Lengths(NamedTuple):
    """How long those parts take that the caller decides about."""

    outage_seconds: int
    hold_minutes: int


def environment(home: Path) -> dict[str, str]:
    """Return the settings of every process that is measured."""
    return {
        **clean_environment(home.parent),
        "LEOMA_HOME": str(home),
        "CHAIN_SOURCE": str(home / "metagraph.json"),
        "NETUID": "99",
        "ADMIN_HOTKEYS": history.hotkey("admin"),
    }


def step(what: str, act: Callable[[], Value]) -> Value:
    """Do one part of the measuring, and say what and how long."""
    click.echo(f"{what} ...", nl=False)
    begun = time.perf_counter()
    value = act()
    click.echo(f" {time.perf_counter() - begun:.0f} s")
    return value


def measure(shape: history.Shape, only: tuple[str, ...], lengths: Lengths) -> Iterator[Figure]:
    """Measure everything, or some parts."""
    root = ROOT.absolute()
    made = history.made_history(root, shape, int(time.time()))
    home = step("Copying the history", lambda: history.working_copy(made, root))
    bench = Parts(environment(home), root, shape, lengths)
    parts = only or PARTS
    if "runs" not in parts and NEED_TABLES & set(parts):
        # The history has no tables yet.
        step("Tables", lambda: servers.materialisations(bench.given, "again", 1))
    for part in (*PARTS, *LONG_PARTS):
        if part in parts:
            yield from getattr(bench, part)()


class Parts:
    """What can be measured alone, each part in the order of `PARTS` on one working copy."""

    def __init__(
        self, given: dict[str, str], root: Path, shape: history.Shape, lengths: Lengths
    ) -> None:
        self.given, self.root, self.shape = given, root, shape
        self.home, self.logs = Path(given["LEOMA_HOME"]), root / "logs"
        self.logs.mkdir(exist_ok=True)
        self.lengths = lengths

    def runs(self) -> list[Figure]:
        def runs_of(mode: str, times: int) -> list[dict[str, Any]]:
            return servers.materialisations(self.given, mode, times)

        made = {
            REBUILD: step("Rebuild from the log alone", lambda: runs_of("all", 1)),
            AGAIN: step("Runs without news", lambda: runs_of("again", RUNS)),
            GROWN: step("Runs after new samples", lambda: runs_of("grow", RUNS)),
            MOVED: step("Runs after stakes moved", lambda: runs_of("moved", RUNS)),
        }
        scan = step("Bare scan", lambda: limits.scan_seconds(self.home))
        return _run_figures(made, scan, self.shape.samples)

    def publishing(self) -> list[Figure]:
        # Before a task far ahead is announced: its runs announce the next ones.
        return step("Publishing to a bucket", lambda: storage.publishing(self.given, self.root))

    def reads(self) -> list[Figure]:
        reads = step(
            "Reads, one worker", lambda: servers.measure_reads(self.logs, self.given, self.root)
        )
        return _read_figures(reads)

    def together(self) -> list[Figure]:
        where = (self.logs, self.given, self.root)
        started = step("Starts", lambda: together.starting(*where))
        task = _open_tasks(self.home)
        fresh = step("From POST to weights", lambda: together.freshness(*where, task))
        beside = step("Reads beside runs", lambda: together.reads_beside_runs(*where))
        return [started, fresh, *beside]

    @cached_property
    def old_miner(self) -> str:
        """The hotkey of a miner with many tasks, which is there and in the tables from now on."""
        first_task = _open_tasks(self.home) + history.LATEST_TASK // 10
        tasks = range(first_task, first_task + OLD_MINER_TASKS)
        miner = step(
            f"A miner with {OLD_MINER_TASKS:,} tasks", lambda: _add_old_miner(self.home, tasks)
        )
        step("Tables", lambda: servers.materialisations(self.given, "again", 1))
        return miner

    def live(self) -> list[Figure]:
        miner = self.old_miner
        live = step(
            "Live reads, one worker",
            lambda: measure_live(self.logs, self.given, self.root, self.shape.tasks, miner),
        )
        return _live_figures(live)

    def writes(self) -> list[Figure]:
        first_task = _open_tasks(self.home)
        writes = step(
            "Writes, two workers",
            lambda: servers.measure_writes(self.logs, self.given, self.root, first_task),
        )
        inserts = step("Bare inserts", lambda: limits.bare_inserts_per_second(self.home))
        verify = step("sr25519", limits.verifications_per_second)
        fsync = step("fsync", lambda: limits.fsyncs_per_second(self.home))
        return _write_figures(writes, inserts, verify, fsync)

    def singles(self) -> list[Figure]:
        first_task = _open_tasks(self.home)
        singles = step(
            "Single samples, two workers",
            lambda: measure_singles(self.logs, self.given, self.root, first_task),
        )
        return _single_figures(singles)

    def hold(self) -> list[Figure]:
        minutes = self.lengths.hold_minutes
        shape = (self.shape.tasks, self.old_miner, _open_tasks(self.home))
        after, peak = step(
            f"Load for {minutes} minutes",
            lambda: hold(self.logs, self.given, self.root, shape, 60 * minutes),
        )
        name = f"after {minutes} minutes of load"
        return [replace(_memory(name, after), note=f"{peak:.0f} MB at most")]

    def syncs(self) -> list[Figure]:
        synced = step("Syncs with a node", lambda: servers.syncs(self.given, SYNCS))
        return _sync_figures(synced)

    def links(self) -> list[Figure]:
        return [step("Presigned URLs", objects.presigning)]

    def outbox(self) -> list[Figure]:
        return [
            step(
                "Outbox to object storage",
                lambda: outbox.draining(self.logs, self.given, self.root),
            )
        ]

    def outage(self) -> list[Figure]:
        first_task = _open_tasks(self.home)
        return step(
            "Outages of object storage",
            lambda: storage.outages(
                self.logs, self.given, self.root, first_task, self.lengths.outage_seconds
            ),
        )


def _add_old_miner(home: Path, tasks: range) -> str:
    log = SqliteLog(WarehouseSettings(leoma_home=home))
    try:
        return history.append_old_miner(log, tasks, int(time.time()))
    finally:
        log.close()


def _open_tasks(home: Path) -> int:
    """Announce a task far ahead, so that new ones are accepted; return the first new task."""
    log = SqliteLog(WarehouseSettings(leoma_home=home))
    try:
        history.announce(log, history.LATEST_TASK, int(time.time()))
        return (log.latest_sampled_task() or 0) + 1
    finally:
        log.close()


def _memory(what: str, rss_mb: float) -> Figure:
    return Figure(f"API memory, {what}", [rss_mb], "MB", is_rate=False, target=WORKER_MB_MAX)


def _read_figures(reads: dict[str, Any]) -> list[Figure]:
    figures = []
    for path, rates in reads["rates"].items():
        bare = Figure("", [load.per_second for load in rates["bare"]], "")
        worst = max(load.p99_ms for load in rates["api"])
        figures.append(
            Figure(
                f"GET {path}",
                [load.per_second for load in rates["api"]],
                "requests/s",
                ratio_target=0.7,
                limit=bare.median,
                limit_name=f"a bare ASGI app with the same bytes ({report.number(bare.median)}/s)",
                note=f"p99 {worst:.1f} ms",
            )
        )
    return [*figures, _memory("tables read, one worker", reads["rss_mb"])]


def _live_figures(live: dict[str, Any]) -> list[Figure]:
    figures = [
        Figure(
            f"GET {route}",
            [load.per_second for load in loads],
            "requests/s",
            target=LIVE_TARGETS.get(route),
            note=f"p99 {max(load.p99_ms for load in loads):.0f} ms",
        )
        for route, loads in live["rates"].items()
    ]
    return [*figures, _memory("log read, one worker", live["rss_mb"])]


def _single_figures(loads: list[servers.Load]) -> list[Figure]:
    p50 = [load.p50_ms for load in loads]
    return [
        Figure(
            "Single samples, durable",
            [load.per_second for load in loads],
            "requests/s",
            target=4000,
            note=f"p99 {max(load.p99_ms for load in loads):.0f} ms",
        ),
        Figure("Single samples, p50", p50, "ms", is_rate=False, target=8),
    ]


def _write_figures(
    writes: dict[str, Any], inserts: float, verify: float, fsync: float
) -> list[Figure]:
    loads = writes["rates"]
    size = writes["samples_a_request"]
    rates = [load.per_second * size for load in loads]
    return [
        Figure(
            "Batches of 100, durable",
            rates,
            "samples/s",
            target=30_000,
            ratio_target=0.6,
            limit=inserts,
            limit_name=f"one bare SQLite connection ({report.number(inserts)} samples/s)",
        ),
        Figure(
            "Batches of 100, p99",
            [load.p99_ms for load in loads],
            "ms",
            is_rate=False,
            target=150,
            note=f"p50 {statistics.median(load.p50_ms for load in loads):.0f} ms",
        ),
        _memory("writes, largest worker", writes["rss_mb"]),
        Figure("sr25519 verifications, one core", [verify], "1/s"),
        Figure("fdatasync of 8 kB appends", [fsync], "1/s"),
        Figure("Bare inserts, one connection", [inserts], "samples/s"),
    ]


def _run_figures(
    made: dict[str, list[dict[str, Any]]], scan_seconds: float, samples: int
) -> list[Figure]:
    def figure(name: str, **given: Any) -> Figure:
        runs = made[name]
        steps = runs[-1]["step_seconds"]
        slowest = max(steps, key=steps.__getitem__)
        seconds = max(run["seconds"] for run in runs)
        note = f"{seconds:.2f} s at most with Dagster's own; {slowest} {steps[slowest]:.2f} s"
        own = [run["own_seconds"] for run in runs]
        return Figure(name, own, "s", is_rate=False, note=note, **given)

    def memory(of: str, name: str) -> Figure:
        peak = max(run["peak_mb"] for run in made[name])
        return Figure(f"Memory of {of}", [peak], "MB", is_rate=False, target=RUN_MB_MAX)

    scan = f"DuckDB's bare scan of the same votes ({scan_seconds:.2f} s)"
    return [
        figure(REBUILD, target=REBUILD_SECONDS_MAX * samples / REBUILT_SAMPLES),
        figure(AGAIN),
        figure(GROWN, target=1),
        figure(MOVED, limit=scan_seconds, limit_name=scan),
        memory("a rebuild", REBUILD),
        memory("runs after new samples", GROWN),
        memory("runs after stakes moved", MOVED),
    ]


def _sync_figures(synced: dict[str, Any]) -> list[Figure]:
    before, after = synced["before"], synced["after"]
    grown_mb = after["rss_mb"] - before["rss_mb"]
    handles, threads = (after[name] - before[name] for name in ("handles", "threads"))
    name, left = "Sync of 256 miners, CPU", "Left by 200 syncs"
    return [
        Figure(f"{name}, first", [synced["first_seconds"]], "s", is_rate=False, target=2),
        Figure(
            f"{name}, later",
            synced["seconds"],
            "s",
            is_rate=False,
            target=2,
        ),
        Figure(f"{left}, memory", [grown_mb], "MB", is_rate=False, target=SYNCS_MB_MAX),
        Figure(f"{left}, handles", [handles], "", is_rate=False, target=0),
        Figure(f"{left}, threads", [threads], "", is_rate=False, target=0),
    ]


@click.command()
@click.option(
    "--samples", default=1_000_000, show_default=True, type=click.IntRange(2000, 100_000_000)
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice((*PARTS, *LONG_PARTS)),
    help="A part alone; repeatable. `hold` is measured only when it is named.",
)
@click.option(
    "--compare",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="results.json of another run: say what moved since.",
)
@click.option(
    "--outage-seconds",
    default=OUTAGE_SECONDS,
    show_default=True,
    type=click.IntRange(2, 120),
    help="How long object storage is down.",
)
@click.option(
    "--hold-minutes",
    default=HOLD_MINUTES,
    show_default=True,
    type=click.IntRange(1, 1_440),
    help="How long `hold` loads two workers before it looks at their memory.",
)
def main(
    *,
    samples: int,
    only: tuple[str, ...],
    compare: Path | None,
    outage_seconds: int,
    hold_minutes: int,
) -> None:
    """Measure the service; the history is kept under build/bench for the next time."""
    if NEED_WRK & set(only or PARTS) and shutil.which("wrk") is None:
        # Before what takes minutes.
        raise click.ClickException("wrk makes the load and is missing: apt-get install wrk")
    surroundings, shape = report.machine(), history.Shape.of(samples)
    figures: list[Figure] = []
    failure: Exception | None = None
    try:
        ROOT.mkdir(parents=True, exist_ok=True)
        # Two at once would measure each other, in the same files.
        with stop_signals(), locked(ROOT / "lock", timeout_seconds=1):
            # What came before a failure stays in the list.
            figures.extend(measure(shape, only, Lengths(outage_seconds, hold_minutes)))
    except (servers.BenchError, ProcessError, LogError, OSError) as error:
        failure = error
    except StopRequested:
        sys.exit(130)
    click.echo(report.text(figures, surroundings, shape.samples))
    if compare is not None:
        earlier = json.loads(compare.read_bytes())["figures"]
        click.echo(report.moved(earlier, [figure.as_json() for figure in figures]))
    results = ROOT / "results.json"
    results.write_text(
        json.dumps(
            {
                "samples": shape.samples,
                "machine": surroundings,
                "figures": [figure.as_json() for figure in figures],
            },
            indent=1,
        )
    )
    pictures = ROOT / "results.html"
    pictures.write_text(page(figures, surroundings, shape.samples))
    click.echo(f"\nAll of it: {results}, with pictures: {pictures}")
    if failure is not None:
        raise click.ClickException(f"{failure}\n{getattr(failure, 'tail', '')}") from failure


if __name__ == "__main__":
    main()
