"""What a miner committed to, read from bytes that anybody may have written."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scalecodec.base import ScaleBytes
from scalecodec.types import Compact

from pipelines.commitments import Commitment, commitment_text, fields_of, read_commitment
from pipelines.neurons import Revealed

HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
NAME = f"someone/leoma-{HOTKEY}"
REVISION = "a" * 40
CHUTE = "6f1c9c1e-0c5f-5c6a-9d0e-3a9f7d4a1b2c"
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIELDS = {"model_name": NAME, "model_revision": REVISION, "chute_id": CHUTE}


def scale_bytes(body: bytes) -> bytes:
    """Vec<u8> as the chain's own library writes it."""
    length: ScaleBytes = Compact().encode(len(body))
    return bytes(length.data) + body


def revealed(*texts: str | bytes) -> tuple[Revealed, ...]:
    bodies = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return tuple(Revealed(10 + place, scale_bytes(body)) for place, body in enumerate(bodies))


def committed(**changed: object) -> tuple[Revealed, ...]:
    fields = {name: value for name, value in (FIELDS | changed).items() if value is not ...}
    return revealed(json.dumps(fields))


def test_a_commitment() -> None:
    assert read_commitment(HOTKEY, committed()) == Commitment(NAME, REVISION, CHUTE)
    assert fields_of(committed()) == FIELDS


def test_the_newest_of_two_counts() -> None:
    older, newer = json.dumps(FIELDS | {"chute_id": "older"}), json.dumps(FIELDS)
    assert read_commitment(HOTKEY, revealed(older, newer)) == Commitment(NAME, REVISION, CHUTE)
    assert read_commitment(HOTKEY, revealed(newer, "{")) == "malformed_commitment"


@pytest.mark.parametrize(
    ("commitments", "reason"),
    [
        (committed() * 3, "max_commits_exceeded_2"),
        (committed() * 10, "max_commits_exceeded_2"),
        (revealed("{") * 3, "max_commits_exceeded_2"),
        ((), "malformed_commitment"),
        (revealed(""), "malformed_commitment"),
        (revealed("{"), "malformed_commitment"),
        (revealed("[]"), "malformed_commitment"),
        (revealed("null"), "malformed_commitment"),
        (revealed('"model_name"'), "malformed_commitment"),
        (revealed("\ufeff" + json.dumps(FIELDS)), "malformed_commitment"),
        (revealed(json.dumps(FIELDS).encode("utf-16")), "malformed_commitment"),
        (revealed(json.dumps(FIELDS).encode() + b"\xff"), "malformed_commitment"),
        (revealed(json.dumps(FIELDS) + "}"), "malformed_commitment"),
        (revealed(json.dumps(FIELDS | {"more": float("nan")})), "malformed_commitment"),
        (revealed("[" * 100_000), "malformed_commitment"),
        (revealed('{"more":' + "[" * 65 + "]" * 65 + "}"), "malformed_commitment"),
        ((Revealed(10, json.dumps(FIELDS).encode()),), "malformed_commitment"),
        (committed(model_name=...), "missing_model_name"),
        (committed(model_name=""), "missing_model_name"),
        (committed(model_name=None), "missing_model_name"),
        (committed(model_name=7), "missing_model_name"),
        (committed(model_name=[NAME]), "missing_model_name"),
        (committed(model_name=NAME + "\ud800"), "missing_model_name"),
        (revealed("{}"), "missing_model_name"),
        (committed(model_revision=..., chute_id=...), "missing_model_revision"),
        (committed(model_revision=False), "missing_model_revision"),
        (committed(chute_id=...), "missing_chute_id"),
        (committed(chute_id={"id": CHUTE}), "missing_chute_id"),
        (committed(chute_id="", model_name="x"), "missing_chute_id"),
        (committed(model_name=f"leoma/other-{HOTKEY}"), "model_name_must_start_with_leoma"),
        (committed(model_name=f"leoma/{HOTKEY}/other"), "model_name_must_start_with_leoma"),
        (committed(model_name="other"), "model_name_must_start_with_leoma"),
        (committed(model_name=NAME + "/"), "model_name_must_start_with_leoma"),
        (committed(model_name=f"{HOTKEY}/leoma"), "model_name_must_end_with_hotkey"),
        (committed(model_name=NAME + "-2"), "model_name_must_end_with_hotkey"),
        (committed(model_name=NAME[:-1]), "model_name_must_end_with_hotkey"),
    ],
)
def test_why_a_commitment_is_refused(commitments: tuple[Revealed, ...], reason: str) -> None:
    assert read_commitment(HOTKEY, commitments) == reason


