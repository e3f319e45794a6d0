"""What can be seen of a running service from outside: memory, handles and threads; files."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

MB = 2**20
# What lasting children of a root are known by. Dagster's runs are children that end.
KINDS = {
    "supervisor": (("spawn_main", "worker"), (" courier", "courier")),
    "code proxy": ((" grpc ", "code server"),),
}


@dataclass(frozen=True)
class Seen:
    """One process at one moment. `pss_mb`: shared pages counted in parts."""

    pid: int
    rss_mb: float
    pss_mb: float
    handles: int
    threads: int


def processes_of(roots: Mapping[str, int]) -> dict[str, psutil.Process]:
    """Return the lasting processes by name: the roots, and workers and others below them."""
    found = {}
    for name, pid in roots.items():
        root = psutil.Process(pid)
        found[name] = root
        counts: dict[str, int] = {}
        for child in sorted(root.children(recursive=True), key=lambda one: one.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                kind = next((kind for mark, kind in KINDS.get(name, ()) if mark in command), None)
                if kind is None:
                    continue
                counts[kind] = counts.get(kind, 0) + 1
                found[f"{kind} {counts[kind]}" if kind == "worker" else kind] = child
    return found


def workers_ready(pid: int) -> int:
    """Return how many workers of a supervisor have opened a generation, and so the log before."""
    count = 0
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            count += any(one.path.endswith(".duckdb") for one in child.open_files())
    return count


def seen(process: psutil.Process) -> Seen:
    memory = process.memory_full_info()
    return Seen(
        process.pid,
        round(memory.rss / MB, 2),
        round(memory.pss / MB, 2),
        process.num_fds(),
        process.num_threads(),
    )


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files below a directory."""
    total = 0
    if path.is_file():
        total = path.stat().st_size
    for directory, _, names in os.walk(path):
        for name in names:
            # By the time it is looked at it may have got its final name, or be gone.
            with contextlib.suppress(FileNotFoundError):
                total += (Path(directory) / name).lstat().st_size
    return round(total / MB, 1)


def sample(roots: Mapping[str, int], home: Path) -> dict[str, Any]:
    """Return everything of this moment, ready for JSON."""
    found = {}
    for name, process in processes_of(roots).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[name] = asdict(seen(process))
    log = home / "log"
    return {
        "processes": found,
        "wal_mb": megabytes(log / "log.sqlite-wal"),
        "log_mb": megabytes(log / "log.sqlite"),
        "home_mb": megabytes(home),
    }
