"""What a soak showed: the ledger against the log, figures, criteria, and the picture."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.soak_load import ledger_fields
from warehouse.sqlite_keeper import SqliteKeeper

POST_P99_MS_MAX = 100.0
# Caches fill and the allocator finds its size: the first fifth says nothing about growth.
WARM_UP_SHARE = 0.2
MB_PER_HOUR_MAX = 30.0
# Of the fewest: connections come and go with a burst.
HANDLES_MORE_MAX = 4
# A shorter run shows the noise of allocator and thread pool, not a slope.
JUDGED_MINUTES_MIN = 10.0
RUNS_SHARE_MIN = 0.8
MINUTE = 60.0


class Answer(NamedTuple):
    """One request as it was played: when due (seconds after the beginning), what came of it."""

    due: float
    latency_ms: float
    status: int
    route: str

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300


class Compared(NamedTuple):
    """The acknowledged samples beside the log's: counts, and the first few of what is wrong."""

    acknowledged: int
    stored: int
    lost: list[str]
    doubled: list[str]
    unacknowledged: int


@dataclass(frozen=True)
class Criterion:
    """One thing that must hold; `is_met` is None where the run is too short to tell."""

    name: str
    value: str
    limit: str
    is_met: bool | None

    def line(self) -> str:
        outcome = {True: "met", False: "FAILED", None: "not judged"}[self.is_met]
        return f"  {self.name:<50} {self.value:<34} {self.limit:<24} {outcome}"


def compared(log: SqliteKeeper, ledger: Path, after: int) -> Compared:
    """Hold what was acknowledged against what the log has after a seq, sample by sample.

    The load sends each (validator, miner, task) once.
    """
    promised: dict[int, str] = {}
    doubled = []
    for line in ledger.read_text().splitlines():
        seq = int(line.partition("\t")[0])
        if seq in promised:
            doubled.append(f"acknowledged twice: {line}")
        promised[seq] = line
    acknowledged, stored, unacknowledged, seen = len(promised), 0, 0, set()
    lost = []
    for row in (row for chunk in log.votes_between(after, log.head()) for row in chunk.rows()):
        stored += 1
        said = (row.validator_hotkey, row.miner_hotkey, row.task_id)
        if said in seen:
            doubled.append(f"stored twice: {row}")
        seen.add(said)
        held = "\t".join(
            ledger_fields(row.seq, *said, row.passed, row.confidence, row.latency_ms)
        )  # fmt: skip
        line = promised.pop(row.seq, "")
        if not line:
            unacknowledged += 1
        elif line != held:
            lost.append(f"acknowledged {line!r}, stored {held!r}")
    lost += [f"acknowledged, not stored: {line}" for line in promised.values()]
    return Compared(acknowledged, stored, lost, doubled, unacknowledged)


def read_answers(lines: Iterable[str]) -> list[Answer]:
    return [
        Answer(float(due), float(latency), int(status), route)
        for due, latency, status, route in (line.rstrip("\n").split(" ", 3) for line in lines)
    ]


def is_submission(answer: Answer) -> bool:
    return answer.route.startswith("POST /samples")


def percentile(latencies: Sequence[float], per_cent: float) -> float:
    ordered = sorted(latencies)
    return ordered[int(len(ordered) * per_cent / 100)]


def latencies(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of some answers: failures count with the time until they failed."""
    found = [one.latency_ms for one in answers]
    return {
        "count": len(found),
        "p50_ms": round(statistics.median(found), 2),
        "p99_ms": round(percentile(found, 99), 2),
        "max_ms": round(max(found), 2),
        "failures": sum(not one.is_ok for one in answers),
    }


def in_slices(answers: Iterable[Answer], seconds: float) -> list[dict[str, Any]]:
    """Return the figures of each slice of time, by when requests were due."""

    def number(answer: Answer) -> int:
        return int(answer.due / seconds)

    ordered = sorted(answers, key=lambda one: one.due)
    return [
        {"at": index * seconds, **latencies(list(group))}
        for index, group in groupby(ordered, number)
    ]


def by_route(answers: Iterable[Answer]) -> dict[str, Any]:
    routes = defaultdict(list)
    for one in answers:
        routes[one.route].append(one)
    return {route: latencies(routes[route]) for route in sorted(routes)}


def settled(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return what comes after the warm-up."""
    end = series[-1][0]
    return [point for point in series if point[0] >= WARM_UP_SHARE * end]


def per_hour(series: Sequence[tuple[float, float]]) -> float:
    """Return the slope of (seconds, value): the median over all pairs, which no peak can bend."""
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in combinations(series, 2)
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) * 3600 if slopes else 0.0


