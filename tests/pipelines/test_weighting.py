"""Weights, and why they burn."""

from pipelines.scoring import Window
from pipelines.weighting import Outcome, outcome, weights
from tests.pipelines.rule_builders import miner, miners_of, ranked

COMPLETE = Window(first=1, last=100, size=100)


def test_the_winner_gets_everything():
    ranks = ranked(
        {"A": (80, 100), "B": (70, 100), "C": (1, 1)},
        [miner("A", 9, block=1), miner("B", 4, block=2), miner("C", 2, block=3)],
    )

    assert weights(ranks).to_dicts() == [
        {"miner_hotkey": "A", "uid": 9, "pass_rate": 0.8, "weight": 1.0},
        {"miner_hotkey": "C", "uid": 2, "pass_rate": 1.0, "weight": 0.0},
        {"miner_hotkey": "B", "uid": 4, "pass_rate": 0.7, "weight": 0.0},
    ]


def test_a_winner_at_uid_0_is_no_burn():
    rows = [miner("A", 0), miner("B", 1)]
    ranks = ranked({"A": (80, 100), "B": (80, 100)}, rows)

    assert outcome(ranks, miners_of(*rows), COMPLETE) == Outcome(0, "A", None)


def test_the_winner_is_named_by_its_uid_in_the_snapshot():
    rows = [miner("A", 42)]

    assert outcome(ranked({"A": (80, 100)}, rows), miners_of(*rows), COMPLETE) == Outcome(
        42, "A", None
    )


def test_an_ineligible_miner_at_rank_1_gets_nothing():
    rows = [miner("A", 42)]
    ranks = ranked({"A": (79, 79)}, rows)

    assert weights(ranks)["weight"].to_list() == [0.0]
    assert outcome(ranks, miners_of(*rows), COMPLETE) == Outcome(0, None, "no_rank")


def test_an_incomplete_or_missing_window_burns():
    nobody, rows = ranked({}, []), miners_of(miner("A", 42))
    incomplete = Window(first=1, last=99, size=100)

    assert outcome(nobody, rows, incomplete) == Outcome(0, None, "window_incomplete")
    assert outcome(nobody, rows, None) == Outcome(0, None, "window_incomplete")


def test_no_valid_miner_burns():
    nobody, rows = ranked({}, []), miners_of(miner("A", 42, is_valid=False))

    assert outcome(nobody, rows, COMPLETE) == Outcome(0, None, "no_valid_miner")
    assert outcome(nobody, miners_of(), COMPLETE) == Outcome(0, None, "no_valid_miner")


def test_nobody_ranked_is_an_empty_table():
    assert weights(ranked({}, [])).is_empty()
