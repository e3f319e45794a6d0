"""The archive as a generation's readers see it: which files, and the queries that read them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from warehouse.tables import ARCHIVED_TEXTS, ARCHIVED_VOTES, Table


@dataclass(frozen=True)
class ArchiveFiles:
    """The archive's files as of one generation: what its `samples` view reads."""

    votes: Sequence[Path] = field(default_factory=tuple)
    texts: Sequence[Path] = field(default_factory=tuple)


def archive_views(archive: ArchiveFiles) -> list[str]:
    """Return the statements that make the archive readable: both its parts, and `samples`.

    The paths are absolute, so the views work from any working directory.
    """
    return [
        _view(ARCHIVED_VOTES, archive.votes),
        _view(ARCHIVED_TEXTS, archive.texts),
        "CREATE VIEW samples AS SELECT * FROM archived_votes LEFT JOIN archived_texts USING (seq)",
    ]


def _view(declared: Table, files: Sequence[Path]) -> str:
    return f"CREATE VIEW {declared.name} AS {archived_rows(declared, files)}"


def archived_rows(declared: Table, files: Sequence[Path]) -> str:
    """Return the query for all rows of one part of the archive."""
    if not files:
        columns = ", ".join(f'NULL::{c.kind.value} AS "{c.name}"' for c in declared.columns)
        return f"SELECT {columns} WHERE false"
    return f"FROM read_parquet({_sql_list(files)})"


def _sql_list(paths: Sequence[Path]) -> str:
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"
