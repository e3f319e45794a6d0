"""Votes and verdicts: what every validator says about a task, and what their stakes make of it.

Pure: frames in, frames out. Scores, windows and ranks are not made here.
"""

import polars as pl

from pipelines.frames import conform
from warehouse.tables import ARCHIVED_VOTES, VERDICTS

SAMPLE_KEY = ["task_key", "miner_hotkey", "validator_hotkey"]
PAIR = ["miner_hotkey", "task_id"]
# Before a validator's hotkey, the name of the column of its votes.
BY = "by:"


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
    sums = votes.group_by(PAIR).agg(
        stake_passed_rao=(pl.col("stake_rao") * pl.col("is_passed")).sum(),
        stake_total_rao=pl.col("stake_rao").sum(),
    )
    return _outcomes(sums.join(_facts(votes), on=PAIR))


def ballots(archived_votes: pl.DataFrame) -> pl.DataFrame:
    """Return who voted how on every task and miner: what does not depend on anybody's stake.

    A row for each miner and task with what `VERDICTS` says of its votes but for stakes, and a
    column `by:<hotkey>` for each validator: whether it passed, null without a vote.
    """
    tasked = archived_votes.filter(pl.col("task_id").is_not_null())
    # A key is there once; where it is not, `tallies` tells so, and nothing comes of it.
    by_validator = tasked.pivot(
        "validator_hotkey", index=PAIR, values="is_passed", aggregate_function="first"
    )
    names = {name: BY + name for name in by_validator.columns[len(PAIR) :]}
    return _facts(tasked).join(by_validator.rename(names), on=PAIR)


def verdicts_of(ballots: pl.DataFrame, validators: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Return what `verdicts` makes of the votes at these stakes, and which tasks count.

    `validators` is the table. A task counts that has a vote of a registered validator.
    """
    registered = validators.filter("is_registered").select("hotkey", "stake_rao").rows()
    stakes = {BY + hotkey: stake for hotkey, stake in registered if BY + hotkey in ballots.columns}
    passed, total = [pl.lit(0, pl.Int64)], [pl.lit(0, pl.Int64)]
    for name, stake_rao in stakes.items():
        weight = pl.lit(stake_rao, pl.Int64)
        passed.append(pl.when(pl.col(name)).then(weight).otherwise(0))
        total.append(pl.when(pl.col(name).is_not_null()).then(weight).otherwise(0))
    outcomes = ballots.with_columns(
        stake_passed_rao=pl.sum_horizontal(passed), stake_total_rao=pl.sum_horizontal(total)
    )
    has_counting = [pl.lit(value=False), *(pl.col(name).is_not_null() for name in stakes)]
    counting = ballots.filter(pl.any_horizontal(has_counting))["task_id"].unique()
    return _outcomes(outcomes), counting


def _facts(votes: pl.DataFrame) -> pl.DataFrame:
    """Return what a verdict says of its votes but for their stakes."""
    seq_with_latency = pl.when(pl.col("latency_ms").is_not_null()).then("seq")
    return votes.group_by(PAIR).agg(
        validator_count=pl.len(),
        latency_ms=pl.col("latency_ms").max_by(seq_with_latency),
        updated_at_ms=pl.col("received_at_ms").max(),
    )


def _outcomes(sums: pl.DataFrame) -> pl.DataFrame:
    is_passed = pl.col("stake_passed_rao") * 2 > pl.col("stake_total_rao")
    return conform(sums.with_columns(is_passed=is_passed), VERDICTS)
