"""What is in a generation's file: how it is written, what its views read, the digest of its rows.

Which file is the current one, and how it becomes that, is `warehouse.generation`'s.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv

from warehouse.tables import ARCHIVED_TEXTS, ARCHIVED_VOTES, VERDICTS, Table
from warehouse.verdicts import (
    RECORDS,
    VerdictsDifferError,
    VerdictSource,
    digest_of_tasks,
    fill,
    task_digests,
)

NAMES = """
    SELECT table_name FROM duckdb_tables()
    UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal
"""


@dataclass(frozen=True)
class ArchiveFiles:
    """The archive's files as of one generation: what its `samples` view reads."""

    votes: Sequence[Path] = field(default_factory=tuple)
    texts: Sequence[Path] = field(default_factory=tuple)


def write(
    path: Path,
    tables: Sequence[tuple[Table, pa.Table]],
    verdicts: VerdictSource,
    archive: ArchiveFiles,
) -> None:
    """Write all tables of a generation to a file, in place of what it has.

    Raises `VerdictsDifferError` where what it has is not what a run has left, `duckdb.Error`.
    """
    # One thread and one transaction: a quarter faster for tables of this size.
    with duckdb.connect(str(path), config={"threads": 1}) as connection:
        connection.execute("BEGIN")
        for view in ("samples", ARCHIVED_VOTES.name, ARCHIVED_TEXTS.name):
            connection.execute(f"DROP VIEW IF EXISTS {view}")
        for declared, rows in tables:
            connection.execute(f"DROP TABLE IF EXISTS {declared.name}")
            connection.execute(declared.duckdb_ddl())
            connection.register("incoming", rows)
            connection.table("incoming").insert_into(declared.name)
            connection.unregister("incoming")
        fill(connection, verdicts)
        for statement in archive_views(archive):
            connection.execute(statement)
        known = {"samples", ARCHIVED_VOTES.name, ARCHIVED_TEXTS.name, VERDICTS.name, RECORDS}
        known |= {declared.name for declared, _ in tables}
        if others := {name for (name,) in connection.execute(NAMES).fetchall()} - known:
            raise VerdictsDifferError(f"somebody else made {sorted(others)}")
        connection.execute("COMMIT")
        # Closing would do it as well, but tells nobody that it could not.
        connection.execute("CHECKPOINT")


def tables_sha256(
    tables: Iterable[tuple[Table, pa.Table]], verdicts: Mapping[int, str] | None = None
) -> str:
    """Return the digest that says whether two generations hold the same rows.

    SHA-256 over the tables in order of name, each as its name, a newline and its rows as CSV
    (header first, strings quoted, rows in the table's declared order). Of `verdicts` it is the
    digest of its tasks' digests, which `verdicts` has where the rows are not all at hand.
    """
    digest = hashlib.sha256()
    contents = {declared.name: rows for declared, rows in tables}
    if verdicts is None:
        verdicts = task_digests(contents[VERDICTS.name])
    for name in sorted({*contents, VERDICTS.name}):
        digest.update(name.encode() + b"\n")
        is_verdicts = name == VERDICTS.name
        digest.update(digest_of_tasks(verdicts).encode() if is_verdicts else _csv(contents[name]))
    return digest.hexdigest()


def whole_tables_sha256(tables: Iterable[tuple[Table, pa.Table]]) -> str:
    """Return the same as it was before verdicts had digests by task: of old generations."""
    digest = hashlib.sha256()
    for declared, rows in sorted(tables, key=lambda pair: pair[0].name):
        digest.update(declared.name.encode() + b"\n" + _csv(rows))
    return digest.hexdigest()


def _csv(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(rows, buffer)
    return buffer.getvalue()


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
