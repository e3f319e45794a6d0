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
    is better.
    """

    name: str
    values: Sequence[float]
    unit: str
    is_rate: bool = True
    target: float | None = None
    limit: float | None = None
    limit_name: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.median >= self.target if self.is_rate else self.median <= self.target

    def ratio_line(self) -> str | None:
        if not self.limit:
            return None
        return f"  {self.name:<34} {self.median / self.limit:6.2f} of {self.limit_name}"

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
            "limit": self.limit,
            "limit_name": self.limit_name or None,
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
    judged = [figure for figure in figures if figure.is_met is not None]
    met = sum(bool(figure.is_met) for figure in judged)
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
