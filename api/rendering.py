"""The materialised answers: from the tables of one generation to the bytes that go out.

Each function asks one question of an open generation. Nothing here knows of HTTP, of caches, or
of which generation is the current one. Shapes and names are those of `api.models`.
"""

import math
from typing import Any

import duckdb
import orjson

from api.instants import iso8601, iso8601_or_none

# Thousands of entries for one miner: DuckDB writes the JSON itself, ten times faster than Python.
MINER_TASKS = """
    SELECT '[' || coalesce(string_agg(
        '{"task_id":' || task_id
        || ',"passed":' || CASE WHEN is_passed THEN 'true' ELSE 'false' END
        || ',"latency_ms":' || coalesce(CAST(latency_ms AS VARCHAR), 'null')
        || ',"updated":"'
        || strftime(make_timestamp(updated_at_ms * 1000), '%Y-%m-%dT%H:%M:%S.%gZ')
        || '"}',
        ',' ORDER BY task_id DESC), '') || ']'
    FROM verdicts WHERE miner_hotkey = ?
"""
MINERS = """
    SELECT uid, hotkey, model_name, model_revision, model_hash, chute_id, chute_slug, is_valid,
        invalid_reason, block, last_validated_at_ms
    FROM miners ORDER BY uid, hotkey
"""
MINER_NAMES = (
    "uid", "hotkey", "model_name", "model_revision", "model_hash", "chute_id", "chute_slug",
    "is_valid", "invalid_reason", "block",
)  # fmt: skip
WINDOW_FIGURES = """
    SELECT miner_hotkey, tasks_evaluated, passed_count, pass_rate, validator_count
    FROM miner_scores WHERE validator_count > 0 ORDER BY miner_hotkey
"""
WINDOW_FIGURES_OF_MINER = """
    SELECT miner_hotkey, tasks_evaluated, passed_count, pass_rate, validator_count
    FROM miner_scores WHERE miner_hotkey = ?
"""
SCORE_ENTRIES = """
    SELECT validator_hotkey, total_samples, total_passed, score, updated_at_ms
    FROM scores ORDER BY validator_hotkey, miner_hotkey
"""
SCORES_OF_MINER = """
    SELECT validator_hotkey, total_samples, total_passed, score, updated_at_ms
    FROM scores WHERE miner_hotkey = ? ORDER BY validator_hotkey
"""
SCORES_OF_VALIDATOR = """
    SELECT miner_hotkey, total_samples, total_passed, score, updated_at_ms
    FROM scores WHERE validator_hotkey = ? ORDER BY miner_hotkey
"""
STATS = """
    SELECT count(DISTINCT validator_hotkey), count(DISTINCT miner_hotkey), count(*),
        CAST(coalesce(sum(total_samples), 0) AS BIGINT),
        CAST(coalesce(sum(total_passed), 0) AS BIGINT),
        (SELECT total_samples FROM generation)
    FROM scores
"""
RANKS = """
    SELECT miner_hotkey, uid, rank, passed_count, pass_rate, block, is_eligible
    FROM ranks ORDER BY rank
"""
WEIGHTS = """
    SELECT miner_hotkey, uid, pass_rate, weight FROM weights
    ORDER BY weight DESC, uid, miner_hotkey
"""
GENERATION = """
    SELECT snapshot_id, computed_at_ms, valid_until_ms, watermark, netuid, block,
        metagraph_synced_at_ms, winner_uid, winner_hotkey, burn_reason
    FROM generation
"""


