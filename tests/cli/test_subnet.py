"""The simulated subnet is what it promises, so that the demo's own check means something."""

import json
from fractions import Fraction

import pytest

from cli.demo_home import DemoHome, DemoHomeError
from cli.subnet import MINERS, VALIDATORS, Period, expected_ranks, metagraph, samples
from pipelines.metagraph_file import read_metagraph_file

COMPLETENESS, DOMINANCE = Fraction(4, 5), Fraction(1, 20)
BY_NAME = {miner.name: miner for miner in MINERS}


def ranks(*periods, window=100):
    return expected_ranks(periods, window, COMPLETENESS, DOMINANCE)


def test_no_validator_decides_alone():
    stakes = [validator.stake for validator in VALIDATORS]
    assert max(stakes) * 2 < sum(stakes)
    assert min(stakes) >= 5000


def test_at_most_one_validator_errs_about_a_video_and_some_do():
    errors = 0
    for task_id in range(1, 61):
        said = [samples(validator, task_id, MINERS) for validator in VALIDATORS]
        for position, miner in enumerate(MINERS):
            wrong = sum(own[position]["passed"] != miner.passes(task_id) for own in said)
            assert wrong <= 1
            errors += wrong
    assert errors > 20


def test_samples_are_the_same_every_time_and_fit_the_contract():
    first, second = (samples(VALIDATORS[0], 7, MINERS) for _ in range(2))
    assert first == second
    assert json.loads(first[0]["generated_artifacts"])["overall_score"] >= 0
    assert all(len(sample["reasoning"]) <= 4096 for sample in first)


@pytest.mark.parametrize("first", [1, 121, 5000])
def test_skill_is_the_share_of_passed_tasks(first):
    for miner in MINERS:
        passed = sum(miner.passes(task_id) for task_id in range(first, first + 100))
        assert passed == miner.skill * 100


def test_the_best_miner_wins_though_a_copy_is_as_good_and_a_late_one_better():
    table = ranks(Period(1, 120))
    assert table[0].hotkey == BY_NAME["miner-best"].hotkey
    assert table[0].is_eligible
    assert [line.is_eligible for line in table].count(False) == 2
    absent = {BY_NAME[name].hotkey for name in ("miner-cheater", "miner-broken")}
    assert not absent & {line.hotkey for line in table}


def test_nobody_is_eligible_before_the_window_is_full():
    assert not any(line.is_eligible for line in ranks(Period(1, 99)))
    assert any(line.is_eligible for line in ranks(Period(1, 99), Period(100, 100)))


def test_late_miners_stay_below_the_threshold_however_often_the_demo_runs():
    table = ranks(*(Period(first, first + 29) for first in range(1, 200, 30)))
    assert [line.is_eligible for line in table].count(False) == 2


def test_the_metagraph_file_is_one(tmp_path):
    home = DemoHome(tmp_path)
    with home.locked():
        home.make()
    read = read_metagraph_file(home.metagraph, 99)
    assert json.loads(home.metagraph.read_text()) == metagraph()
    assert read.validators.height == len(VALIDATORS)
    assert read.miners.filter("is_valid").height == len(MINERS) - 1
    assert {path.stat().st_mode & 0o777 for path in (home.own / "keys").iterdir()} == {0o600}


def test_a_home_goes_on_where_it_was(tmp_path):
    home = DemoHome(tmp_path)
    with home.locked():
        first = home.next_period(20, None)
        assert (first.first, first.last) == (1, 20)
        # Interrupted in the middle: the same tasks again, whatever number is asked for.
        assert home.next_period(50, 11) == first
        home.finish(first)
        second = home.next_period(30, 20)
        assert (second.first, second.last) == (21, 50)
        assert home.periods() == [first, second]
        with pytest.raises(DemoHomeError, match="tasks up to 90 that no demo made"):
            home.next_period(5, 90)
        with pytest.raises(DemoHomeError, match="Another demo is running"), home.locked():
            pass


def test_a_damaged_record_is_said_so(tmp_path):
    home = DemoHome(tmp_path)
    with home.locked():
        (home.own / "tasks.json").write_text('[{"first": 1}]')
        with pytest.raises(DemoHomeError, match="damaged"):
            home.periods()
