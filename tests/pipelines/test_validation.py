"""When a miner is valid: one row for each reason, and two at once to fix their order."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from substrateinterface import Keypair

from pipelines.neurons import Revealed
from pipelines.validation import (
    RULES,
    ChuteFact,
    ModelFact,
    Verdict,
    duplicates,
    is_weight_file,
    model_hash,
    rules,
    verdict,
)

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HOTKEY = Keypair.create_from_uri("//Miner").ss58_address
NAME = f"someone/leoma-{HOTKEY}"
REVISION = "a" * 40
OTHER = "b" * 40
CHUTE = "6f1c9c1e-0c5f-5c6a-9d0e-3a9f7d4a1b2c"
HASH = "c" * 64

HOT = ChuteFact(
    CHUTE, is_found=True, slug="a-slug", is_hot=True, revision=REVISION, answered_at_ms=1
)
COLD = replace(HOT, is_hot=False)
NO_CHUTE = ChuteFact(CHUTE, is_found=False, slug=None, is_hot=None, revision=None, answered_at_ms=1)
OTHER_REVISION = replace(HOT, revision=OTHER)
UPPER_CASE = replace(HOT, revision=REVISION.upper())
MODEL = ModelFact(NAME, REVISION, is_found=True, sha=REVISION, model_hash=HASH, answered_at_ms=1)
NO_MODEL = ModelFact(NAME, REVISION, is_found=False, sha=None, model_hash=None, answered_at_ms=1)
NO_WEIGHTS = replace(MODEL, model_hash=None)
OTHER_SHA = replace(MODEL, sha=OTHER)


def committed(times: int = 1, **changed: str) -> tuple[Revealed, ...]:
    fields = {"model_name": NAME, "model_revision": REVISION, "chute_id": CHUTE} | changed
    body = json.dumps(fields).encode()
    return (Revealed(7, (len(body) << 2 | 1).to_bytes(2, "little") + body),) * times


ROWS = [
    # commitment, Chutes' fact, Hugging Face's fact, reason
    (committed(), HOT, MODEL, None),
    (committed(2), HOT, MODEL, None),
    (committed(3), HOT, MODEL, "max_commits_exceeded_2"),
    ((Revealed(7, b"\x00"),), HOT, MODEL, "malformed_commitment"),
    (committed(model_name=""), HOT, MODEL, "missing_model_name"),
    (committed(model_revision=""), HOT, MODEL, "missing_model_revision"),
    (committed(chute_id=""), HOT, MODEL, "missing_chute_id"),
    (committed(model_name=f"a/x-{HOTKEY}"), HOT, MODEL, "model_name_must_start_with_leoma"),
    (committed(model_name="a/leoma"), HOT, MODEL, "model_name_must_end_with_hotkey"),
    (committed(), None, MODEL, "chute_fetch_failed"),
    (committed(), NO_CHUTE, MODEL, "chute_fetch_failed"),
    (committed(), COLD, MODEL, "chute_not_running"),
    (committed(), OTHER_REVISION, MODEL, f"revision_mismatch:chute={OTHER}"),
    (committed(), UPPER_CASE, MODEL, f"revision_mismatch:chute={'A' * 40}"),
    (committed(), HOT, None, "hf_model_fetch_failed"),
    (committed(), HOT, NO_MODEL, "hf_model_fetch_failed"),
    (committed(), HOT, NO_WEIGHTS, "hf_model_fetch_failed"),
    (committed(), HOT, OTHER_SHA, f"revision_mismatch:hf={OTHER}"),
    # A chute that states no revision contradicts nothing.
    (committed(), replace(HOT, revision=None), MODEL, None),
    (committed(), replace(HOT, revision=""), MODEL, None),
    # A fact about something else than what is committed now is no fact.
    (committed(), replace(HOT, chute_id="other"), MODEL, "chute_fetch_failed"),
    (committed(), HOT, replace(MODEL, model_name="a/b"), "hf_model_fetch_failed"),
    (committed(), HOT, replace(MODEL, model_revision=OTHER), "hf_model_fetch_failed"),
    # Two failures at once: the first of the order, pair by neighbouring pair.
    ((Revealed(7, b"\x00"),) * 3, HOT, MODEL, "max_commits_exceeded_2"),
    (committed(model_name="", model_revision=""), HOT, MODEL, "missing_model_name"),
    (committed(model_revision="", chute_id=""), HOT, MODEL, "missing_model_revision"),
    (committed(chute_id="", model_name="x"), HOT, MODEL, "missing_chute_id"),
    (committed(model_name="x"), HOT, MODEL, "model_name_must_start_with_leoma"),
    (committed(model_name="leoma"), None, None, "model_name_must_end_with_hotkey"),
    (committed(), None, None, "chute_fetch_failed"),
    (committed(), replace(COLD, revision=OTHER), NO_MODEL, "chute_not_running"),
    (committed(), OTHER_REVISION, NO_MODEL, f"revision_mismatch:chute={OTHER}"),
    (committed(), OTHER_REVISION, OTHER_SHA, f"revision_mismatch:chute={OTHER}"),
    (committed(), HOT, replace(NO_WEIGHTS, sha=OTHER), "hf_model_fetch_failed"),
]  # fmt: skip


@pytest.mark.parametrize(("revealed", "chute", "model", "reason"), ROWS)
def test_the_first_rule_that_fails_is_the_reason(
    revealed: tuple[Revealed, ...],
    chute: ChuteFact | None,
    model: ModelFact | None,
    reason: str | None,
) -> None:
    found = verdict(HOTKEY, revealed, chute, model)
    assert (found.is_valid, found.invalid_reason) == (reason is None, reason)

    outcomes = rules(HOTKEY, revealed, chute, model)
    assert [outcome.rule for outcome in outcomes] == list(RULES)
    is_passed = [outcome.is_passed for outcome in outcomes]
    if reason is None:
        assert is_passed == [True] * len(RULES)
    else:
        place = list(RULES).index(reason.partition("=")[0])
        assert is_passed == [True] * place + [False] + [None] * (len(RULES) - place - 1)


def test_every_rule_has_a_row() -> None:
    reasons = {reason.partition("=")[0] for *_, reason in ROWS if reason is not None}
    assert reasons == set(RULES)


def test_a_verdict_tells_all_that_is_known() -> None:
    assert verdict(HOTKEY, committed(), HOT, MODEL) == Verdict(
        is_valid=True,
        invalid_reason=None,
        model_name=NAME,
        model_revision=REVISION,
        model_hash=HASH,
        chute_id=CHUTE,
        chute_slug="a-slug",
    )
    cold = verdict(HOTKEY, committed(), COLD, MODEL)
    assert (cold.model_hash, cold.chute_slug) == (HASH, "a-slug")
    moved = verdict(HOTKEY, committed(chute_id="new", model_revision=OTHER), HOT, MODEL)
    assert (moved.model_hash, moved.chute_slug) == (None, None)
    assert (moved.model_revision, moved.chute_id) == (OTHER, "new")


@pytest.mark.parametrize("chute", [HOT, COLD, None])
def test_what_a_movable_name_means_is_no_model_of_the_miners(chute: ChuteFact | None) -> None:
    assert verdict(HOTKEY, committed(), chute, OTHER_SHA).model_hash is None


def test_a_failed_rule_says_what_was_found() -> None:
    outcomes = {one.rule: one.text for one in rules(HOTKEY, committed(), OTHER_REVISION, MODEL)}
    assert outcomes["revision_mismatch:chute"].endswith(f"it runs {OTHER}")


def test_the_model_hash_is_of_the_sorted_digests() -> None:
    digests = ["2" * 64, "1" * 64, "2" * 64]
    expected = hashlib.sha256(("1" * 64 + "2" * 128).encode()).hexdigest()
    assert model_hash(digests) == model_hash(iter(sorted(digests))) == expected
    assert model_hash([]) is None


def test_weight_files_are_told_by_their_suffix() -> None:
    assert all(map(is_weight_file, ["a.safetensors", "A.BIN", "x/y.pt", "z.pth", "w.tar.ckpt"]))
    assert not any(map(is_weight_file, ["bin", "a.bin.txt", "a.safetensors.index.json", "a.onnx"]))


def test_the_earlier_block_is_the_original_then_the_lower_uid() -> None:
    miners = [
        ("late", 1, 30, "x"),
        ("first", 5, 10, "x"),
        ("same block", 9, 10, "x"),
        ("alone", 2, 40, "y"),
        ("other late", 0, 50, "z"),
        ("other first", 3, 20, "z"),
    ]
    assert duplicates(miners) == {"late": 5, "same block": 5, "other late": 3}
    assert duplicates([]) == {}


@unhurried
@given(st.permutations(range(6)), st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_the_order_of_miners_changes_no_duplicate(order: list[int], blocks: list[int]) -> None:
    miners = [(f"hotkey {uid}", uid, blocks[uid], f"hash {uid % 2}") for uid in range(6)]
    found = duplicates(miners)
    assert found == duplicates([miners[place] for place in order])
    assert len(found) == 4
