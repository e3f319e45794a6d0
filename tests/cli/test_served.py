"""The API's answer on the way to a validator: read whole, timed, or not at all."""

import json
import socket
import traceback
from datetime import UTC, datetime, timedelta

import pytest

from api.answers import (
    InvalidRequestError,
    MalformedAnswerError,
    NotFoundError,
    UnavailableError,
    UnreachableError,
)
from cli.served import ANSWER_BYTES_MAX, fetch
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey
from tests.cli.api_double import ApiDouble, answer
from warehouse.settings import WarehouseSettings


@pytest.fixture
def api():
    with ApiDouble() as double:
        yield double


def test_the_service_itself_is_understood(tmp_path):
    settings = WarehouseSettings(leoma_home=tmp_path)
    publish_subnet(settings)
    with Server(API_SETTINGS, settings) as server:
        served = fetch(f"http://127.0.0.1:{server.port}", 5)
    assert (served.weights.winner_uid, served.weights.winner_hotkey) == (7, hotkey("old"))
    assert abs(served.server_time - served.local_time) < timedelta(seconds=60)


def test_the_servers_clock_and_subnet_come_with_the_weights(api):
    api.document, api.date = answer(netuid=12), -3600
    before = datetime.now(UTC)
    served = fetch(f"{api.url}/", 5)
    assert before <= served.local_time <= datetime.now(UTC)
    assert 3595 < (served.local_time - served.server_time).total_seconds() < 3660
    assert served.weights.netuid == 12
    assert api.requests == ["/weights"]


@pytest.mark.parametrize(
    "document",
    [
        answer(burn_reason=...),
        answer(winner_hotkey=...),
        answer(valid_until=...),
        answer(valid_until="2026-11-23T10:00:00"),
        answer(computed_at=None),
        answer(winner_uid=None),
        answer(block="many"),
        answer(miners=[{}]),
        answer(miners=None),
        answer(netuid="ours"),
        answer(winner_hotkey=5),
        answer(burn_reason=["no_rank"]),
        answer(netuid=...),
    ],
)
def test_an_answer_with_a_part_missing_is_no_answer(api, document):
    api.document = document
    with pytest.raises(MalformedAnswerError):
        fetch(api.url, 5)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"[]", b'"weights"', b"{}", b"\xff\xfe{", b"[" * 10**5),
        json.dumps(answer(winner_uid=1)).replace('"winner_uid": 1', '"winner_uid": 1e999').encode(),
    ],
)
def test_garbage_is_no_answer(api, body):
    api.body = body
    with pytest.raises(MalformedAnswerError):
        fetch(api.url, 5)


def test_without_the_servers_clock_there_is_no_answer(api):
    api.date = None
    with pytest.raises(MalformedAnswerError):
        fetch(api.url, 5)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFoundError),
        (400, InvalidRequestError),
        (500, UnavailableError),
        (204, UnavailableError),
        (302, UnavailableError),
    ],
)
def test_an_error_is_an_error(api, status, error):
    api.status, api.body = status, b""
    with pytest.raises(error, match=f"answered with {status}"):
        fetch(api.url, 5)
    assert len(api.requests) == 1


def test_a_moments_overload_is_asked_again_once(api):
    api.failures = 1
    assert fetch(api.url, 5).weights.winner_uid == 1
    api.failures = 2
    with pytest.raises(UnavailableError, match="503"):
        fetch(api.url, 5)
    assert len(api.requests) == 4


def test_nobody_there_and_no_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match="refused"):
            fetch(f"http://127.0.0.1:{free.getsockname()[1]}", 5)
    for address in ("http://[", "leoma", "ftp://127.0.0.1/"):
        with pytest.raises(UnreachableError):
            fetch(address, 5)


@pytest.mark.parametrize("is_head_slow", [False, True])
def test_an_answer_that_only_drips_is_cut_off(api, is_head_slow):
    # Every byte comes in time; all of them take 20 seconds and more.
    api.drip_seconds, api.is_head_slow = 0.02, is_head_slow
    api.document = answer(filler="x" * 1_000)
    with pytest.raises(UnreachableError, match="did not end in time"):
        fetch(api.url, 0.3)


@pytest.mark.parametrize("address", ["http://leo:hunter2@127.0.0.1:1/x", "http://leo:hunter2/x"])
def test_a_password_in_the_address_is_not_shown(address):
    with pytest.raises(UnreachableError) as caught:
        fetch(address, 5)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_an_answer_without_end_is_cut_off(api):
    api.body = b" " * (ANSWER_BYTES_MAX + 1)
    with pytest.raises(MalformedAnswerError, match="bytes"):
        fetch(api.url, 5)