def thirds(series: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the values of the middle and of the last third."""
    end = series[-1][0]
    last = [value for at, value in series if at >= 2 * end / 3]
    return [value for at, value in series if end / 3 <= at < 2 * end / 3] or last, last


def series_of(samples: Sequence[dict[str, Any]], name: str, what: str) -> list[tuple[float, float]]:
    return [
        (one["at"], one["processes"][name][what]) for one in samples if name in one["processes"]
    ]


def process_names(samples: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({name for one in samples for name in one["processes"]})


def growth(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return of each lasting process how it grew."""
    found = {}
    for name in process_names(samples):
        parts: dict[str, Any] = {
            "pids": sorted({one["processes"][name]["pid"] for one in samples
                            if name in one["processes"]})
        }  # fmt: skip
        for what in ("rss_mb", "pss_mb", "handles", "threads"):
            series = series_of(samples, name, what)
            middle, last = thirds(series)
            parts[what] = {
                "middle_third": round(statistics.median(middle), 1),
                "last_third": round(statistics.median(last), 1),
                "fewest": [min(middle), min(last)],
                "max": max(value for _, value in series),
                "per_hour": round(per_hour(settled(series)), 2),
            }
        found[name] = parts
    return found


def criteria(result: dict[str, Any]) -> list[Criterion]:
    """Judge a soak."""
    posts, reads, ledger = result["posts"], result["reads"], result["ledger"]
    minutes = result["seconds"] / MINUTE
    # A minute that has only begun has too few requests for a percentile.
    worst = max(one["p99_ms"] for one in result["post_minutes"][: max(1, int(minutes))])
    below = f"< {POST_P99_MS_MAX:g} ms"
    found = [
        Criterion("POST p99, whole run", f"{posts['p99_ms']:.1f} ms", below,
                  posts["p99_ms"] < POST_P99_MS_MAX),
        Criterion("POST p99, worst minute", f"{worst:.1f} ms", below, worst < POST_P99_MS_MAX),
        _none("answers other than 2xx", posts["failures"] + reads["failures"],
              posts["count"] + reads["count"]),
        _none("acknowledged samples lost or changed", ledger["lost"], ledger["acknowledged"]),
        _none("samples doubled", ledger["doubled"], ledger["stored"]),
        # A POST that failed may be stored or not.
        Criterion("samples stored, never acknowledged", str(ledger["unacknowledged"]), "none",
                  not ledger["unacknowledged"] or bool(posts["failures"])),
        _none("problems that fsck finds", result["fsck"]["problems"], result["fsck"]["records"]),
        _runs(result),
    ]  # fmt: skip
    for name, parts in result["growth"].items():
        found += _steady(name, parts, minutes)
    return found


def _none(name: str, count: int, of: int) -> Criterion:
    return Criterion(name, f"{count:,} of {of:,}", "none", not count)


def _runs(result: dict[str, Any]) -> Criterion:
    runs = result["runs"]
    failed = sum(not one["is_ok"] for one in runs)
    # Dagster's sensor looks that often at most, and a run that begins near the end counts not.
    wanted = int(RUNS_SHARE_MIN * result["seconds"] / result["run_seconds"])
    seconds = [one["seconds"] for one in runs]
    longest = f", {max(seconds):.1f} s at most" if seconds else ""
    return Criterion(
        "materialisations",
        f"{len(runs) - failed} done, {failed} failed{longest}",
        f"{wanted} or more, none failed",
        not failed and len(runs) >= wanted,
    )


def _steady(name: str, parts: dict[str, Any], minutes: float) -> list[Criterion]:
    is_long = minutes >= JUDGED_MINUTES_MIN
    found = [
        Criterion(f"{name}: one process", f"{len(parts['pids'])}", "1", len(parts["pids"]) == 1)
    ]
    rss = parts["rss_mb"]
    value = f"{rss['last_third']:.0f} MB, {rss['per_hour']:+.1f} MB/h"
    found.append(
        Criterion(
            f"{name}: memory flat after the first fifth",
            value,
            f"< {MB_PER_HOUR_MAX:+g} MB/h",
            rss["per_hour"] < MB_PER_HOUR_MAX if is_long else None,
        )
    )
    for what in ("handles", "threads"):
        before, after = parts[what]["fewest"]
        found.append(
            Criterion(
                f"{name}: fewest {what}, middle and last third",
                f"{before}, {after} ({parts[what]['max']} at most)",
                f"at most {HANDLES_MORE_MAX} more",
                after - before <= HANDLES_MORE_MAX if is_long else None,
            )
        )
    return found


def as_json(found: Sequence[Criterion]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the curves. The same result gives the same bytes, with nothing of this machine in it."""
    # What only draws needs none of it.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": "leoma", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(9, 9.5), layout="constrained")
        latency, memory, handles, files = figure.subplots(
            4, 1, sharex=True, height_ratios=[3, 3, 2, 2]
        )
        for name, kind, per_cent, colour in (
            ("POST p99", "post_slices", "p99_ms", "C3"),
            ("POST p50", "post_slices", "p50_ms", "C1"),
            ("reads p99", "read_slices", "p99_ms", "C0"),
            ("reads p50", "read_slices", "p50_ms", "C9"),
        ):
            slices = result[kind]
            latency.plot(
                [one["at"] / MINUTE for one in slices],
                [one[per_cent] for one in slices],
                colour,
                lw=1,
                label=name,
            )
        latency.axhline(POST_P99_MS_MAX, color="grey", ls="--", lw=0.8)
        latency.set(yscale="log", ylabel="latency, ms (from when due)")
        for number, name in enumerate(process_names(result["samples"])):
            for axes, what in ((memory, "rss_mb"), (handles, "handles")):
                points = series_of(result["samples"], name, what)
                axes.plot(
                    [at / MINUTE for at, _ in points],
                    [value for _, value in points],
                    f"C{number}",
                    lw=1,
                    label=name,
                )
        memory.set(ylabel="resident memory, MB", ylim=(0, None))
        handles.set(ylabel="open handles", ylim=(0, None))
        for name, what in (("WAL", "wal_mb"), ("log", "log_mb"), ("whole home", "home_mb")):
            points = [(one["at"], one[what]) for one in result["samples"]]
            files.plot(
                [at / MINUTE for at, _ in points], [value for _, value in points], lw=1, label=name
            )
        files.set(ylabel="files, MB", xlabel="minutes", yscale="log")
        for axes in (latency, memory, handles, files):
            for run in result["runs"]:
                axes.axvspan(
                    run["at"] / MINUTE,
                    (run["at"] + run["seconds"]) / MINUTE,
                    color="grey",
                    alpha=0.15,
                    lw=0,
                )
            axes.grid(visible=True, alpha=0.3)
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        latency.set_title(title(result))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def title(result: dict[str, Any]) -> str:
    posts = result["posts"]
    return (
        f"{result['seconds'] / MINUTE:g} minutes at {result['samples_per_second']:g} samples/s and "
        f"{result['reads_per_second']:g} reads/s: POST p99 {posts['p99_ms']:.1f} ms; "
        "grey: materialisations"
    )


def text(result: dict[str, Any], found: Sequence[Criterion]) -> str:
    """Return the whole report."""

    def figures(name: str, one: dict[str, Any]) -> str:
        return (
            f"  {name:<34} {one['count']:>9,}  p50 {one['p50_ms']:7.1f}  p99 {one['p99_ms']:7.1f}"
            f"  max {one['max_ms']:8.1f} ms  {one['failures']} failed"
        )

    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    outcome: Callable[[bool], str] = lambda is_met: "PASSED" if is_met else "FAILED"  # noqa: E731
    return "\n".join(
        [
            "\nLatencies, from when a request was due:",
            figures("all POSTs of samples", result["posts"]),
            figures("all reads", result["reads"]),
            *(figures(route, one) for route, one in result["routes"].items()),
            "\nCriteria:",
            *(one.line() for one in found),
            f"\n{outcome(is_passed(found))}\nMachine: {facts}",
        ]
    )


def is_passed(found: Sequence[Criterion]) -> bool:
    return all(one.is_met is not False for one in found)
