"""What clients send in headers, bodies and parameters, and what answers say: read, or refused."""

import contextlib
import json
import time

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import example, given
from hypothesis import strategies as st

from api.answers import (
    MalformedAnswerError,
    RankEntry,
    Weights,
    contract,
    error_detail,
    retry_after_seconds,
    server_time,
)
from api.auth import NAMES, UnauthorizedError, check_freshness, credentials
from api.bodies import BlacklistAddition, SampleBatch, SampleSubmission, TaskAnnouncement
from api.caching import is_match
from api.clients import network_of
from api.dependencies import read
from api.instants import iso8601, parse_instant_ms
from api.looks import NAME, answered_at_ms, note_answer
from tests.api.made_requests import spoilt_body, valid_body
from tests.builders import hotkey, signed_headers
from tests.properties import JSON_VALUES, changed, tried
from warehouse.settings import WarehouseSettings

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
MODELS = (SampleSubmission, SampleBatch, TaskAnnouncement, BlacklistAddition)
# To the last millisecond of 9999.
INSTANTS_MS = st.integers(0, 253_402_300_799_999)


@tried()
@given(
    st.sampled_from([1, 2]),
    st.integers(0, 10**15 - 1),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=16, max_size=64),
)
def test_headers_as_a_client_signs_them_are_read(scheme, timestamp, nonce):
    headers = signed_headers("big", scheme=scheme, timestamp=str(timestamp), nonce=nonce)
    given_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    read = credentials(given_headers)
    assert (read.hotkey, read.scheme, read.timestamp) == (hotkey("big"), scheme, str(timestamp))
    assert read.signature.hex() == headers["X-Signature"]
    assert read.nonce == (nonce if scheme == 2 else None)
    with contextlib.suppress(UnauthorizedError):
        check_freshness(read.timestamp, int(time.time()), 300)


VALUES = st.binary(max_size=140) | st.sampled_from(
    [hotkey("big").encode(), b"ab" * 64, b"1795800000", b"1", b"2", b"f" * 16]
)


@tried(400, 4_000)
@given(st.lists(st.tuples(st.sampled_from([*NAMES, b"x-other"]), VALUES), max_size=7))
def test_any_headers_are_credentials_or_a_401(headers):
    with contextlib.suppress(UnauthorizedError):
        read = credentials(headers)
        assert len(read.signature) == 64
        int(read.timestamp)


@st.composite
def bodies(draw):
    """Return a body as clients send it, with something changed, or text of any kind."""
    dice = draw(st.randoms(use_true_random=False))
    path = draw(st.sampled_from(["/samples", "/samples/batch", "/tasks", "/blacklist"]))
    document = valid_body(dice, path)
    if draw(st.booleans()):
        return spoilt_body(dice, document)
    return json.dumps(changed(document, draw)).encode()


@tried(400, 4_000)
@given(bodies() | st.binary(max_size=60) | JSON_VALUES.map(json.dumps).map(str.encode))
@example(b"[" * 100_000)
@example(b"9" * 5_000)
@example(b'{"task_id": 1e999}')
@example(b'{"task_id": 5, "task_id": 6}')
@example(b"\xef\xbb\xbf{}")
@example(b'{"task_id": NaN}')
def test_any_body_fits_or_is_a_422(content):
    for model in MODELS:
        try:
            fit = read(model, content)
        except RequestValidationError as error:
            # The answer can be written, whatever was sent.
            json.dumps([one["msg"] for one in error.errors()]).encode()
            continue
        samples = fit.samples if isinstance(fit, SampleBatch) else [fit]
        for one in samples:
            if isinstance(one, SampleSubmission):
                stored = one.to_sample()
                # What SQLite and Parquet can hold, and whoever reads them.
                assert stored.task_id is None or 0 <= stored.task_id < 2**63
                assert stored.task_key
                for value in stored:
                    if isinstance(value, str):
                        assert "\0" not in value
                        value.encode()


@tried(500, 4_000)
@given(INSTANTS_MS)
# They were read as the millisecond before, which is another generation's.
@example(8_344_407)
@example(1_700_000_000_001)
def test_an_instant_is_read_back_to_the_millisecond(instant_ms):
    assert parse_instant_ms(iso8601(instant_ms)) == instant_ms
    if instant_ms < 10**15:
        seconds, milliseconds = divmod(instant_ms, 1000)
        assert parse_instant_ms(f"{seconds}.{milliseconds:03d}") == instant_ms


