"""The Polars rules against the slow reference, and what no order or repetition may change."""

import random
from dataclasses import asdict
from fractions import Fraction

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipelines.frames import violations
from tests.pipelines.rule_builders import (
    DEFAULT,
    log_of,
    miner,
    miners_of,
    parameters,
    tables_of,
    validators_of,
)
from tests.pipelines.rule_reference import reference
from tests.properties import tried
from warehouse.tables import MINER_SCORES, RANKS, SCORES, VERDICTS, WEIGHTS

MINER_HOTKEYS = ["Ma", "Mb", "Mc", "Md", "Me"]
# The last one is on no metagraph; V4 has left, and V3 is below the minimum.
JUDGED_HOTKEYS = [*MINER_HOTKEYS, "Mz"]
VALIDATOR_HOTKEYS = ["V0", "V1", "V2", "V3", "V4"]
# Small ones meet in ties, the large ones sum to what a metagraph may hold at most.
STAKES_RAO = st.sampled_from([0, 1, 2, 3, 10**9, 2**60])
THRESHOLDS = st.sampled_from(
    [Fraction(0), Fraction(1, 20), Fraction(1, 3), Fraction(1, 2), Fraction(4, 5), Fraction(1)]
)

thorough = tried(200, 2_000)
brief = tried(60, 800)


@st.composite
def subnets(draw):
    """Validators, miners, the latest task and parameters."""
    stakes = {hotkey: draw(STAKES_RAO) for hotkey in ("V0", "V1", "V2", "V3")}
    miners = [
        miner(
            hotkey,
            uid,
            block=draw(st.none() | st.integers(0, 3)),
            is_valid=draw(st.sampled_from([True, True, True, False])),
        )
        for uid, hotkey in enumerate(draw(st.permutations(MINER_HOTKEYS)))
    ]
    return {
        "validators": validators_of(stakes, below_minimum={"V3"}),
        "miners": miners_of(*miners[: draw(st.sampled_from([0, 1, 3, 5, 5]))]),
        "latest_task_id": draw(st.none() | st.integers(0, 12)),
        "params": parameters(
            task_window=draw(st.integers(1, 5)),
            completeness_threshold=draw(THRESHOLDS),
            dominance_threshold=draw(THRESHOLDS),
        ),
    }


@st.composite
def submissions(draw):
    """What one validator says about several miners of one task, in one request."""
    task_id = draw(st.integers(0, 7) | st.sampled_from([1_000_000_000, "legacy"]))
    hotkeys = draw(st.lists(st.sampled_from(JUDGED_HOTKEYS), min_size=1, max_size=6))
    validator = draw(st.sampled_from(VALIDATOR_HOTKEYS))
    dice = draw(st.randoms(use_true_random=False))
    return [judgement(dice, validator, hotkey, task_id) for hotkey in hotkeys]


@st.composite
def histories(draw):
    """Requests as a living subnet sends them: most validators judge most miners, task by task.

    Requests drawn one by one seldom fill a window, and then nobody is ranked.
    """
    dice = random.Random(draw(st.integers(0, 2**32)))
    return [
        [
            judgement(dice, validator, hotkey, task_id)
            for hotkey in JUDGED_HOTKEYS
            if dice.random() < 0.9
        ]
        or [judgement(dice, validator, "Ma", task_id)]
        for task_id in range(1, draw(st.integers(2, 9)))
        for validator in VALIDATOR_HOTKEYS
        for _ in range(dice.choice([0, 1, 1, 1, 2]))
    ]


def judgement(dice, validator, hotkey, task_id):
    return {
        "received_at_ms": dice.randrange(20),
        "validator_hotkey": validator,
        "miner_hotkey": hotkey,
        "task_id": None if task_id == "legacy" else task_id,
        "task_key": str(task_id),
        "is_passed": dice.random() < 0.6,
        "confidence": None,
        "latency_ms": dice.choice([None, dice.randrange(9)]),
    }


def numbered(requests):
    """Samples in the order of their requests, with the seqs that a log would give them."""
    samples = [sample for request in requests for sample in request]
    return [{"seq": seq, **sample} for seq, sample in enumerate(samples, start=1)]


logs = st.lists(submissions(), max_size=10) | histories()


