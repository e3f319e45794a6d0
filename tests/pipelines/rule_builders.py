"""Rows with valid defaults for the tests of the rules: a test names only what it is about."""

from dataclasses import dataclass, replace
from fractions import Fraction

import polars as pl

from pipelines import ranking, scoring, votes, weighting
from pipelines.frames import conform, schema
from pipelines.settings import Parameters
from warehouse.tables import ARCHIVED_VOTES, MINERS, VALIDATORS, VERDICTS

DEFAULT = Parameters(
    task_window=100,
    completeness_threshold=Fraction(4, 5),
    dominance_threshold=Fraction(1, 20),
    min_validator_stake_rao=5000 * 10**9,
)


def parameters(**changes):
    return replace(DEFAULT, **changes)


def sample(seq, validator, miner, task_id, *, is_passed=True, **changes):
    """One sample; `task_id` may be the text of a legacy sample id, which names no task."""
    is_legacy = isinstance(task_id, str)
    return {
        "seq": seq,
        "received_at_ms": 1_000 + seq,
        "validator_hotkey": validator,
        "miner_hotkey": miner,
        "task_id": None if is_legacy else task_id,
        "task_key": str(task_id),
        "is_passed": is_passed,
        "confidence": None,
        "latency_ms": None,
    } | changes


def log_of(*samples):
    return pl.DataFrame(samples, schema=schema(ARCHIVED_VOTES), orient="row")


def validators_of(stakes, below_minimum=()):
    """The table from {hotkey: stake_rao}; all are registered but those named."""
    rows = [
        {
            "hotkey": hotkey,
            "uid": uid,
            "stake_rao": stake,
            "is_registered": hotkey not in below_minimum,
        }
        for uid, (hotkey, stake) in enumerate(stakes.items())
    ]
    return conform(pl.DataFrame(rows, schema=schema(VALIDATORS), orient="row"), VALIDATORS)


def miner(hotkey, uid, block=1, *, is_valid=True, **changes):
    row = dict.fromkeys(MINERS.names) | {"hotkey": hotkey, "uid": uid, "block": block}
    return row | {"is_valid": is_valid, "invalid_reason": None if is_valid else "why"} | changes


def miners_of(*rows):
    return conform(pl.DataFrame(rows, schema=schema(MINERS), orient="row"), MINERS)


def verdicts_of(counts, first_task_id=1):
    """Verdicts from {miner: (passed, evaluated)} over consecutive tasks, the passed ones first."""
    rows = [
        {
            "miner_hotkey": hotkey,
            "task_id": first_task_id + index,
            "is_passed": index < passed,
            "stake_passed_rao": int(index < passed),
            "stake_total_rao": 1,
            "validator_count": 1,
            "updated_at_ms": 1,
        }
        for hotkey, (passed, evaluated) in counts.items()
        for index in range(evaluated)
    ]
    return pl.DataFrame(rows, schema=schema(VERDICTS), orient="row")


@dataclass(frozen=True)
class Tables:
    """All that the rules make of one log."""

    verdicts: pl.DataFrame
    scores: pl.DataFrame
    window: scoring.Window | None
    miner_scores: pl.DataFrame
    ranks: pl.DataFrame
    weights: pl.DataFrame
    outcome: weighting.Outcome


def tables_of(log, validators, miners, latest_task_id=None, params=DEFAULT):
    """Run all rules, from every version that was ever submitted."""
    current = votes.newest_versions(log)
    weighed = votes.votes(current, validators)
    verdicts = votes.verdicts(weighed)
    scores = scoring.scores(scoring.score_entries(current), validators, miners)
    window = scoring.scoring_window(scoring.counting_tasks(weighed), latest_task_id, params)
    miner_scores = scoring.miner_scores(verdicts, scores, miners, window, params)
    ranks = ranking.ranks(miner_scores, miners, params)
    return Tables(
        verdicts,
        scores,
        window,
        miner_scores,
        ranks,
        weighting.weights(ranks),
        weighting.outcome(ranks, miners, window),
    )


def ranked(counts, miner_rows, params=DEFAULT):
    """Ranks of {miner: (passed, evaluated)} in a window that is complete."""
    miners = miners_of(*miner_rows)
    size = params.task_window
    window = scoring.Window(first=1, last=size, size=size)
    no_scores = scoring.scores(scoring.score_entries(log_of()), validators_of({}), miners)
    figures = scoring.miner_scores(verdicts_of(counts), no_scores, miners, window, params)
    return ranking.ranks(figures, miners, params)
