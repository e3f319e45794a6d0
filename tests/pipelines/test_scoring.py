"""Score entries, the window, and miners' figures in it, one test a trap."""

from fractions import Fraction

import pytest

from pipelines.scoring import (
    Window,
    counting_tasks,
    miner_scores,
    score_entries,
    scores,
    scoring_window,
)
from pipelines.votes import votes
from tests.pipelines.rule_builders import (
    log_of,
    miner,
    miners_of,
    parameters,
    sample,
    tables_of,
    validators_of,
    verdicts_of,
)

WINDOW = Window(first=1, last=100, size=100)
NO_SCORES = scores(score_entries(log_of()), validators_of({}), miners_of())


def window_of(*samples, latest_task_id=None, task_window=100):
    weighed = votes(log_of(*samples), validators_of({"V": 10, "poor": 1}, below_minimum={"poor"}))
    return scoring_window(
        counting_tasks(weighed), latest_task_id, parameters(task_window=task_window)
    )


def figures(counts, window=WINDOW, *, first_task_id=1, miners=None, **changes):
    """Window figures of {miner: (passed, evaluated)} as {miner: row}."""
    rows = miners or [miner(hotkey, uid) for uid, hotkey in enumerate(counts)]
    found = miner_scores(
        verdicts_of(counts, first_task_id),
        NO_SCORES,
        miners_of(*rows),
        window,
        parameters(**changes),
    )
    return {row["miner_hotkey"]: row for row in found.to_dicts()}


def test_a_score_entry_counts_all_history_and_samples_without_a_task():
    log = log_of(
        sample(1, "V", "M", 1, is_passed=True),
        sample(2, "V", "M", 5_000, is_passed=False, received_at_ms=9_000),
        sample(3, "V", "M", "legacy", is_passed=True),
        sample(4, "V", "M", 0, is_passed=False),
    )

    found = scores(score_entries(log), validators_of({"V": 1}), miners_of(miner("M", 0)))

    assert found.to_dicts() == [
        {
            "validator_hotkey": "V",
            "miner_hotkey": "M",
            "total_samples": 4,
            "total_passed": 2,
            "score": 0.5,
            "updated_at_ms": 9_000,
        }
    ]


def test_score_entries_are_of_registered_validators_and_valid_miners_only():
    log = log_of(
        sample(1, "V", "M", 1),
        sample(2, "gone", "M", 1),
        sample(3, "poor", "M", 1),
        sample(4, "V", "invalid", 1),
        sample(5, "V", "unknown", 1),
    )

    found = scores(
        score_entries(log),
        validators_of({"V": 10, "poor": 1}, below_minimum={"poor"}),
        miners_of(miner("M", 0), miner("invalid", 1, is_valid=False)),
    )

    assert found.select("validator_hotkey", "miner_hotkey").rows() == [("V", "M")]


def test_the_window_ends_at_the_greatest_task_with_a_vote():
    window = window_of(sample(1, "V", "M", 250), sample(2, "V", "M", 120))

    assert window == Window(first=151, last=250, size=100)
    assert window.is_complete


def test_a_shorter_history_is_a_window_from_the_first_task_and_incomplete():
    window = window_of(sample(1, "V", "M", 99))

    assert window == Window(first=1, last=99, size=100)
    assert not window.is_complete


def test_a_history_as_long_as_the_window_is_complete():
    window = window_of(sample(1, "V", "M", 100))

    assert window == Window(first=1, last=100, size=100)
    assert window.is_complete


@pytest.mark.parametrize("latest_task_id", [249, 150, 120])
def test_tasks_above_the_latest_announced_one_are_passed_over(latest_task_id):
    log = [sample(1, "V", "M", 250), sample(2, "V", "M", 120)]

    assert window_of(*log, latest_task_id=latest_task_id).last == 120


def test_the_latest_announced_task_itself_counts():
    assert window_of(sample(1, "V", "M", 250), latest_task_id=250).last == 250


def test_an_announced_task_without_votes_does_not_move_the_window():
    assert window_of(sample(1, "V", "M", 120), latest_task_id=900).last == 120


@pytest.mark.parametrize("voter", ["gone", "poor"])
def test_only_votes_of_registered_validators_move_the_window(voter):
    assert window_of(sample(1, "V", "M", 120), sample(2, voter, "M", 130)).last == 120


