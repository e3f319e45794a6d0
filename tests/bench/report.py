"""Figures as people read them: ratios first, then absolute values with machine and versions."""

import importlib.metadata
import os
import platform
import sqlite3
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

PACKAGES = (
    "apsw",
    "boto3",
    "dagster",
    "duckdb",
    "fastapi",
    "polars",
    "pydantic",
    "starlette",
    "uvicorn",
)


@dataclass(frozen=True)
class Figure:
    """One measured value: the median of `values`, its unit, and the target that it must meet.

    `limit` is what the machine does without the service, in the same run; `is_rate` says that more
    is better. `ratio_target` is the part of the limit that must be reached.
    """

    name: str
    values: Sequence[float]
    unit: str
    is_rate: bool = True
    target: float | None = None
    limit: float | None = None
    limit_name: str = ""
    note: str = ""
    ratio_target: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.median >= self.target if self.is_rate else self.median <= self.target

    @property
    def ratio(self) -> float | None:
        return self.median / self.limit if self.limit else None

    @property
    def is_ratio_met(self) -> bool | None:
        if self.ratio_target is None or self.ratio is None:
            return None
        return self.ratio >= self.ratio_target

    def ratio_line(self) -> str | None:
        if self.ratio is None:
            return None
        line = f"  {self.name:<34} {self.ratio:6.2f} of {self.limit_name}"
        if self.ratio_target is not None:
            outcome = "met" if self.is_ratio_met else "MISSED"
            line += f"  target >= {self.ratio_target:g}: {outcome}"
        return line

    def line(self) -> str:
        spread = f"{number(min(self.values))} to {number(max(self.values))}"
        parts = f"  {self.name:<34} {number(self.median):>9} {self.unit:<10} [{spread}]"
        if self.target is not None:
            sign = ">=" if self.is_rate else "<="
            outcome = "met" if self.is_met else "MISSED"
            parts += f"  target {sign} {number(self.target)}: {outcome}"
        return f"{parts}  {self.note}".rstrip()

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "values": list(self.values),
            "target": self.target,
            "is_met": self.is_met,
            "is_rate": self.is_rate,
            "limit": self.limit,
            "limit_name": self.limit_name or None,
            "ratio": self.ratio,
            "ratio_target": self.ratio_target,
            "is_ratio_met": self.is_ratio_met,
        }


def number(value: float) -> str:
    """Return three significant digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Say what was measured on, without names of machine or user."""
    cpu = "unknown"
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        # Other work on the machine lowers every figure; the ratios tell.
        "load_average": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "sqlite_of_python": sqlite3.sqlite_version,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def text(figures: Sequence[Figure], surroundings: dict[str, Any], samples: int) -> str:
    """Return the whole report."""
    ratios = [line for figure in figures if (line := figure.ratio_line())]
    judged = [
        outcome
        for figure in figures
        for outcome in (figure.is_met, figure.is_ratio_met)
        if outcome is not None
    ]
    met = sum(judged)
    facts = ", ".join(f"{name} {value}" for name, value in surroundings.items())
    return "\n".join(
        [
            f"\nOn a history of {samples:,} samples",
            "\nRatios to what the machine can do (same run):",
            *ratios,
            "\nMedians [spread]:",
            *(figure.line() for figure in figures),
            f"\n{met} of {len(judged)} targets met.",
            f"Machine: {facts}",
        ]
    )


def moved(earlier: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str:
    """Say which figures moved: whose values do not overlap those of an earlier run.

    A figure with a limit is compared as a ratio to it, since another day's machine is another one.
    """
    before = {figure["name"]: figure for figure in earlier}
    lines = []
    for figure in now:
        was = before.get(figure["name"])
        if was is None:
            continue
        (old_low, old_high), (low, high) = _span(was), _span(figure)
        if low <= old_high and old_low <= high:
            continue
        is_better = (low > old_high) == figure.get("is_rate", True)
        unit = "of its limit" if figure["limit"] and was["limit"] else figure["unit"]
        lines.append(
            f"  {figure['name']:<34} {'better' if is_better else 'WORSE'}: "
            f"{number(old_low)} to {number(old_high)}, now {number(low)} to {number(high)} {unit}"
        )
    title = "\nMoved since the other run (values that do not overlap):"
    return "\n".join([title, *(lines or ["  nothing"])])


def _span(figure: dict[str, Any]) -> tuple[float, float]:
    divisor = figure["limit"] or 1
    values = [value / divisor for value in figure["values"]]
    return min(values), max(values)
