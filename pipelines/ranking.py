"""Ranks: who dominates, and in which order the others follow. Pure: frames in, frames out."""

from fractions import Fraction

import polars as pl

from pipelines.frames import conform
from pipelines.settings import Parameters
from warehouse.tables import RANKS


def ranks(miner_scores: pl.DataFrame, miners: pl.DataFrame, parameters: Parameters) -> pl.DataFrame:
    """Return the `RANKS` table: the winner, the other eligible miners, then the ineligible.

    After the winner, more passed tasks come first, and equals by hotkey. An ineligible miner is
    ranked when it has a vote in the window; rank 1 is a winner only if it `is_eligible`.
    """
    # Joined on hotkey, not uid: a uid goes to a new miner after deregistration, and the newcomer
    # would inherit its predecessor's figures.
    ranked = miner_scores.filter(pl.col("is_eligible") | (pl.col("tasks_evaluated") > 0)).join(
        miners.select("uid", "block", miner_hotkey="hotkey"), on="miner_hotkey", how="inner"
    )
    winner_hotkey = dominant_miner(ranked.filter("is_eligible"), parameters.dominance_threshold)
    ordered = (
        ranked.with_columns(is_winner=pl.col("miner_hotkey").eq_missing(pl.lit(winner_hotkey)))
        .sort(
            ["is_winner", "is_eligible", "passed_count", "miner_hotkey"],
            descending=[True, True, True, False],
        )
        .with_row_index("rank", offset=1)
    )
    return conform(ordered, RANKS)


def dominant_miner(eligible: pl.DataFrame, dominance_threshold: Fraction) -> str | None:
    """Return the hotkey of the winner, None when nobody is eligible.

    Miners stand in the order of their commitments (unknown block last, then hotkey). One dominates
    when its pass rate is at least that of every miner before it plus the threshold; the last one
    that dominates wins. Rates are fractions of counts: 17/20 leads 4/5 by exactly 1/20.
    """
    order = eligible.sort(["block", "miner_hotkey"], nulls_last=True)
    winner_hotkey: str | None = None
    pass_rate_max = Fraction(0)
    for hotkey, passed_count, tasks_evaluated in order.select(
        "miner_hotkey", "passed_count", "tasks_evaluated"
    ).iter_rows():
        pass_rate = Fraction(passed_count, tasks_evaluated) if tasks_evaluated else Fraction(0)
        if winner_hotkey is None or pass_rate >= pass_rate_max + dominance_threshold:
            winner_hotkey = hotkey
        pass_rate_max = max(pass_rate_max, pass_rate)
    return winner_hotkey
