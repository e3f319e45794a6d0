"""The log's rows as frames of the archive's columns, and which of them are the newest versions."""

from collections.abc import Iterable, Sequence

import polars as pl
from polars.datatypes import DataTypeClass

from warehouse.frames import empty, schema
from warehouse.log import SubmissionRow, TextRow, VoteColumns
from warehouse.tables import ARCHIVED_TEXTS, ARCHIVED_VOTES

VERSION_KEY = list(ARCHIVED_VOTES.key)
INT64_MAX = 2**63 - 1
# What was signed, and how.
REQUEST: dict[str, DataTypeClass] = {
    "scheme": pl.Int64,
    "timestamp": pl.String,
    "nonce": pl.String,
    "method": pl.String,
    "path": pl.String,
    "signature": pl.Binary,
    "body": pl.Binary,
}
SUBMISSION_SCHEMA = pl.Schema(
    {
        "seq": pl.Int64,
        "received_at_ms": pl.Int64,
        "hotkey": pl.String,
        **REQUEST,
        "sample_count": pl.Int64,
        "evaluation_signature": pl.String,
        "is_evaluation_verified": pl.Boolean,
    }
)
# An event and the request that signed it.
EVENT_SCHEMA = pl.Schema(
    {
        "seq": pl.Int64,
        "received_at_ms": pl.Int64,
        "kind": pl.String,
        "subject": pl.String,
        "detail": pl.String,
        "admin_hotkey": pl.String,
        **REQUEST,
    }
)


def vote_rows(chunks: Iterable[VoteColumns]) -> pl.DataFrame:
    """Return votes of the log in the columns of `ARCHIVED_VOTES`, superseded ones included."""
    frames = [_frame(chunk, schema(ARCHIVED_VOTES)) for chunk in chunks]
    return pl.concat(frames) if frames else empty(ARCHIVED_VOTES)


def text_rows(chunks: Iterable[list[TextRow]]) -> pl.DataFrame:
    """Return rows of the log in the columns of `ARCHIVED_TEXTS`, superseded ones included."""
    frames = [_by_columns(chunk, schema(ARCHIVED_TEXTS)) for chunk in chunks]
    return pl.concat(frames) if frames else empty(ARCHIVED_TEXTS)


def submission_rows(chunk: Sequence[SubmissionRow]) -> pl.DataFrame:
    """Return submissions as the archive keeps them."""
    return _by_columns(chunk, SUBMISSION_SCHEMA)


def event_rows(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    """Return admins' acts, each with the request that signed it, as the archive keeps them."""
    return _by_columns(rows, EVENT_SCHEMA)


def _by_columns(rows: Sequence[tuple[object, ...]], schema: pl.Schema) -> pl.DataFrame:
    """Turn rows of the log into a frame; by columns, which is several times as fast as by rows."""
    return _frame(zip(*rows, strict=True), schema) if rows else pl.DataFrame(schema=schema)


def _frame(columns: Iterable[Sequence[object]], schema: pl.Schema) -> pl.DataFrame:
    return pl.DataFrame(
        [
            _series(name, dtype, list(values))
            for (name, dtype), values in zip(schema.items(), columns, strict=True)
        ]
    )


def _series(name: str, dtype: pl.DataType, values: list[object]) -> pl.Series:
    if dtype == pl.Boolean:  # 0 and 1 in the log
        return pl.Series(name, values, dtype=pl.Int64).cast(pl.Boolean)
    return pl.Series(name, values, dtype=dtype)


def newest_versions(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the newest version of each sample, in the order of `ARCHIVED_VOTES`."""
    rows = pl.concat(frames)
    version = _numbered(rows)
    if version is None:
        newest = rows.sort("seq").unique(subset=VERSION_KEY, keep="last")
        return newest.sort([name for name, _ in ARCHIVED_VOTES.order])
    ordered = rows.with_columns(version.alias("version")).sort("version", "seq")
    is_newest = pl.col("version").ne_missing(pl.col("version").shift(-1))
    return ordered.filter(is_newest).drop("version")


def _numbered(rows: pl.DataFrame) -> pl.Series | None:
    """Return a number for each row's task, miner and validator that is ordered as these are.

    To sort by one number takes a third of what it takes by two addresses and more. None where there
    are legacy samples, whose key is not their order, or where such numbers would be too large.
    """
    if rows.is_empty() or rows["task_id"].null_count():
        return None
    pair = ("validator_hotkey", "miner_hotkey")
    hotkeys = pl.Enum(pl.concat([rows[name].unique() for name in pair]).unique().sort())
    base = len(hotkeys.categories)
    least, greatest = rows.select(pl.min("task_id"), greatest=pl.max("task_id")).row(0)
    if least < 0 or (greatest - least + 1) * base**2 > INT64_MAX:
        return None
    task = pl.col("task_id") - least
    validator, miner = (pl.col(name).cast(hotkeys).to_physical().cast(pl.Int64) for name in pair)
    return rows.select((task * base + miner) * base + validator).to_series()
