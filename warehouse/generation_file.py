"""What is in a generation's file: how it is written, and the digest of its rows.

What its views read is `warehouse.archive_views`', which file is the current one
`warehouse.generation`'s, and how it becomes that `warehouse.publication`'s.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv

from warehouse.archive_views import ArchiveFiles, archive_views
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