@thorough
@given(subnets(), logs, st.randoms(use_true_random=False))
def test_the_rules_equal_the_reference(subnet, requests, shuffler):
    samples = numbered(requests)
    rows = samples.copy()
    shuffler.shuffle(rows)

    made = tables_of(log_of(*rows), **subnet)

    expected = reference(
        samples,
        subnet["validators"].to_dicts(),
        subnet["miners"].to_dicts(),
        subnet["latest_task_id"],
        subnet["params"],
    )
    assert made.verdicts.to_dicts() == expected["verdicts"]
    assert made.scores.to_dicts() == expected["scores"]
    assert (made.window and (made.window.first, made.window.last)) == expected["window"]
    assert made.miner_scores.to_dicts() == expected["miner_scores"]
    assert made.ranks.to_dicts() == expected["ranks"]
    assert made.weights.to_dicts() == expected["weights"]
    assert tuple(asdict(made.outcome).values()) == expected["outcome"]


@brief
@given(subnets(), logs)
def test_tables_are_as_declared_and_weights_sum_to_one_or_burn(subnet, requests):
    made = tables_of(log_of(*numbered(requests)), **subnet)

    for frame, table in (
        (made.verdicts, VERDICTS),
        (made.scores, SCORES),
        (made.miner_scores, MINER_SCORES),
        (made.ranks, RANKS),
        (made.weights, WEIGHTS),
    ):
        assert violations(frame, table) == []
    has_winner = made.outcome.winner_hotkey is not None
    assert made.weights["weight"].sum() == (1.0 if has_winner else 0.0)
    assert (made.outcome.burn_reason is None) == has_winner
    winners = made.ranks.filter(pl.col("is_eligible") & (pl.col("rank") == 1))
    assert winners["miner_hotkey"].to_list() == [made.outcome.winner_hotkey] * has_winner


