"""Generations: immutable DuckDB files with all tables of one run, and the pointer to the newest.

A reader sees all tables of one run or all of another, and an analyst who keeps an old one open is
never disturbed. How one is built and becomes the current one is `warehouse.publication`'s.

Why names are never reused: DuckDB caches an open database by its path, so a file that is renamed
over an open one silently serves old data.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from warehouse.archive_views import ArchiveFiles
from warehouse.clock import is_ahead
from warehouse.files import (
    locked,
    make_directory,
    remove_leftovers,
    temporary_beside,
    write_durably,
)
from warehouse.settings import WarehouseSettings

SUFFIX = ".duckdb"
NAME = re.compile(r"\d{8}T\d{9}Z-[0-9a-f]{8}")
READER_MEMORY = "128MB"
HOUR_MS = 3_600_000


class GenerationError(Exception):
    """A generation cannot be published or read; the message says which and why."""


class StaleRunError(GenerationError):
    """A newer generation was published while this run computed; it publishes nothing."""


@dataclass(frozen=True)
class Generation:
    """One published set of tables. `snapshot_id` begins with its UTC time and sorts by it."""

    snapshot_id: str
    path: Path

    @property
    def computed_at_ms(self) -> int:
        """The instant in its name, in UTC milliseconds."""
        return computed_at_ms(self.snapshot_id)


class Generations:
    """The generations of one warehouse directory. Reads and writes files only when asked to."""

    def __init__(self, settings: WarehouseSettings) -> None:
        self.settings = settings
        self.directory = settings.warehouse_path / "generations"
        self.pointer = settings.warehouse_path / "current.json"
        self.stable_name = settings.warehouse_path / f"current{SUFFIX}"

    def current(self) -> Generation | None:
        """Return what the pointer names, None before the first publication.

        Raises `GenerationError` when the pointer is there but cannot be read.
        """
        pointed = self._pointed()
        return self.named(pointed["snapshot_id"]) if pointed else None

    def _pointed(self) -> dict[str, Any] | None:
        try:
            content = self.pointer.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise GenerationError(f"the pointer {self.pointer} cannot be read: {error}") from error
        try:
            pointed: dict[str, Any] = json.loads(content)
            is_whole = bool(NAME.fullmatch(pointed["snapshot_id"])) and pointed["watermark"] >= 0
        except (ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise GenerationError(f"the pointer {self.pointer} names no generation")
        return pointed

    def made_from(self) -> tuple[int, int] | None:
        """Return watermark and metagraph_synced_at_ms of the current one, None before the first."""
        pointed = self._pointed()
        if pointed is None:
            return None
        return pointed["watermark"], pointed.get("metagraph_synced_at_ms", 0)

    def kept(self) -> list[Generation]:
        """Return the generations that were published and are still there, newest first."""
        current = self.current()
        if current is None:
            return []
        # One that is newer than the pointer was built by a run that died: nobody was told of it.
        return [one for one in self.built() if one.snapshot_id <= current.snapshot_id]

    def find(self, snapshot_id: str) -> Generation | None:
        """Return a kept generation by its name."""
        return next((one for one in self.kept() if one.snapshot_id == snapshot_id), None)

    def at(self, instant_ms: int) -> Generation | None:
        """Return the newest kept generation that was computed at or before an instant."""
        return next(
            (generation for generation in self.kept() if generation.computed_at_ms <= instant_ms),
            None,
        )

    def adopt(
        self, snapshot_id: str, made_from: Mapping[str, int], bring: Callable[[Generation], None]
    ) -> bool:
        """Make a generation from elsewhere the current one; tell whether that was done.

        It is not done where the current one is as new or newer: what is served never goes back.
        `made_from` has watermark and metagraph_synced_at_ms; `bring` puts the file, and beside it
        the list of archive files, where they belong.
        """
        make_directory(self.directory)
        lock = self.settings.warehouse_path / "publish.lock"
        # Held meanwhile: a run would take a file that no pointer names for a dead run's.
        with locked(lock, self.settings.publish_lock_seconds_max):
            pointed = self._pointed()
            if pointed and pointed["snapshot_id"] >= snapshot_id:
                return False
            try:
                self.refuse_stale(made_from)
            except StaleRunError:
                return False
            generation = self.named(snapshot_id)
            bring(generation)
            self.point_to(generation, made_from)
        return True

    def archive_files(self, generation: Generation) -> set[Path]:
        """Return the archive's files that a generation's views read."""
        try:
            files = archived_files(generation)
        except FileNotFoundError:
            return set()
        return {*files.votes, *files.texts}

    def name_archive_files(self, generation: Generation, archive: ArchiveFiles) -> None:
        """Note which archive files belong to a generation, and are kept as long as it is."""
        names = json.dumps(self._archive_names(archive)).encode()
        write_durably(generation.path.with_suffix(".json"), names)

    def _archive_names(self, archive: ArchiveFiles) -> dict[str, list[str]]:
        """Return the files' names below the archive, so that they hold on any machine."""
        directory = self.settings.warehouse_path / "archive"
        return {
            name: [
                str(path.relative_to(directory) if path.is_relative_to(directory) else path)
                for path in paths
            ]
            for name, paths in (("votes", archive.votes), ("texts", archive.texts))
        }

    def retain(self) -> tuple[int, set[Path]]:
        """Remove generations past their time; return how many, and the archive files still named.

        Kept: the current one, the newest `generations_kept`, and the last of every hour for
        `generations_hourly_days`.
        """
        kept = self.kept()
        keep = to_keep([generation.snapshot_id for generation in kept], self.settings)
        named: set[Path] = set()
        for generation in kept:
            if generation.snapshot_id in keep:
                named |= self.archive_files(generation)
            else:
                self.remove(generation)
        remove_leftovers(self.directory)
        return sum(generation.snapshot_id not in keep for generation in kept), named

    def built(self) -> list[Generation]:
        """Return all whole files, newest first."""
        names = (path.name.removesuffix(SUFFIX) for path in self.directory.glob(f"*{SUFFIX}"))
        return [self.named(name) for name in sorted(names, reverse=True) if NAME.fullmatch(name)]

    def named(self, snapshot_id: str) -> Generation:
        """Return the generation of a name, there or not."""
        return Generation(snapshot_id, self.directory / f"{snapshot_id}{SUFFIX}")

    def refuse_stale(self, made_from: Mapping[str, int]) -> int:
        """Return when the current generation was computed, 0 without one."""
        pointed = self._pointed()
        if pointed is None:
            return 0
        for name, value in made_from.items():
            # Generations made before metagraphs were compared do not name theirs.
            was = pointed.get(name, 0)
            if was > value and not (name == "metagraph_synced_at_ms" and is_ahead(was)):
                raise StaleRunError(
                    f"generation {pointed['snapshot_id']} was made from {name} {was}, "
                    f"this run from {value}: it is older, and publishes nothing"
                )
        return self.named(pointed["snapshot_id"]).computed_at_ms

    def point_to(self, generation: Generation, made_from: Mapping[str, int]) -> None:
        """Make a generation the current one. The caller holds the lock of publications."""
        pointed = {"snapshot_id": generation.snapshot_id, **made_from}
        # From this rename on the new generation is the current one, whatever crashes.
        write_durably(self.pointer, json.dumps(pointed).encode())
        temporary = temporary_beside(self.stable_name)
        temporary.symlink_to(os.path.relpath(generation.path, self.stable_name.parent))
        temporary.replace(self.stable_name)

    @staticmethod
    def remove(generation: Generation) -> None:
        """Remove a generation and the list of its archive files."""
        generation.path.unlink(missing_ok=True)
        generation.path.with_suffix(".json").unlink(missing_ok=True)


