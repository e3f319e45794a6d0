"""Votes and verdicts, one test a trap."""

import polars as pl

from pipelines.frames import schema
from pipelines.votes import newest_versions, verdicts, votes
from tests.pipelines.rule_builders import log_of, sample, validators_of
from warehouse.tables import ARCHIVED_VOTES


def verdict(stakes, *samples, below_minimum=()):
    """The one verdict that these samples lead to."""
    weighed = votes(log_of(*samples), validators_of(stakes, below_minimum))
    return verdicts(weighed).row(0, named=True)


def test_a_resubmission_flips_a_verdict():
    versions = log_of(
        sample(1, "V", "M", 7, is_passed=True), sample(2, "V", "M", 7, is_passed=False)
    )

    newest = newest_versions(versions)

    assert newest["seq"].to_list() == [2]
    assert verdicts(votes(newest, validators_of({"V": 1})))["is_passed"].to_list() == [False]


def test_versions_are_told_apart_by_task_miner_and_validator():
    versions = log_of(
        sample(1, "V", "M", 7),
        sample(2, "V", "M", 8),
        sample(3, "V", "N", 7),
        sample(4, "W", "M", 7),
        sample(5, "V", "M", "first"),
        sample(6, "V", "M", "second"),
    )

    assert sorted(newest_versions(versions)["seq"]) == [1, 2, 3, 4, 5, 6]


def test_a_vote_carries_the_stake_of_its_validator_and_one_without_a_task_is_none():
    log = log_of(
        sample(1, "V", "M", 7, latency_ms=3), sample(2, "V", "M", "legacy"), sample(3, "W", "M", 7)
    )

    assert votes(log, validators_of({"V": 60})).to_dicts() == [
        sample(1, "V", "M", 7, latency_ms=3) | {"stake_rao": 60, "is_registered": True},
        sample(3, "W", "M", 7) | {"stake_rao": 0, "is_registered": False},
    ]


def test_no_samples_are_no_votes_and_no_verdicts():
    weighed = votes(log_of(), validators_of({"V": 1}))

    assert weighed.schema == schema(ARCHIVED_VOTES) | {
        "stake_rao": pl.Int64,
        "is_registered": pl.Boolean,
    }
    assert verdicts(weighed).is_empty()


def test_more_than_half_of_the_stake_decides_not_more_than_half_of_the_votes():
    assert verdict(
        {"A": 60, "B": 30, "C": 10},
        sample(1, "A", "M", 7, is_passed=True),
        sample(2, "B", "M", 7, is_passed=False),
        sample(3, "C", "M", 7, is_passed=False, latency_ms=250),
    ) == {
        "miner_hotkey": "M",
        "task_id": 7,
        "is_passed": True,
        "stake_passed_rao": 60,
        "stake_total_rao": 100,
        "validator_count": 3,
        "latency_ms": 250,
        "updated_at_ms": 1_003,
    }


def test_an_exact_stake_tie_fails():
    opposed = [sample(1, "A", "M", 7, is_passed=True), sample(2, "B", "M", 7, is_passed=False)]

    assert not verdict({"A": 50, "B": 50}, *opposed)["is_passed"]


def test_one_rao_more_than_half_passes():
    # As floats the two stakes are equal.
    opposed = [sample(1, "A", "M", 7, is_passed=True), sample(2, "B", "M", 7, is_passed=False)]

    assert verdict({"A": 2**60 + 1, "B": 2**60}, *opposed)["is_passed"]
    assert not verdict({"A": 2**60, "B": 2**60 + 1}, *opposed)["is_passed"]


def test_the_largest_stakes_that_a_metagraph_may_hold_do_not_overflow():
    found = verdict({"A": 2**61, "B": 2**61 - 1}, sample(1, "A", "M", 7), sample(2, "B", "M", 7))

    assert found["stake_total_rao"] == 2**62 - 1
    assert found["is_passed"]


def test_no_stake_at_all_is_not_passed():
    assert not verdict({"A": 0}, sample(1, "A", "M", 7))["is_passed"]


def test_a_validator_that_leaves_takes_its_stake_along():
    opposed = [sample(1, "A", "M", 7, is_passed=True), sample(2, "B", "M", 7, is_passed=False)]

    assert verdict({"A": 60, "B": 40}, *opposed)["is_passed"]
    after = verdict({"B": 40}, *opposed)
    assert (after["is_passed"], after["stake_passed_rao"], after["validator_count"]) == (
        False,
        0,
        2,
    )


def test_a_validator_that_falls_below_the_minimum_weighs_nothing():
    opposed = [sample(1, "A", "M", 7, is_passed=True), sample(2, "B", "M", 7, is_passed=False)]

    after = verdict({"A": 60, "B": 40}, *opposed, below_minimum={"A"})

    assert (after["is_passed"], after["stake_total_rao"], after["validator_count"]) == (
        False,
        40,
        2,
    )


def test_a_task_seen_only_by_departed_validators_is_evaluated_and_not_passed():
    found = verdict({"A": 60}, sample(1, "gone", "M", 7), sample(2, "also gone", "M", 7))

    assert (found["is_passed"], found["stake_total_rao"], found["validator_count"]) == (False, 0, 2)


def test_latency_is_of_the_newest_vote_that_has_one_and_updated_is_the_newest_receipt():
    # Newest means highest seq: a clock that was set back does not change who came last.
    found = verdict(
        {"A": 1, "B": 1, "C": 1},
        sample(12, "B", "M", 7, latency_ms=200, received_at_ms=5_000),
        sample(11, "A", "M", 7, latency_ms=900, received_at_ms=8_000),
        sample(13, "C", "M", 7, latency_ms=None, received_at_ms=6_000),
    )

    assert (found["latency_ms"], found["updated_at_ms"]) == (200, 8_000)


def test_no_vote_has_a_latency():
    assert verdict({"A": 1}, sample(1, "A", "M", 7))["latency_ms"] is None


def test_verdicts_stand_by_miner_and_newest_task_first():
    log = log_of(sample(1, "V", "N", 7), sample(2, "V", "M", 7), sample(3, "V", "M", 10))

    found = verdicts(votes(log, validators_of({"V": 1})))

    assert found.select("miner_hotkey", "task_id").rows() == [("M", 10), ("M", 7), ("N", 7)]