@brief
@given(subnets(), logs, st.randoms(use_true_random=False))
def test_rows_in_another_order_or_twice_change_no_table(subnet, requests, shuffler):
    samples = numbered(requests)
    rows = samples + shuffler.sample(samples, len(samples) // 2)
    shuffler.shuffle(rows)

    once, again = tables_of(log_of(*samples), **subnet), tables_of(log_of(*rows), **subnet)

    assert_equal_tables(once, again)


@brief
@given(subnets(), logs, st.randoms(use_true_random=False))
def test_submissions_in_another_order_or_twice_change_no_outcome(subnet, requests, shuffler):
    """Validators send at their own pace and resend: only each one's own order has a meaning."""
    repeated = [request for request in requests for _ in range(shuffler.choice([1, 1, 2]))]
    queues = {
        hotkey: [request for request in repeated if request[0]["validator_hotkey"] == hotkey]
        for hotkey in VALIDATOR_HOTKEYS
    }
    interleaved = []
    while waiting := [queue for queue in queues.values() if queue]:
        interleaved.append(shuffler.choice(waiting).pop(0))

    once = tables_of(log_of(*numbered(requests)), **subnet)
    again = tables_of(log_of(*numbered(interleaved)), **subnet)

    # Latency is the newest vote's, so it alone may follow the order in which they arrived.
    assert_equal_tables(once, again, but_for=["latency_ms"])


def assert_equal_tables(once, again, but_for=()):
    assert once.verdicts.drop(but_for).equals(again.verdicts.drop(but_for))
    assert once.scores.equals(again.scores)
    assert once.window == again.window
    assert once.miner_scores.equals(again.miner_scores)
    assert once.ranks.equals(again.ranks)
    assert once.weights.equals(again.weights)
    assert once.outcome == again.outcome


def test_a_large_log_gives_the_same_tables_in_any_order():
    """Enough rows for Polars to split the work among its threads."""
    dice = random.Random(5)
    validators = validators_of({f"V{i}": dice.randrange(10**12, 10**15) for i in range(8)})
    miners = miners_of(*(miner(f"M{i:02}", i, block=dice.randrange(10)) for i in range(20)))
    samples = [
        {
            "seq": seq,
            "received_at_ms": dice.randrange(10**6),
            "validator_hotkey": f"V{seq % 8}",
            "miner_hotkey": f"M{seq // 8 % 20:02}",
            "task_id": seq // 160,
            "task_key": str(seq // 160),
            "is_passed": dice.random() < 0.6,
            "confidence": None,
            "latency_ms": dice.choice([None, dice.randrange(1000)]),
        }
        for seq in range(24_000)
    ]
    made = tables_of(log_of(*samples), validators, miners)
    dice.shuffle(samples)

    assert made.outcome.winner_hotkey is not None
    assert_equal_tables(made, tables_of(log_of(*samples), validators, miners))
    expected = reference(samples, validators.to_dicts(), miners.to_dicts(), None, DEFAULT)
    assert made.verdicts.to_dicts() == expected["verdicts"]
    assert made.ranks.to_dicts() == expected["ranks"]


@brief
@given(subnets(), logs, st.randoms(use_true_random=False))
def test_votes_about_a_miner_that_cannot_win_change_nothing_for_the_others(
    subnet, requests, shuffler
):
    """Whoever is invalid or no miner at all: what is said of it is nobody else's figure."""
    valid = set(subnet["miners"].filter("is_valid")["hotkey"])
    others = [
        {**sample, "miner_hotkey": hotkey, "is_passed": shuffler.random() < 0.5}
        for request in requests
        for sample in request
        for hotkey in JUDGED_HOTKEYS
        if hotkey not in valid and shuffler.random() < 0.1
    ]

    once = tables_of(log_of(*numbered(requests)), **subnet)
    again = tables_of(log_of(*numbered([*requests, others])), **subnet)

    # They are about tasks that were judged already, by who judged them.
    assert once.window == again.window
    is_valid = pl.col("miner_hotkey").is_in(list(valid))
    assert once.verdicts.filter(is_valid).equals(again.verdicts.filter(is_valid))
    assert once.scores.equals(again.scores)
    assert once.miner_scores.equals(again.miner_scores)
    assert once.ranks.equals(again.ranks)
    assert once.weights.equals(again.weights)
    assert once.outcome == again.outcome


@brief
@given(subnets(), logs, st.sampled_from([2, 3, 7]))
def test_the_unit_of_stake_changes_no_outcome(subnet, requests, factor):
    """Only shares of the stake count, so that all of it may grow at once."""
    small = subnet["validators"].with_columns(pl.col("stake_rao").clip(upper_bound=10**9))
    large = small.with_columns(pl.col("stake_rao") * factor)
    log = log_of(*numbered(requests))

    once = tables_of(log, **{**subnet, "validators": small})
    again = tables_of(log, **{**subnet, "validators": large})

    sums = ["stake_passed_rao", "stake_total_rao"]
    assert_equal_tables(once, again, but_for=sums)


@brief
@given(subnets(), logs)
def test_votes_of_who_has_left_decide_nothing(subnet, requests):
    """They count as looks at a task; who passed is for those with stake to say."""
    gone = {"V3", "V4"}
    turned = [
        [
            {**sample, "is_passed": not sample["is_passed"]}
            if sample["validator_hotkey"] in gone
            else sample
            for sample in request
        ]
        for request in requests
    ]

    once = tables_of(log_of(*numbered(requests)), **subnet)
    again = tables_of(log_of(*numbered(turned)), **subnet)

    assert_equal_tables(once, again)


@brief
@given(subnets(), logs)
def test_the_same_log_gives_the_same_tables(subnet, requests):
    log = log_of(*numbered(requests))
    assert_equal_tables(tables_of(log, **subnet), tables_of(log, **subnet))


@brief
@given(subnets(), logs)
def test_who_wins_is_valid_eligible_and_alone(subnet, requests):
    made = tables_of(log_of(*numbered(requests)), **subnet)
    paid = made.weights.filter(pl.col("weight") > 0)
    assert paid.height == (made.outcome.winner_hotkey is not None)
    if made.outcome.winner_hotkey is None:
        assert (made.outcome.winner_uid, bool(made.outcome.burn_reason)) == (0, True)
        return
    row = subnet["miners"].filter(pl.col("hotkey") == made.outcome.winner_hotkey).to_dicts()
    assert [(one["uid"], one["is_valid"]) for one in row] == [(made.outcome.winner_uid, True)]
    # A better pass rate beats it only where its owner may not win.
    (winner,) = made.ranks.filter(pl.col("rank") == 1).to_dicts()
    assert winner["is_eligible"]
    assert paid["miner_hotkey"].to_list() == [winner["miner_hotkey"]]
