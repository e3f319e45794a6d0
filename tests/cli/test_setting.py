"""Which answers and which chain let a validator set weights: one refusal a row."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from api.answers import MinerWeight, Weights
from cli.setting import (
    BURN_REASONS,
    ChainFacts,
    Choice,
    DoubtError,
    Limits,
    Served,
    choose,
    refuse_doubts,
)
from pipelines import weighting
from tests.builders import hotkey
from warehouse.hotkeys import ZERO_HOTKEY

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
LIMITS = Limits(netuid=99)
BURNING = replace(LIMITS, burn_reasons=frozenset(BURN_REASONS))
WINNER = MinerWeight(hotkey("winner"), 7, 0.9, 1.0)
OTHER = MinerWeight(hotkey("other"), 8, 0.5, 0.0)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def weights(**changes: object) -> Weights:
    fields = {
        "winner_uid": 7,
        "winner_hotkey": hotkey("winner"),
        "burn_reason": None,
        "miners": (WINNER, OTHER),
        "snapshot_id": "20261123T095900Z",
        "netuid": 99,
        "block": 5_000,
        "computed_at": NOW - seconds(60),
        "valid_until": NOW + seconds(840),
        "watermark": 12,
    }
    return Weights(**{**fields, **changes})


def burn(**changes: object) -> Weights:
    fields = {"winner_uid": 0, "winner_hotkey": None, "burn_reason": "no_rank", "miners": (OTHER,)}
    return weights(**{**fields, **changes})


def served(answer: Weights, **changes: object) -> Served:
    return replace(Served(answer, NOW, NOW), **changes)


def facts(**changes: object) -> ChainFacts:
    return replace(
        ChainFacts(
            block=5_010,
            has_subnet=True,
            hotkey_at_uid=hotkey("winner"),
            is_owners=False,
            own_uid=3,
            has_permit=True,
            last_update=4_000,
            rate_limit_blocks=100,
            weights_min=1,
            weights=(),
        ),
        **changes,
    )


WON = Choice(7, hotkey("winner"), None, 5_000, "20261123T095900Z")
BURNT = Choice(0, None, "no_rank", 5_000, "20261123T095900Z")


def test_the_winner_of_a_whole_and_fresh_answer_is_chosen():
    assert choose(served(weights()), LIMITS) == WON
    assert str(WON) == f"uid 7, {hotkey('winner')}"


def test_a_winner_at_uid_0_is_no_burn():
    miners = (replace(WINNER, uid=0), OTHER)
    choice = choose(served(weights(winner_uid=0, miners=miners)), LIMITS)
    assert (choice.uid, choice.hotkey, choice.burn_reason) == (0, hotkey("winner"), None)


@pytest.mark.parametrize("reason", BURN_REASONS)
def test_a_burn_needs_leave_for_its_reason(reason):
    answer = served(burn(burn_reason=reason))
    others = frozenset(BURN_REASONS) - {reason}
    for limits in (LIMITS, replace(LIMITS, burn_reasons=others)):
        with pytest.raises(DoubtError, match=rf"says burn \({reason}\)"):
            choose(answer, limits)
    choice = choose(answer, replace(LIMITS, burn_reasons=frozenset({reason})))
    assert (choice.uid, choice.hotkey, choice.burn_reason) == (0, None, reason)
    assert str(choice) == f"uid 0, a burn ({reason})"


def test_the_reasons_are_those_of_the_rules():
    assert set(BURN_REASONS) == {
        weighting.NO_RANK,
        weighting.NO_VALID_MINER,
        weighting.WINDOW_INCOMPLETE,
    }


CONTRADICTIONS = {
    "two winners": (
        weights(miners=(WINNER, replace(OTHER, weight=1.0))),
        "not 1.0 for it and 0.0 for everybody else",
    ),
    "a winner who is not listed": (weights(miners=(OTHER,)), "not 1.0 for it"),
    "a winner at another uid": (weights(miners=(replace(WINNER, uid=9), OTHER)), "not 1.0 for it"),
    "a winner with another hotkey": (
        weights(miners=(replace(WINNER, miner_hotkey=hotkey("x")),)),
        "not 1.0 for it",
    ),
    "a share": (weights(miners=(replace(WINNER, weight=0.5), OTHER)), "not 1.0 for it"),
    "a negative weight": (weights(miners=(WINNER, replace(OTHER, weight=-1.0))), "not 1.0 for it"),
    "no number": (
        weights(miners=(WINNER, replace(OTHER, weight=float("nan")))),
        "not 1.0 for it",
    ),
    "nobody has weight": (weights(miners=(replace(WINNER, weight=0.0),)), "not 1.0 for it"),
    "no miners": (weights(miners=()), "not 1.0 for it"),
    "a miner twice": (weights(miners=(WINNER, replace(WINNER, weight=0.0, uid=8))), "twice"),
    "a uid twice": (weights(miners=(WINNER, replace(OTHER, uid=7))), "twice"),
    "a uid that cannot be": (
        weights(winner_uid=65_536, miners=(replace(WINNER, uid=65_536),)),
        "beyond 0 to 65535",
    ),
    "a negative uid": (weights(winner_uid=-1, miners=(replace(WINNER, uid=-1),)), "beyond 0"),
    "the key of empty uids": (
        weights(winner_hotkey=ZERO_HOTKEY, miners=(replace(WINNER, miner_hotkey=ZERO_HOTKEY),)),
        "no address",
    ),
    "no hotkey": (weights(winner_hotkey=""), "no address"),
    "a winner and a burn": (weights(burn_reason="no_rank"), "a reason to burn as well"),
    "neither": (burn(burn_reason=None), "no winner, and no reason to burn"),
    "an empty reason": (burn(burn_reason=""), "no winner, and no reason to burn"),
    "a burn elsewhere": (burn(winner_uid=8), "no winner, and no reason to burn at uid 0"),
    "a burn with weights": (burn(miners=(WINNER,)), "gives miners weight as well"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_answer_that_contradicts_itself_is_refused(name):
    answer, said = CONTRADICTIONS[name]
    with pytest.raises(DoubtError, match=said):
        choose(served(answer), BURNING)


STALE = {
    "another subnet": (served(weights(netuid=98)), "serves subnet 98, not 99"),
    "expired": (served(weights(valid_until=NOW)), "expired at 2026-11-23 10:00:00 UTC"),
    "expired by the server's clock": (
        served(weights(valid_until=NOW + seconds(30)), server_time=NOW + seconds(31)),
        "expired",
    ),
    "expired by our clock": (
        served(weights(valid_until=NOW + seconds(30)), local_time=NOW + seconds(31)),
        "expired",
    ),
    "old, though said to be valid": (
        served(weights(computed_at=NOW - seconds(1801))),
        "computed 1801 s ago, and 1800 s are allowed",
    ),
    "from the future": (served(weights(computed_at=NOW + seconds(61))), "in the future"),
    "our clock is wrong": (
        served(weights(), local_time=NOW - seconds(3600)),
        r"3600 s apart \(here 2026-11-23 09:00:00, there 2026-11-23 10:00:00 UTC\)",
    ),
    "the server's clock is wrong": (served(weights(), server_time=NOW - seconds(61)), "61 s apart"),
}


@pytest.mark.parametrize("name", STALE)
def test_a_stale_answer_is_refused(name):
    answer, said = STALE[name]
    with pytest.raises(DoubtError, match=said):
        choose(answer, LIMITS)


def test_times_at_the_limits_are_good():
    answer = weights(computed_at=NOW - seconds(1800), valid_until=NOW + seconds(1))
    assert choose(served(answer, local_time=NOW - seconds(60)), LIMITS) == WON


def test_an_unknown_reason_never_burns():
    with pytest.raises(DoubtError, match=r"says burn \(tuesday\)"):
        choose(served(burn(burn_reason="tuesday")), BURNING)


def test_a_chain_that_bears_the_choice_out_is_no_doubt():
    refuse_doubts(WON, facts(), hotkey("own"), LIMITS)
    owned = facts(hotkey_at_uid=hotkey("owner"), is_owners=True)
    refuse_doubts(BURNT, owned, hotkey("own"), BURNING)
    # Never set, and just allowed again.
    refuse_doubts(WON, facts(last_update=0, rate_limit_blocks=10**6), hotkey("own"), LIMITS)
    refuse_doubts(WON, facts(last_update=4_911), hotkey("own"), LIMITS)
    # Weight for oneself may be alone.
    refuse_doubts(WON, facts(weights_min=8, own_uid=7), hotkey("own"), LIMITS)
    refuse_doubts(WON, facts(block=5_300), hotkey("own"), LIMITS)
    refuse_doubts(WON, facts(block=4_990), hotkey("own"), LIMITS)


DOUBTS = {
    "no subnet": ({"has_subnet": False}, "no subnet 99"),
    "a node that lags": ({"block": 4_989}, "only at block 4989: it lags"),
    "an API that lags": ({"block": 5_301}, "301 blocks behind the chain's 5301"),
    "the uid changed hands": (
        {"hotkey_at_uid": hotkey("newcomer")},
        f"that uid belongs to {hotkey('newcomer')}",
    ),
    "an empty uid": ({"hotkey_at_uid": None}, "nobody is at uid 7"),
    "not registered": ({"own_uid": None}, f"our hotkey {hotkey('own')} is not registered"),
    "too few weights": ({"weights_min": 8}, "no fewer than 8 weights at a time"),
    "no permit": ({"has_permit": False}, r"\(uid 3\) has no validator permit"),
    "too soon": ({"last_update": 4_912}, "every 100 blocks; wait 1 more"),
    "just now": ({"last_update": 5_010}, "wait 99 more"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_a_chain_that_says_otherwise_stops_everything(name):
    changes, said = DOUBTS[name]
    with pytest.raises(DoubtError, match=said):
        refuse_doubts(WON, facts(**changes), hotkey("own"), LIMITS)


def test_weight_at_a_uid_that_is_not_the_owners_would_burn_nothing():
    with pytest.raises(DoubtError, match=rf"belongs to {hotkey('miner')}, which is no hotkey of"):
        refuse_doubts(BURNT, facts(hotkey_at_uid=hotkey("miner")), hotkey("own"), BURNING)


def test_a_burn_to_an_empty_uid_0_is_refused():
    with pytest.raises(DoubtError, match="nobody is at uid 0"):
        refuse_doubts(BURNT, facts(hotkey_at_uid=None), hotkey("own"), BURNING)
