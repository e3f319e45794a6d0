"""The table `verdicts` of a generation: taken over from the one before, but for what has changed.

It has a row for each miner and task of all history, half a million at ten million samples, of which
a run changes some thousands. So it is made partition by partition, and a generation's file begins
as a copy of the last one. `verdict_partitions`, in the same file, says from what the rows of each
partition were made, and what they sum up to: in the end the whole table is read and must sum up to
that, so that nothing is taken over that is not what was once written.
"""

import hashlib
import io
import itertools
from collections.abc import Mapping
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.csv

from warehouse.tables import VERDICTS

WHOLE = "whole"
RECORDS = "verdict_partitions"
# `rows_sum` is of DuckDB's hash of every row: another version's hash finds another sum, and all is
# made anew.
PARTITIONS_DDL = """
    CREATE TABLE verdict_partitions (
        name VARCHAR NOT NULL,
        made_from VARCHAR NOT NULL,
        first_task BIGINT,
        last_task BIGINT,
        row_count BIGINT NOT NULL,
        rows_sum VARCHAR NOT NULL
    )
"""
ARE_THERE = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'verdict_partitions'"
PARTITIONS = "SELECT name, made_from FROM verdict_partitions"
REMOVE = """
    DELETE FROM verdicts WHERE task_id BETWEEN
        (SELECT first_task FROM verdict_partitions WHERE name = ?1)
        AND (SELECT last_task FROM verdict_partitions WHERE name = ?1)
"""
REMOVE_RECORD = "DELETE FROM verdict_partitions WHERE name = ?"
RECORD = "INSERT INTO verdict_partitions VALUES (?, ?, ?, ?, ?, ?)"
COLUMNS = ", ".join(VERDICTS.names)
SUMS = "SELECT min(task_id), max(task_id), count(*), CAST(coalesce(sum(hash({})), 0) AS VARCHAR)"
SUMS_OF_NEW = f"{SUMS.format(COLUMNS)} FROM incoming"
SUMS_OF_ALL = f"{SUMS.format(COLUMNS)} FROM verdicts"
SUMS_RECORDED = """
    SELECT coalesce(sum(row_count), 0),
        CAST(coalesce(sum(CAST(rows_sum AS HUGEINT)), 0) AS VARCHAR)
    FROM verdict_partitions
"""
OVERLAPPING = """
    SELECT a.name, b.name FROM verdict_partitions AS a JOIN verdict_partitions AS b
    ON a.name < b.name AND a.first_task <= b.last_task AND b.first_task <= a.last_task
"""


class VerdictsDifferError(Exception):
    """A table that was taken over is not what was written; the message says how."""


class VerdictSource(Protocol):
    """Verdicts by partition; no two partitions have tasks in each other's range."""

    def made_from(self) -> Mapping[str, str]:
        """Return, for each partition, a name of all that its rows follow from."""

    def rows(self, partition: str) -> pa.Table:
        """Return the rows of a partition, in the table's columns."""

    def task_digests(self) -> Mapping[int, str]:
        """Return, for each task, what `task_digests` makes of its rows."""


class WholeTable:
    """A table as a source with one partition."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._digests = task_digests(table)

    def made_from(self) -> Mapping[str, str]:
        """Return the one partition."""
        return {WHOLE: digest_of_tasks(self._digests)}

    def rows(self, partition: str) -> pa.Table:
        """Return the table."""
        assert partition == WHOLE  # noqa: S101  (there is no other)
        return self._table

    def task_digests(self) -> Mapping[int, str]:
        """Return the digests of all tasks."""
        return self._digests


def task_digests(rows: pa.Table) -> dict[int, str]:
    """Return, for each task, the SHA-256 of its rows as CSV, by miner."""
    ordered = rows.sort_by([("task_id", "ascending"), ("miner_hotkey", "ascending")])
    found: dict[int, str] = {}
    start = 0
    for task_id, group in itertools.groupby(ordered["task_id"].to_pylist()):
        count = sum(1 for _ in group)
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(ordered.slice(start, count), buffer)
        found[task_id] = hashlib.sha256(buffer.getvalue()).hexdigest()
        start += count
    return found


def digest_of_tasks(digests: Mapping[int, str]) -> str:
    """Return the SHA-256 of all tasks' digests: a line `<task id> <digest>` each, by task id."""
    lines = "".join(f"{task_id} {digest}\n" for task_id, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def is_worth_building_upon(connection: duckdb.DuckDBPyConnection, source: VerdictSource) -> bool:
    """Tell whether half of a source's partitions are as they are there.

    Otherwise a file would be as large as both, and take as long as a new one.
    """
    wanted = source.made_from()
    there = _partitions(connection) if _has_partitions(connection) else {}
    unchanged = sum(wanted[name] == there.get(name) for name in wanted)
    return unchanged * 2 >= max(len(wanted), len(there))


def fill(connection: duckdb.DuckDBPyConnection, source: VerdictSource) -> None:
    """Have `verdicts` hold a source's rows; it may hold an earlier one's, or not be there.

    Raises `VerdictsDifferError` when what was there is not what was written, `duckdb.Error` when it
    is damaged or nothing can be written.
    """
    wanted = source.made_from()
    if not _has_partitions(connection):
        # Of a generation from before there were partitions.
        connection.execute(f"DROP TABLE IF EXISTS {VERDICTS.name}")
        connection.execute(VERDICTS.duckdb_ddl())
        connection.execute(PARTITIONS_DDL)
    there = _partitions(connection)
    for name in sorted(there):
        if wanted.get(name) != there[name]:
            connection.execute(REMOVE, [name])
            connection.execute(REMOVE_RECORD, [name])
    for name in wanted:
        if wanted[name] != there.get(name):
            connection.register("incoming", source.rows(name))
            connection.table("incoming").insert_into(VERDICTS.name)
            (sums,) = connection.execute(SUMS_OF_NEW).fetchall()
            connection.execute(RECORD, [name, wanted[name], *sums])
            connection.unregister("incoming")
    _verify(connection)


def _has_partitions(connection: duckdb.DuckDBPyConnection) -> bool:
    return bool(connection.execute(ARE_THERE).fetchall()[0][0])


def _partitions(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return which partitions are there, and from what they were made."""
    rows = connection.execute(PARTITIONS).fetchall()
    return {str(name): str(made_from) for name, made_from in rows}


def _verify(connection: duckdb.DuckDBPyConnection) -> None:
    if overlapping := connection.execute(OVERLAPPING).fetchall():
        raise VerdictsDifferError(f"partitions of verdicts overlap: {overlapping[0]}")
    ((_, _, count, rows_sum),) = connection.execute(SUMS_OF_ALL).fetchall()
    ((recorded, recorded_sum),) = connection.execute(SUMS_RECORDED).fetchall()
    if (count, rows_sum) != (recorded, recorded_sum):
        raise VerdictsDifferError(
            f"{count} verdicts are there that are not the {recorded} that were written"
        )