def generation_row(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Return the one row that says what this generation is, by the columns of `GENERATION`.

    Raises `ValueError` when there is not exactly one: such a file is no generation.
    """
    cursor = connection.execute(GENERATION)
    names = [column[0] for column in cursor.description or ()]
    rows = cursor.fetchall()
    if len(rows) != 1:
        raise ValueError(f"the table generation has {len(rows)} rows")
    return dict(zip(names, rows[0], strict=True))


def miners(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return every miner as a MinerResponse, by uid."""
    return [
        {
            **dict(zip(MINER_NAMES, row[:10], strict=True)),
            "last_validated_at": iso8601_or_none(row[10]),
        }
        for row in connection.execute(MINERS).fetchall()
    ]


def miners_list(everyone: list[dict[str, Any]], *, only_valid: bool) -> bytes:
    """Render a MinersListResponse; the counts are of everyone in either case."""
    valid = [miner for miner in everyone if miner["is_valid"]]
    return orjson.dumps(
        {
            "miners": valid if only_valid else everyone,
            "total": len(everyone),
            "valid_count": len(valid),
        }
    )


def miner_tasks(connection: duckdb.DuckDBPyConnection, miner_hotkey: str) -> bytes:
    """Render a miner's [MinerTaskEntry], newest task first; empty for an unknown miner."""
    rows = connection.execute(MINER_TASKS, [miner_hotkey]).fetchall()
    text: str = rows[0][0]
    return text.encode()


def _aggregated(row: tuple[Any, ...] | None) -> dict[str, Any]:
    _, tasks_evaluated, passed_count, pass_rate, validator_count = row or ("", 0, 0, 0.0, 0)
    return {
        "avg_score": pass_rate,
        "total_samples": tasks_evaluated,
        "total_passed": passed_count,
        "pass_rate": pass_rate,
        "validator_count": validator_count,
    }


def scores(connection: duckdb.DuckDBPyConnection, computed_at_ms: int) -> bytes:
    """Render the AggregatedScoreResponse: window figures of the valid miners with a score entry."""
    figures = connection.execute(WINDOW_FIGURES).fetchall()
    stats = connection.execute(STATS).fetchall()[0]
    return orjson.dumps(
        {
            "scores": {row[0]: _aggregated(row) for row in figures},
            "total_validators": stats[0],
            "updated_at": iso8601(computed_at_ms),
        }
    )


def validator_summaries(connection: duckdb.DuckDBPyConnection) -> bytes:
    """Render [ValidatorSummaryResponse] by hotkey: sums over entries, and the mean of scores."""
    entries: dict[str, list[tuple[int, int, float, int]]] = {}
    for hotkey, *figures in connection.execute(SCORE_ENTRIES).fetchall():
        entries.setdefault(hotkey, []).append(tuple(figures))
    return orjson.dumps(
        [
            {
                "validator_hotkey": hotkey,
                "total_samples": (samples := sum(entry[0] for entry in own)),
                "total_passed": (passed := sum(entry[1] for entry in own)),
                # fsum: the same mean whatever the order.
                "avg_score": math.fsum(entry[2] for entry in own) / len(own),
                "pass_rate": passed / samples if samples else 0.0,
                "last_updated": iso8601(max(entry[3] for entry in own)),
            }
            for hotkey, own in entries.items()
        ]
    )


def stats(connection: duckdb.DuckDBPyConnection) -> bytes:
    """Render the ScoreStatsResponse. Validators and miners are counted where they have an entry."""
    row = connection.execute(STATS).fetchall()[0]
    total_validators, total_miners, entry_count, samples, passed, total_samples = row
    return orjson.dumps(
        {
            "total_validators": total_validators,
            "total_miners": total_miners,
            "total_samples": total_samples,
            "total_score_entries": entry_count,
            "overall_pass_rate": passed / samples if samples else 0.0,
        }
    )


def _score_entries(
    connection: duckdb.DuckDBPyConnection, sql: str, hotkey: str, other: str
) -> list[dict[str, Any]]:
    return [
        {
            other: row[0],
            "score": row[3],
            "total_samples": row[1],
            "total_passed": row[2],
            "pass_rate": row[3],
            "updated_at": iso8601(row[4]),
        }
        for row in connection.execute(sql, [hotkey]).fetchall()
    ]


def miner_scores(connection: duckdb.DuckDBPyConnection, miner_hotkey: str) -> bytes:
    """Render a MinerScoresResponse; empty and zeros for an unknown miner."""
    figures = connection.execute(WINDOW_FIGURES_OF_MINER, [miner_hotkey]).fetchall()
    entries = _score_entries(connection, SCORES_OF_MINER, miner_hotkey, "validator_hotkey")
    return orjson.dumps(
        {
            "miner_hotkey": miner_hotkey,
            "by_validator": entries,
            "aggregated": _aggregated(figures[0] if figures else None),
        }
    )


def validator_scores(connection: duckdb.DuckDBPyConnection, validator_hotkey: str) -> bytes:
    """Render a ValidatorScoresResponse; empty for an unknown validator."""
    entries = _score_entries(connection, SCORES_OF_VALIDATOR, validator_hotkey, "miner_hotkey")
    return orjson.dumps(
        {
            "validator_hotkey": validator_hotkey,
            "scores": entries,
            "total_miners": len(entries),
        }
    )


def ranks(connection: duckdb.DuckDBPyConnection) -> bytes:
    """Render the RankResponse, the winner first."""
    names = ("miner_hotkey", "uid", "rank", "passed_count", "pass_rate", "block", "eligible")
    rows = connection.execute(RANKS).fetchall()
    return orjson.dumps({"ranks": [dict(zip(names, row, strict=True)) for row in rows]})


def weights(connection: duckdb.DuckDBPyConnection) -> bytes:
    """Render the WeightsResponse, with what a client needs to tell "no winner" from "unknown"."""
    row = generation_row(connection)
    names = ("miner_hotkey", "uid", "pass_rate", "weight")
    entries = connection.execute(WEIGHTS).fetchall()
    return orjson.dumps(
        {
            "winner_uid": row["winner_uid"],
            "miners": [dict(zip(names, entry, strict=True)) for entry in entries],
            "winner_hotkey": row["winner_hotkey"],
            "burn_reason": row["burn_reason"],
            "snapshot_id": row["snapshot_id"],
            "netuid": row["netuid"],
            "block": row["block"],
            "computed_at": iso8601(row["computed_at_ms"]),
            "valid_until": iso8601(row["valid_until_ms"]),
            "watermark": row["watermark"],
        }
    )