def test_without_a_vote_that_counts_there_is_no_window():
    assert window_of() is None
    assert window_of(sample(1, "gone", "M", 7), sample(2, "V", "M", "legacy")) is None
    assert window_of(sample(1, "V", "M", 7), latest_task_id=6) is None


def test_one_sample_with_task_id_1_000_000_000_changes_nothing():
    honest = [
        sample(task_id, "V", hotkey, task_id, is_passed=hotkey == "M" or task_id > 30)
        for task_id in range(1, 101)
        for hotkey in ("M", "N")
    ]
    absurd = sample(1_000, "V", "N", 1_000_000_000)
    subnet = {
        "validators": validators_of({"V": 10}),
        "miners": miners_of(miner("M", 3), miner("N", 4)),
        "latest_task_id": 100,
    }

    without, with_it = (
        tables_of(log_of(*honest), **subnet),
        tables_of(log_of(*honest, absurd), **subnet),
    )

    assert without.outcome.winner_hotkey == "M"
    assert with_it.window == without.window
    assert with_it.miner_scores.equals(without.miner_scores)
    assert with_it.ranks.equals(without.ranks)
    assert with_it.weights.equals(without.weights)
    assert with_it.outcome == without.outcome


def test_80_of_100_tasks_are_eligible_and_79_are_not():
    found = figures({"M": (40, 80), "N": (79, 79)})

    assert found["M"] == {
        "miner_hotkey": "M",
        "tasks_evaluated": 80,
        "passed_count": 40,
        "pass_rate": 0.5,
        "completeness": 0.8,
        "validator_count": 0,
        "is_eligible": True,
    }
    assert (found["N"]["completeness"], found["N"]["is_eligible"]) == (0.79, False)


@pytest.mark.parametrize(
    ("evaluated", "is_eligible"), [(2, False), (3, True)], ids=["2 of 7", "3 of 7"]
)
def test_a_threshold_between_two_counts_is_reached_by_the_greater_one(evaluated, is_eligible):
    # A third of 7 tasks is 2 1/3.
    found = figures(
        {"M": (0, evaluated)},
        Window(first=1, last=7, size=7),
        task_window=7,
        completeness_threshold=Fraction(1, 3),
    )

    assert found["M"]["is_eligible"] is is_eligible


def test_nobody_is_eligible_while_the_window_is_incomplete():
    # All 99 tasks there ever were would be 99 % complete.
    found = figures({"M": (99, 99)}, Window(first=1, last=99, size=100))

    assert (found["M"]["completeness"], found["M"]["is_eligible"]) == (0.99, False)


def test_without_a_window_every_figure_is_zero():
    assert figures({"M": (5, 5)}, None, completeness_threshold=Fraction(0))["M"] == {
        "miner_hotkey": "M",
        "tasks_evaluated": 0,
        "passed_count": 0,
        "pass_rate": 0.0,
        "completeness": 0.0,
        "validator_count": 0,
        "is_eligible": False,
    }


def test_tasks_outside_the_window_never_count():
    # Verdicts on tasks 100 to 202, the first three passed; the window leaves out both ends.
    found = figures({"M": (3, 103)}, Window(first=102, last=201, size=100), first_task_id=100)

    assert (found["M"]["tasks_evaluated"], found["M"]["passed_count"]) == (100, 1)


def test_figures_are_of_valid_miners_judged_or_not():
    found = figures(
        {"M": (1, 1), "invalid": (1, 1), "unknown": (1, 1)},
        miners=[miner("M", 0), miner("invalid", 1, is_valid=False), miner("silent", 2)],
    )

    assert sorted(found) == ["M", "silent"]
    assert (found["silent"]["tasks_evaluated"], found["silent"]["pass_rate"]) == (0, 0.0)


def test_validator_count_is_the_number_of_score_entries_not_of_votes():
    made = tables_of(
        log_of(
            sample(1, "V", "M", 1),
            sample(2, "V", "M", 2),
            sample(3, "W", "M", 1),
            sample(4, "gone", "M", 1),
        ),
        validators_of({"V": 1, "W": 1}),
        miners_of(miner("M", 0)),
    )

    assert made.miner_scores["validator_count"].to_list() == [2]


def test_a_ratio_is_the_correctly_rounded_quotient():
    # Multiplied by the reciprocal of 5, three would give 0.6000000000000001.
    found = figures({"M": (3, 5), "N": (1, 3)}, Window(first=1, last=5, size=5), task_window=5)

    assert [found["M"]["pass_rate"], found["N"]["completeness"]] == [0.6, 0.6]
