"""How a generation is built and becomes the current one. The API, which only reads, has none of it.

A generation is built under a temporary name, made durable, and given a name that was never used
before; only then the pointer is replaced. A crash before the pointer's rename leaves the old
generation in force, and a file that the next publication removes.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from warehouse import arrow
from warehouse.archive_views import ArchiveFiles
from warehouse.files import locked, make_directory, replace_durably, temporary_beside
from warehouse.generation import Generation, GenerationError, Generations, open_generation
from warehouse.generation_file import tables_sha256, write
from warehouse.tables import COMPUTED_TABLES, GENERATION, VERDICTS, Table
from warehouse.verdicts import (
    VerdictsDifferError,
    VerdictSource,
    WholeTable,
    is_worth_building_upon,
)

logger = logging.getLogger(__name__)


def publish(
    generations: Generations,
    tables: Mapping[str, pa.Table],
    info: Mapping[str, object],
    archive: ArchiveFiles | None = None,
    *,
    before_current: Callable[[Generation], None] | None = None,
    verdicts: VerdictSource | None = None,
) -> Generation:
    """Build a generation from all computed tables and make it the current one.

    `verdicts` stands for the table of that name where only a part of it is new: what is not is
    taken from the current generation.

    `info` has the columns of `tables.GENERATION` but snapshot_id, computed_at_ms and tables_sha256,
    which are made here. `before_current` is called with the whole generation just before it becomes
    current; what it raises keeps that from happening. On return every reader that looks finds the
    new generation, also after a power cut. Raises `StaleRunError` when the current generation
    counts more of the log or was made from a later metagraph, `GenerationError` when tables are
    missing or do not fit.
    """
    verdicts = verdicts or WholeTable(_fitting(tables, VERDICTS))
    others = [(table, _fitting(tables, table)) for table in COMPUTED_TABLES if table != VERDICTS]
    digest = tables_sha256(others, verdicts.task_digests())
    settings = generations.settings
    make_directory(generations.directory)
    with locked(settings.warehouse_path / "publish.lock", settings.publish_lock_seconds_max):
        made_from = {
            "watermark": int(str(info["watermark"])),
            "metagraph_synced_at_ms": int(str(info["metagraph_synced_at_ms"])),
        }
        newest = generations.refuse_stale(made_from)
        # Without a pointer nobody can tell which were published: then none is removed.
        for orphan in set(generations.built()) - set(generations.kept()) if newest else ():
            generations.remove(orphan)
        made_at_ms = max(time.time_ns() // 1_000_000, newest + 1)
        instant = datetime.fromtimestamp(made_at_ms // 1000, UTC)
        generation = generations.named(
            f"{instant:%Y%m%dT%H%M%S}{made_at_ms % 1000:03d}Z-{digest[:8]}"
        )
        row = {
            **info,
            "snapshot_id": generation.snapshot_id,
            "computed_at_ms": made_at_ms,
            "tables_sha256": digest,
        }
        info_table = pa.Table.from_pylist([row], schema=arrow.schema(GENERATION))
        archive = archive or ArchiveFiles()
        base = _base(generations, verdicts)
        _build(generation.path, base, [*others, (GENERATION, info_table)], verdicts, archive)
        generations.name_archive_files(generation, archive)
        try:
            if before_current is not None:
                before_current(generation)
        except BaseException:
            generations.remove(generation)
            raise
        generations.point_to(generation, made_from)
    return generation


def _base(generations: Generations, verdicts: VerdictSource) -> Path | None:
    """Return the current generation's file if most verdicts are there already."""
    current = generations.current()
    if current is None:
        return None
    try:
        with open_generation(current) as connection:
            return current.path if is_worth_building_upon(connection, verdicts) else None
    except (GenerationError, duckdb.Error) as error:
        logger.warning("%s is not built upon: %s", current.path, error)
        return None


def _build(
    path: Path,
    base: Path | None,
    tables: Sequence[tuple[Table, pa.Table]],
    verdicts: VerdictSource,
    archive: ArchiveFiles,
) -> None:
    """Write a generation's file, beginning with a copy of `base` if that does."""
    for begun_with in (base, None) if base else (None,):
        # A name of its own: what is left of a file that failed is no part of the next one.
        temporary = temporary_beside(path)
        try:
            if begun_with is not None and not _copied(begun_with, temporary):
                continue
            write(temporary, tables, verdicts, archive)
            replace_durably(temporary, path)
            break
        except (duckdb.Error, VerdictsDifferError) as error:
            if begun_with is None:
                raise GenerationError(f"{path.name} cannot be written: {error}") from error
            logger.warning("%s is not built upon: %s", begun_with, error)
        finally:
            temporary.unlink(missing_ok=True)
            temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)


def _copied(base: Path, temporary: Path) -> bool:
    """Copy a file; tell whether that could be done. What cannot be read must not stop a run."""
    try:
        shutil.copyfile(base, temporary)
    except OSError as error:
        logger.warning("%s is not built upon: %s", base, error)
        return False
    return True


def _fitting(tables: Mapping[str, pa.Table], declared: Table) -> pa.Table:
    if declared.name not in tables:
        raise GenerationError(f"the table {declared.name} is missing")
    try:
        return tables[declared.name].select(declared.names).cast(arrow.schema(declared))
    except (KeyError, pa.ArrowInvalid, ValueError) as error:
        raise GenerationError(f"{declared.name} does not fit its declaration: {error}") from error