def computed_at_ms(snapshot_id: str) -> int:
    """Return the instant in a generation's name, in UTC milliseconds."""
    stamp = snapshot_id.split("-", maxsplit=1)[0]
    seconds = datetime.strptime(stamp[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    return int(seconds) * 1000 + int(stamp[15:18])


def to_keep(snapshot_ids: Sequence[str], settings: WarehouseSettings) -> set[str]:
    """Return which of these generations are kept; the ids come newest first, the current one first.

    The newest `generations_kept`, and the last of every hour for `generations_hourly_days`.
    """
    horizon_ms = time.time_ns() // 1_000_000 - settings.generations_hourly_days * 86_400_000
    keep = set(snapshot_ids[: settings.generations_kept])
    hours: set[int] = set()
    for snapshot_id in snapshot_ids:
        instant_ms = computed_at_ms(snapshot_id)
        hour = instant_ms // HOUR_MS
        if instant_ms >= horizon_ms and hour not in hours:
            hours.add(hour)
            keep.add(snapshot_id)
    return keep


def archived_files(generation: Generation) -> ArchiveFiles:
    """Return the archive's files of a generation, where they are on this machine.

    The views in its file name them as they were where it was made. Raises `FileNotFoundError`.
    """
    names = json.loads(generation.path.with_suffix(".json").read_bytes())
    if isinstance(names, list):  # as version 0.1.0 wrote it
        names = {
            "votes": [name for name in names if "/archive/votes/" in name],
            "texts": [name for name in names if "/archive/texts/" in name],
        }
    directory = generation.path.parent.parent / "archive"
    # An absolute name stays what it is.
    return ArchiveFiles(
        *(tuple(directory / name for name in names[part]) for part in ("votes", "texts"))
    )


def open_generation(generation: Generation) -> duckdb.DuckDBPyConnection:
    """Open a generation read-only, with one thread and little memory. The caller closes it.

    Raises `GenerationError` when the file is gone or is no database.
    """
    try:
        return duckdb.connect(
            str(generation.path),
            read_only=True,
            config={
                "threads": 1,
                "memory_limit": READER_MEMORY,
                # Who asks seldom would keep what the last answers took.
                "allocator_background_threads": True,
            },
        )
    except duckdb.Error as error:
        raise GenerationError(f"{generation.path} cannot be opened: {error}") from error