@pytest.mark.parametrize(
    "name", [f"LEOMA{HOTKEY.upper()}", f"any/Leoma-{HOTKEY.lower()}", f"a/b/leoma_{HOTKEY}"]
)
def test_names_compare_without_case_and_users_are_free(name: str) -> None:
    assert read_commitment(HOTKEY, committed(model_name=name)) == Commitment(name, REVISION, CHUTE)


def test_what_else_the_object_holds_is_not_looked_at() -> None:
    more = '{"n":' + "9" * 10_000 + ',"f":1e999,"deep":' + "[" * 60 + "]" * 60 + ',"braces":"'
    text = more + "{[" * 500 + '\\"{","nul":"\\u0000",' + json.dumps(FIELDS)[1:]
    assert read_commitment(HOTKEY, revealed(text)) == Commitment(NAME, REVISION, CHUTE)


def test_a_field_given_twice_counts_as_last_given() -> None:
    text = '{"chute_id":"first",' + json.dumps(FIELDS)[1:]
    assert read_commitment(HOTKEY, revealed(text)) == Commitment(NAME, REVISION, CHUTE)


def test_an_invalid_commitment_still_shows_what_can_be_read() -> None:
    commitments = committed(model_name="other", chute_id=7)
    assert fields_of(commitments) == {
        "model_name": "other",
        "model_revision": REVISION,
        "chute_id": None,
    }
    nothing = {"model_name": None, "model_revision": None, "chute_id": None}
    assert fields_of(()) == fields_of(revealed("{")) == nothing
    assert fields_of(committed() * 3) == FIELDS


@pytest.mark.parametrize("length", [0, 1, 63, 64, 16_383, 16_384])
def test_lengths_at_the_borders_of_the_compact_forms(length: int) -> None:
    content = scale_bytes(b"x" * length)
    assert commitment_text(content) == "x" * length
    assert commitment_text(content + b"x") is None
    assert commitment_text(content[:-1]) is None


def test_the_longest_compact_form() -> None:
    # Four bytes of length, and eight: only a length from 2**30 needs them, but any may use them.
    assert commitment_text(b"\x03" + (3).to_bytes(4, "little") + b"abc") == "abc"
    assert commitment_text(b"\x13" + (3).to_bytes(8, "little") + b"abc") == "abc"
    assert commitment_text(b"\x13" + (3).to_bytes(7, "little")) is None
    assert commitment_text(b"\xff" + b"\x00" * 66) is None
    assert commitment_text(b"\xff" + b"\x00" * 67) == ""


@unhurried
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(text: str) -> None:
    assert commitment_text(scale_bytes(text.encode())) == text


@unhurried
@given(st.binary(max_size=100) | st.binary(max_size=100).map(scale_bytes))
def test_no_bytes_raise(content: bytes) -> None:
    assert isinstance(read_commitment(HOTKEY, [Revealed(1, content)]), str)
    fields = fields_of([Revealed(1, content)])
    assert set(fields) == set(FIELDS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@unhurried
@given(st.dictionaries(st.sampled_from([*FIELDS, "more"]), JSON_VALUES))
def test_no_json_raises_and_what_is_read_can_be_stored(document: dict[str, object]) -> None:
    commitments = revealed(json.dumps(document))
    assert isinstance(read_commitment(HOTKEY, commitments), str)
    for text in fields_of(commitments).values():
        assert text is None or (text and text.encode().decode() == text)


@unhurried
@given(name=st.text(st.characters(exclude_categories=["Cs"])), revision=st.text(min_size=1))
def test_a_good_commitment_is_read_back(name: str, revision: str) -> None:
    model_name = f"{name}/leoma{HOTKEY}"
    found = read_commitment(HOTKEY, committed(model_name=model_name, model_revision=revision))
    assert found == Commitment(model_name, revision, CHUTE)
