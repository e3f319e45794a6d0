"""Generations: immutable DuckDB files, and the pointer that says which one is current.

Interface only at this commit; the bodies follow.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from warehouse.settings import WarehouseSettings


@dataclass(frozen=True)
class Generation:
    """One published set of tables. `snapshot_id` begins with its UTC time and sorts by it."""

    snapshot_id: str
    path: Path


class Generations:
    """The generations of one warehouse directory."""

    def __init__(self, settings: WarehouseSettings) -> None:
        self.settings = settings

    def current(self) -> Generation | None:
        """Return what the pointer names, None before the first publication."""
        raise NotImplementedError

    def kept(self) -> list[Generation]:
        """Return the generations that are still there, newest first."""
        raise NotImplementedError

    def find(self, snapshot_id: str) -> Generation | None:
        """Return a kept generation by its name."""
        raise NotImplementedError

    def at(self, instant_ms: int) -> Generation | None:
        """Return the newest kept generation that was computed at or before an instant."""
        raise NotImplementedError


def open_generation(generation: Generation) -> duckdb.DuckDBPyConnection:
    """Open a generation read-only."""
    raise NotImplementedError
