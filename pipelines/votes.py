"""Votes and verdicts: what every validator says about a task, and what their stakes make of it.

Pure: frames in, frames out. Scores, windows and ranks are not made here.
"""

import polars as pl

from pipelines.frames import conform
from warehouse.tables import ARCHIVED_VOTES, VERDICTS

SAMPLE_KEY = ["task_key", "miner_hotkey", "validator_hotkey"]


def newest_versions(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the current samples among all versions: the highest seq of every sample key.

    `rows` has the columns of `ARCHIVED_VOTES`, in any order; so has the result, in the table's.
    """
    newest = rows.sort("seq", descending=True).unique(SAMPLE_KEY, keep="first")
    return conform(newest, ARCHIVED_VOTES)


def votes(archived_votes: pl.DataFrame, validators: pl.DataFrame) -> pl.DataFrame:
    """Return the current samples that have a task, with what each weighs.

    `archived_votes` holds one row per sample key, `validators` is the table. Adds `is_registered`
    and `stake_rao`: 0 for a validator that has left or fallen below the minimum stake, so its
    votes are seen and weigh nothing.
    """
    registered = validators.filter("is_registered").select("stake_rao", validator_hotkey="hotkey")
    tasked = archived_votes.filter(pl.col("task_id").is_not_null())
    # Only the hotkeys are joined: joining the frame would copy a million rows of text.
    stake_rao = tasked.select("validator_hotkey").join(
        registered, on="validator_hotkey", how="left", maintain_order="left"
    )["stake_rao"]
    return tasked.with_columns(
        stake_rao=stake_rao.fill_null(0), is_registered=stake_rao.is_not_null()
    )


def verdicts(votes: pl.DataFrame) -> pl.DataFrame:
    """Return the outcome of every task for every miner with a vote: the `VERDICTS` table.

    Passed when more than half of the voting stake says so, in whole rao: an exact tie fails, and
    so does a task without any stake. The stakes of one snapshot sum to less than 2**62 (the
    metagraph is refused otherwise), so no sum or its double overflows.
    """
    seq_with_latency = pl.when(pl.col("latency_ms").is_not_null()).then("seq")
    outcomes = (
        votes.lazy()
        .group_by("miner_hotkey", "task_id")
        .agg(
            stake_passed_rao=(pl.col("stake_rao") * pl.col("is_passed")).sum(),
            stake_total_rao=pl.col("stake_rao").sum(),
            validator_count=pl.len(),
            latency_ms=pl.col("latency_ms").max_by(seq_with_latency),
            updated_at_ms=pl.col("received_at_ms").max(),
        )
        .with_columns(is_passed=pl.col("stake_passed_rao") * 2 > pl.col("stake_total_rao"))
        .collect()
    )
    return conform(outcomes, VERDICTS)
