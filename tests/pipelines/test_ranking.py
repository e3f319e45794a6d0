"""Dominance and ranks, one test a trap."""

from fractions import Fraction

import pytest

from pipelines import ranking
from tests.pipelines.rule_builders import (
    DEFAULT,
    log_of,
    miner,
    miners_of,
    parameters,
    ranked,
    sample,
    tables_of,
    validators_of,
)


def winner(counts, miner_rows, params=DEFAULT):
    """The hotkey at rank 1, which must be eligible."""
    first = ranked(counts, miner_rows, params).row(0, named=True)
    assert first["is_eligible"]
    return first["miner_hotkey"]


def by_age(*hotkeys):
    return [miner(hotkey, uid, block=100 + uid) for uid, hotkey in enumerate(hotkeys)]


def test_85_against_80_percent_wins_because_an_exact_lead_counts():
    # In floats 0.80 + 0.05 is 0.8500000000000001.
    assert winner({"old": (80, 100), "new": (85, 100)}, by_age("old", "new")) == "new"


def test_an_exact_lead_counts_over_different_numbers_of_tasks():
    assert winner({"old": (80, 100), "new": (68, 80)}, by_age("old", "new")) == "new"


def test_less_than_the_lead_leaves_the_older_miner_the_winner():
    assert winner({"old": (80, 100), "new": (84, 100)}, by_age("old", "new")) == "old"


def test_of_50_54_and_58_percent_by_age_the_oldest_wins():
    # .58 leads .50 by enough, but not .54, which itself does not dominate.
    counts = {"A": (50, 100), "B": (54, 100), "C": (58, 100)}

    assert winner(counts, by_age("A", "B", "C")) == "A"


def test_of_several_that_dominate_the_youngest_wins():
    counts = {"A": (50, 100), "B": (60, 100), "C": (70, 100), "D": (74, 100)}

    assert winner(counts, by_age("A", "B", "C", "D")) == "C"


def test_an_ineligible_miner_dominates_nobody_and_bars_nobody():
    counts = {"A": (79, 79), "B": (50, 100), "C": (55, 100)}

    assert winner(counts, by_age("A", "B", "C")) == "C"


def test_age_is_the_commit_block_not_the_uid():
    counts = {"A": (80, 100), "B": (82, 100)}

    assert winner(counts, [miner("A", 1, block=200), miner("B", 2, block=100)]) == "B"


def test_an_unknown_block_comes_last():
    counts = {"A": (80, 100), "B": (80, 100)}

    assert winner(counts, [miner("A", 1, block=None), miner("B", 2, block=10**9)]) == "B"


def test_miners_of_one_block_stand_by_hotkey():
    counts = {"B": (84, 100), "A": (80, 100)}

    assert winner(counts, [miner("B", 1, block=5), miner("A", 2, block=5)]) == "A"


def test_without_a_threshold_an_equal_younger_miner_dominates():
    counts = {"A": (80, 100), "B": (80, 100)}

    assert winner(counts, by_age("A", "B"), parameters(dominance_threshold=Fraction(0))) == "B"


def test_the_first_one_always_dominates_even_if_it_passed_nothing():
    assert winner({"A": (0, 100), "B": (4, 100)}, by_age("A", "B")) == "A"


def test_ranks_are_the_winner_then_the_eligible_then_the_ineligible():
    counts = {
        "young": (84, 100),
        "oldest": (80, 100),
        "tie b": (70, 90),
        "tie a": (70, 100),
        "seldom": (79, 79),
        "rarely": (1, 1),
        "also": (1, 1),
    }
    rows = [miner("oldest", 7, block=1)]
    rows += [miner(hotkey, uid, block=9) for uid, hotkey in enumerate(counts) if hotkey != "oldest"]

    found = ranked(counts, [*rows, miner("silent", 8), miner("invalid", 9, is_valid=False)])

    assert found.select("rank", "miner_hotkey", "is_eligible").rows() == [
        (1, "oldest", True),
        (2, "young", True),
        (3, "tie a", True),
        (4, "tie b", True),
        (5, "seldom", False),
        (6, "also", False),
        (7, "rarely", False),
    ]


def test_a_row_of_ranks_says_all_of_its_miner():
    assert ranked({"M": (80, 100)}, [miner("M", 7, block=None)]).to_dicts() == [
        {
            "rank": 1,
            "miner_hotkey": "M",
            "uid": 7,
            "passed_count": 80,
            "tasks_evaluated": 100,
            "pass_rate": 0.8,
            "block": None,
            "is_eligible": True,
        }
    ]


def test_when_nobody_is_eligible_rank_1_is_not_a_winner():
    assert ranked({"M": (79, 79)}, [miner("M", 7)]).select("rank", "is_eligible").rows() == [
        (1, False)
    ]


def test_nobody_to_rank():
    assert ranked({}, []).is_empty()
    assert ranked({}, [miner("silent", 1)]).is_empty()


def test_a_uid_handed_to_a_new_hotkey_inherits_nothing():
    log = log_of(
        *(sample(task_id, "V", "predecessor", task_id) for task_id in range(1, 101)),
        *(
            sample(100 + task_id, "V", "M", task_id, is_passed=task_id <= 50)
            for task_id in range(1, 101)
        ),
    )
    before = miners_of(miner("predecessor", 7, block=1), miner("M", 8, block=2))
    after = miners_of(miner("newcomer", 7, block=3), miner("M", 8, block=2))
    validators = validators_of({"V": 1})

    assert tables_of(log, validators, before).outcome.winner_hotkey == "predecessor"
    made = tables_of(log, validators, after)
    assert made.ranks.select("miner_hotkey", "uid").rows() == [("M", 8)]
    assert made.miner_scores.filter(miner_hotkey="newcomer")["tasks_evaluated"].item() == 0


@pytest.mark.parametrize("reason", ["blacklisted", "duplicate_model:earliest_uid=1"])
def test_a_blacklisted_or_invalid_miner_neither_wins_nor_bars(reason):
    log = log_of(
        *(
            sample(2 * task_id + (hotkey == "B"), "V", hotkey, task_id, is_passed=hotkey == "A")
            for task_id in range(1, 101)
            for hotkey in ("A", "B")
        )
    )
    miners = miners_of(miner("A", 1, is_valid=False, invalid_reason=reason), miner("B", 2))

    made = tables_of(log, validators_of({"V": 1}), miners)

    assert made.ranks["miner_hotkey"].to_list() == ["B"]
    assert made.outcome.winner_hotkey == "B"


def test_nobody_dominates_among_nobody():
    eligible = ranked({}, [])

    assert ranking.dominant_miner(eligible, DEFAULT.dominance_threshold) is None
