"""`make bench`: measure the service on a large history, each figure beside the machine's limit.

Exits non-zero when something failed, not when something was slow: a missed target is marked.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cli.processes import ProcessError, StopRequested, stop_signals
from tests.bench import history, limits, objects, outbox, report, servers, storage
from tests.bench.environment import clean_environment
from tests.bench.live import measure_live, measure_singles
from tests.bench.report import Figure
from tests.bench.runs import NEW_SAMPLES
from warehouse.files import locked
from warehouse.log import LogError
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

ROOT = Path("build/bench")
FULL_RUNS, INCREMENTAL_RUNS = 5, 5
SYNCS = 221  # 200 after the first ones, which fill caches
SYNCS_MB_MAX = 16  # what the allocator may keep; a leak of one answer a sync is more
WRITE_TASKS = 10  # a round of writes: 20,000 samples
OUTAGE_SECONDS = 60
STORAGE_PARTS = ("publishing", "links", "outbox", "outage")
PARTS = ("reads", "live", "writes", "singles", "syncs", *STORAGE_PARTS)
LIVE_TARGETS = {
    "/samples/list?limit=200": 400,
    "/samples/validator/{hotkey}": 600,
    "/samples/miner/{hotkey}": 600,
    "/tasks/{id}/miner/{hotkey}": 1500,
}
LATEST_TASK = 10**9
Value = TypeVar("Value")


def environment(home: Path) -> dict[str, str]:
    """Return the settings of every process that is measured."""
    return {
        **clean_environment(home.parent),
        "LEOMA_HOME": str(home),
        "CHAIN_SOURCE": str(home / "metagraph.json"),
        "NETUID": "99",
        "ADMIN_HOTKEYS": history.hotkey("admin"),
        # The rebuild moves all texts at once; by default they follow run by run.
        "ARCHIVE_TEXTS_PER_RUN_MAX": str(10**9),
    }


def step(what: str, act: Callable[[], Value]) -> Value:
    """Do one part of the measuring, and say what and how long."""
    click.echo(f"{what} ...", nl=False)
    begun = time.perf_counter()
    value = act()
    click.echo(f" {time.perf_counter() - begun:.0f} s")
    return value


def measure(samples: int, only: tuple[str, ...], outage_seconds: int) -> tuple[list[Figure], int]:
    """Measure everything, or some parts; return the figures and how large the history is."""
    root = ROOT.absolute()
    shape = history.Shape.of(samples)
    made = history.made_history(root, shape, int(time.time()))
    home = step("Copying the history", lambda: history.working_copy(made, root))
    given = environment(home)
    logs = root / "logs"
    logs.mkdir(exist_ok=True)
    if only:
        figures = _parts(only, logs, given, root, shape.tasks)
        figures += _storage_figures(logs, given, root, only, outage_seconds)
        return figures, shape.samples

    rebuild = step(
        "Rebuild from the log alone", lambda: servers.materialisations(given, "again", 1)
    )
    full = step("Full runs", lambda: servers.materialisations(given, "again", FULL_RUNS))
    grown = step(
        "Incremental runs", lambda: servers.materialisations(given, "grow", INCREMENTAL_RUNS)
    )
    # Before a task far ahead is announced: its runs announce the next ones.
    published = _storage_figures(logs, given, root, ("publishing",), outage_seconds)
    reads = step("Reads, one worker", lambda: servers.measure_reads(logs, given, root))
    live = step("Live reads, one worker", lambda: measure_live(logs, given, root, shape.tasks))
    first_task = _open_tasks(home)
    writes = step(
        "Writes, two workers",
        lambda: servers.measure_writes(logs, given, root, first_task, WRITE_TASKS),
    )
    next_task = first_task + WRITE_TASKS * servers.ROUNDS
    singles = step(
        "Single samples, two workers", lambda: measure_singles(logs, given, root, next_task)
    )
    synced = step("Syncs with a node", lambda: servers.syncs(given, SYNCS))
    stored = _storage_figures(logs, given, root, ("links", "outbox", "outage"), outage_seconds)
    verify = step("sr25519", limits.verifications_per_second)
    fsync = step("fsync", lambda: limits.fsyncs_per_second(home))
    inserts = step("Bare inserts", lambda: limits.bare_inserts_per_second(home))
    figures = [
        *_read_figures(reads),
        *_live_figures(live),
        *_write_figures(writes, inserts, verify, fsync),
        *_single_figures(singles),
        *_run_figures(rebuild, full, grown),
        *_sync_figures(synced),
        *published,
        *stored,
        Figure("API memory, reads, one worker", [reads["rss_mb"]], "MB", is_rate=False, target=250),
        Figure(
            "API memory, writes, per worker", [writes["rss_mb"]], "MB", is_rate=False, target=250
        ),
    ]
    return figures, shape.samples


def _parts(
    only: tuple[str, ...], logs: Path, given: dict[str, str], root: Path, tasks: int
) -> list[Figure]:
    """Measure what needs nothing of the other parts."""
    figures: list[Figure] = []
    if {"reads", "live", "writes", "singles"} & set(only):
        # The history has no tables yet.
        step("Tables", lambda: servers.materialisations(given, "again", 1))
    if "reads" in only:
        reads = step("Reads, one worker", lambda: servers.measure_reads(logs, given, root))
        figures += _read_figures(reads)
    if "live" in only:
        live = step("Live reads, one worker", lambda: measure_live(logs, given, root, tasks))
        figures += _live_figures(live)
    if "writes" in only:
        home = Path(given["LEOMA_HOME"])
        first_task = _open_tasks(home)
        writes = step(
            "Writes, two workers",
            lambda: servers.measure_writes(logs, given, root, first_task, WRITE_TASKS),
        )
        inserts = step("Bare inserts", lambda: limits.bare_inserts_per_second(home))
        verify = step("sr25519", limits.verifications_per_second)
        fsync = step("fsync", lambda: limits.fsyncs_per_second(home))
        figures += _write_figures(writes, inserts, verify, fsync)
    if "singles" in only:
        first_task = _open_tasks(Path(given["LEOMA_HOME"]))
        singles = step(
            "Single samples, two workers", lambda: measure_singles(logs, given, root, first_task)
        )
        figures += _single_figures(singles)
    if "syncs" in only:
        figures += _sync_figures(step("Syncs with a node", lambda: servers.syncs(given, SYNCS)))
    return figures


def _storage_figures(
    logs: Path, given: dict[str, str], root: Path, parts: tuple[str, ...], outage_seconds: int
) -> list[Figure]:
    figures: list[Figure] = []
    if "publishing" in parts:
        figures += step("Publishing to a bucket", lambda: storage.publishing(given, root))
    if "links" in parts:
        figures.append(step("Presigned URLs", objects.presigning))
    if "outbox" in parts:
        figures.append(step("Outbox to object storage", lambda: outbox.draining(logs, given, root)))
    if "outage" in parts:
        first_task = _open_tasks(Path(given["LEOMA_HOME"]))
        figures += step(
            "Outages of object storage",
            lambda: storage.outages(logs, given, root, first_task, outage_seconds),
        )
    return figures


def _open_tasks(home: Path) -> int:
    """Announce a task far ahead, so that new ones are accepted; return the first new task."""
    log = SqliteLog(WarehouseSettings(leoma_home=home))
    try:
        history.announce(log, LATEST_TASK, int(time.time()))
        return (log.latest_sampled_task() or 0) + 1
    finally:
        log.close()


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
    return figures


def _live_figures(live: dict[str, Any]) -> list[Figure]:
    return [
        Figure(
            f"GET {route}",
            [load.per_second for load in loads],
            "requests/s",
            target=LIVE_TARGETS.get(route),
            note=f"p99 {max(load.p99_ms for load in loads):.0f} ms",
        )
        for route, loads in live["rates"].items()
    ]


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
        Figure("sr25519 verifications, one core", [verify], "1/s"),
        Figure("fdatasync of 8 kB appends", [fsync], "1/s"),
        Figure("Bare inserts, one connection", [inserts], "samples/s"),
    ]


def _run_figures(
    rebuild: list[dict[str, Any]], full: list[dict[str, Any]], grown: list[dict[str, Any]]
) -> list[Figure]:
    def own(runs: list[dict[str, Any]]) -> list[float]:
        return [run["own_seconds"] for run in runs]

    def wall(runs: list[dict[str, Any]]) -> str:
        steps = runs[-1]["step_seconds"]
        slowest = max(steps, key=steps.__getitem__)
        seconds = max(run["seconds"] for run in runs)
        return f"{seconds:.2f} s at most with Dagster's own; {slowest} {steps[slowest]:.2f} s"

    return [
        Figure("Rebuild from the log alone", own(rebuild), "s", is_rate=False, note=wall(rebuild)),
        Figure("Full run", own(full), "s", is_rate=False, target=3, note=wall(full)),
        Figure(
            f"Run after {NEW_SAMPLES:,} new samples",
            own(grown),
            "s",
            is_rate=False,
            target=1,
            note=wall(grown),
        ),
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
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="A part alone; repeatable.")
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
def main(*, samples: int, only: tuple[str, ...], compare: Path | None, outage_seconds: int) -> None:
    """Measure the service; the history is kept under build/bench for the next time."""
    surroundings = report.machine()
    try:
        ROOT.mkdir(parents=True, exist_ok=True)
        # Two at once would measure each other, in the same files.
        with stop_signals(), locked(ROOT / "lock", timeout_seconds=1):
            figures, made = measure(samples, only, outage_seconds)
    except (servers.BenchError, ProcessError, LogError, OSError) as error:
        tail = getattr(error, "tail", "")
        raise click.ClickException(f"{error}\n{tail}") from error
    except StopRequested:
        sys.exit(130)
    click.echo(report.text(figures, surroundings, made))
    if compare is not None:
        earlier = json.loads(compare.read_bytes())["figures"]
        click.echo(report.moved(earlier, [figure.as_json() for figure in figures]))
    results = ROOT / "results.json"
    results.write_text(
        json.dumps(
            {
                "samples": made,
                "machine": surroundings,
                "figures": [figure.as_json() for figure in figures],
            },
            indent=1,
        )
    )
    click.echo(f"\nAll of it: {results}")


if __name__ == "__main__":
    main()