@tried(500, 4_000)
@given(ANY_TEXT | st.from_regex(r"-?[0-9]{1,13}(\.[0-9]{1,10})?", fullmatch=True))
@example("9999-12-31T23:59:59.999999-23:59")
@example("0001-01-01T00:00:00+23:59")
@example("\u0663")
def test_any_text_is_an_instant_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_instant_ms(text), int)


@tried(300)
@given(st.binary(max_size=60), st.binary(max_size=60))
@example(b'"a"', b", ,W/" * 50)
def test_any_if_none_match_names_a_tag_or_not(etag, if_none_match):
    assert is_match(etag, if_none_match) in {True, False}
    assert is_match(b'"x"', b'"y", W/"x"')


@tried(300)
@given(ANY_TEXT | st.ip_addresses().map(str))
@example("fe80::1%eth0")
@example("::ffff:1.2.3.4")
def test_any_client_counts_as_somebody(address):
    counted = network_of(address)
    assert network_of(counted.partition("/")[0]) == counted or len(counted) <= 255


@tried()
@given(st.binary() | JSON_VALUES.map(json.dumps).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"answered_at_ms": true}')
def test_whatever_was_noted_of_the_bucket_is_an_instant(tmp_path, content):
    settings = WarehouseSettings(leoma_home=tmp_path)
    settings.warehouse_path.mkdir(parents=True, exist_ok=True)
    (settings.warehouse_path / NAME).write_bytes(content)
    assert isinstance(answered_at_ms(settings), int)
    note_answer(settings)
    assert answered_at_ms(settings) > 0


WEIGHTS = {
    "winner_uid": 7, "winner_hotkey": "5", "burn_reason": None, "snapshot_id": "s", "netuid": 1,
    "miners": [{"miner_hotkey": "5", "uid": 7, "pass_rate": 1.0, "weight": 1.0}], "block": 3,
    "computed_at": "2026-11-22T10:00:00Z", "valid_until": "2026-11-22T11:00:00Z", "watermark": 1,
}  # fmt: skip
RANK = {
    "miner_hotkey": "5", "uid": 7, "rank": 1, "passed_count": 1, "pass_rate": 1.0, "block": None,
    "eligible": True,
}  # fmt: skip


@st.composite
def answers(draw):
    return changed(draw(st.sampled_from([WEIGHTS, RANK])), draw)


@tried(300, 2_000)
@given(answers() | JSON_VALUES)
@example({**WEIGHTS, "miners": [7]})
@example({**WEIGHTS, "winner_uid": float("inf")})
@example({**WEIGHTS, "block": float("nan")})
def test_any_answer_is_read_or_malformed(answer):
    for kind in (Weights, RankEntry):
        with contextlib.suppress(MalformedAnswerError), contract("GET /weights"):
            read = kind.of(answer)
            if isinstance(read, Weights):
                assert read.is_usable() in {True, False}


HEADERS = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)


@tried(400, 2_000)
@given(HEADERS, st.binary(max_size=60))
@example("Mon, 01 Jan 0001 00:00:00 -0000", b"")
@example("Mon, 99 Jan 9999 99:99:99 GMT", b"[]")
@example("9" * 40, b"null")
@example("\u00b2", b'{"detail": 7}')
@example("1", b"[" * 100_000)
def test_whatever_an_answer_says_it_is_waited_for_in_bounds(value, content):
    response = httpx.Response(
        503, headers=[(b"Retry-After", value.encode("latin-1"))], content=content
    )
    assert 0 <= retry_after_seconds(response) <= 20
    error_detail(response)


@tried(300)
@given(ANY_TEXT | ANY_TEXT.map("server time is {}".format))
def test_any_detail_has_a_time_or_none(text):
    found = server_time(text)
    assert found is None or found > 0


def test_the_time_in_a_detail_is_found():
    with pytest.raises(UnauthorizedError) as caught:
        check_freshness("1", 1_795_800_000, 300)
    assert server_time(caught.value.detail) == 1_795_800_000
