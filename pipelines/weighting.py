"""Weights: what validators set on chain, and why nobody gets any. Pure: frames in, frames out."""

from dataclasses import dataclass

import polars as pl

from pipelines.frames import conform
from pipelines.scoring import Window
from warehouse.tables import WEIGHTS

WINDOW_INCOMPLETE = "window_incomplete"
NO_VALID_MINER = "no_valid_miner"
NO_RANK = "no_rank"


@dataclass(frozen=True)
class Outcome:
    """Who won. A winner may have uid 0, so burning is told by `winner_hotkey`, which is None then.

    `burn_reason` is None exactly when somebody won.
    """

    winner_uid: int
    winner_hotkey: str | None
    burn_reason: str | None


def weights(ranks: pl.DataFrame) -> pl.DataFrame:
    """Return the `WEIGHTS` table: 1.0 for the winner, 0.0 for every other ranked miner."""
    return conform(ranks.with_columns(weight=_is_winner().cast(pl.Float64)), WEIGHTS)


def outcome(ranks: pl.DataFrame, miners: pl.DataFrame, window: Window | None) -> Outcome:
    """Return the winner, or the first reason that applies why the weights burn."""
    winners = ranks.filter(_is_winner())
    if winners.height:
        return Outcome(winners["uid"].item(), winners["miner_hotkey"].item(), None)
    if window is None or not window.is_complete:
        return Outcome(0, None, WINDOW_INCOMPLETE)
    if not miners["is_valid"].any():
        return Outcome(0, None, NO_VALID_MINER)
    return Outcome(0, None, NO_RANK)


def _is_winner() -> pl.Expr:
    return (pl.col("rank") == 1) & pl.col("is_eligible")
