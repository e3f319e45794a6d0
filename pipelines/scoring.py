"""Scores: who judged whom how often, the window of tasks that counts, and miners' figures in it.

Pure: frames in, frames out. Thresholds are compared as integers; floats are only for display.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from pipelines.frames import conform
from pipelines.settings import Parameters
from warehouse.tables import MINER_SCORES, SCORES


@dataclass(frozen=True)
class Window:
    """The task ids `first` to `last`, both included, of which `size` are wanted."""

    first: int
    last: int
    size: int

    @property
    def is_complete(self) -> bool:
        """Whether history is long enough for anybody to be eligible."""
        return self.last >= self.size


def scoring_window(
    counting_tasks: pl.Series, latest_task_id: int | None, parameters: Parameters
) -> Window | None:
    """Return the window that ends at the greatest of the `counting_tasks`.

    Tasks above the latest announced one are passed over (none announced: no bound). None when no
    task is left.
    """
    if latest_task_id is not None:
        counting_tasks = counting_tasks.filter(counting_tasks <= latest_task_id)
    last = counting_tasks.max()
    if not isinstance(last, int):
        return None
    size = parameters.task_window
    return Window(first=max(1, last - size + 1), last=last, size=size)


def counting_tasks(votes: pl.DataFrame) -> pl.Series:
    """Return the ids of tasks with a vote of a registered validator, each once, in any order.

    Those that only departed validators saw never move the window.
    """
    return votes.filter("is_registered")["task_id"].unique()


def score_entries(archived_votes: pl.DataFrame) -> pl.DataFrame:
    """Return each validator's counts of current samples about each miner, all history.

    Legacy samples without a task count here as well. The counts of several parts of a history, one
    below the other, are to `scores` what those of the whole are.
    """
    return archived_votes.group_by("validator_hotkey", "miner_hotkey").agg(
        total_samples=pl.len().cast(pl.Int64),
        total_passed=pl.col("is_passed").cast(pl.Int64).sum(),
        updated_at_ms=pl.col("received_at_ms").max(),
    )


def summed_entries(entries: pl.DataFrame) -> pl.DataFrame:
    """Return the counts of several parts of a history as one for each validator and miner."""
    return entries.group_by("validator_hotkey", "miner_hotkey").agg(
        pl.col("total_samples", "total_passed").sum(), pl.col("updated_at_ms").max()
    )


def scores(entries: pl.DataFrame, validators: pl.DataFrame, miners: pl.DataFrame) -> pl.DataFrame:
    """Return the entries of registered validators about valid miners: the `SCORES` table."""
    registered = validators.filter("is_registered")["hotkey"]
    valid = miners.filter("is_valid")["hotkey"]
    figures = summed_entries(
        entries.filter(
            pl.col("validator_hotkey").is_in(registered.implode()),
            pl.col("miner_hotkey").is_in(valid.implode()),
        )
    )
    score = _ratios(figures["total_passed"], figures["total_samples"])
    return conform(figures.with_columns(score=score), SCORES)


def miner_scores(
    verdicts: pl.DataFrame,
    scores: pl.DataFrame,
    miners: pl.DataFrame,
    window: Window | None,
    parameters: Parameters,
) -> pl.DataFrame:
    """Return the window figures of every valid miner: the `MINER_SCORES` table.

    Nobody is eligible without a complete window.
    """
    first, last = (window.first, window.last) if window else (1, 0)
    in_window = (
        verdicts.filter(pl.col("task_id").is_between(first, last))
        .group_by("miner_hotkey")
        .agg(tasks_evaluated=pl.len(), passed_count=pl.col("is_passed").sum())
    )
    entries = scores.group_by("miner_hotkey").agg(validator_count=pl.len())
    # The least whole number of tasks that reaches the threshold, so that the comparison is exact
    # whatever the threshold's denominator.
    tasks_min = math.ceil(parameters.completeness_threshold * parameters.task_window)
    is_complete = window is not None and window.is_complete
    figures = (
        miners.filter("is_valid")
        .select(miner_hotkey="hotkey")
        .join(in_window, on="miner_hotkey", how="left")
        .join(entries, on="miner_hotkey", how="left")
        .with_columns(pl.col("tasks_evaluated", "passed_count", "validator_count").fill_null(0))
    )
    evaluated = figures["tasks_evaluated"]
    return conform(
        figures.with_columns(
            pass_rate=_ratios(figures["passed_count"], evaluated),
            completeness=_ratios(evaluated, [parameters.task_window] * figures.height),
            is_eligible=pl.lit(is_complete) & (pl.col("tasks_evaluated") >= tasks_min),
        ),
        MINER_SCORES,
    )


def _ratios(numerators: Iterable[int], denominators: Iterable[int]) -> pl.Series:
    """Return the correctly rounded quotients of integers, 0 where nothing is divided.

    In Python, because Polars multiplies by the reciprocal when the divisor is one constant: 3/5 is
    then 0.6000000000000001, and a figure would depend on the shape of its frame.
    """
    return pl.Series(
        [
            numerator / denominator if denominator else 0.0
            for numerator, denominator in zip(numerators, denominators, strict=True)
        ],
        dtype=pl.Float64,
    )
