"""What Chutes says about a chute, and everything that is no answer."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import closing

import pytest

from cli.simulated.services import HttpFault, SimulatedServices
from pipelines.chutes import Chutes
from pipelines.outside import PRINTABLE_CHARS_MAX, Cause, NoAnswer
from pipelines.validation import ChuteFact
from tests.pipelines.service_faults import ENDLESS, FAULTS, described, status

KEY = "cpk_4f1d-a-key-that-must-not-be-seen"
CHUTE = "6f1c9c1e-0c5f-5c6a-9d0e-3a9f7d4a1b2c"
REVISION = "a" * 40
NOW_MS = 1_700_000_000_000


@pytest.fixture
def services() -> Iterator[SimulatedServices]:
    with SimulatedServices(chutes_key=KEY) as services:
        services.add_chute(CHUTE, "a-slug", hot=True, revision=REVISION)
        yield services


@pytest.fixture
def chutes(services: SimulatedServices) -> Iterator[Chutes]:
    with closing(Chutes(services.chutes_url, KEY, 10, clock_ms=lambda: NOW_MS)) as chutes:
        yield chutes


def absent(chute_id: str) -> ChuteFact:
    return ChuteFact(chute_id, False, None, None, None, NOW_MS)


def test_a_chute_and_none(chutes: Chutes, services: SimulatedServices) -> None:
    assert chutes.fact(CHUTE) == ChuteFact(
        CHUTE,
        is_found=True,
        slug="a-slug",
        is_hot=True,
        revision=REVISION,
        answered_at_ms=NOW_MS,
    )
    assert chutes.fact("other") == absent("other")
    assert [request.path for request in services.requests] == [f"/chutes/{CHUTE}", "/chutes/other"]
    assert {request.headers["authorization"] for request in services.requests} == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent() -> None:
    with SimulatedServices() as services, closing(Chutes(services.chutes_url, "", 1)) as chutes:
        services.add_chute(CHUTE, None, hot=False, revision=None)
        fact = chutes.fact(CHUTE)
        assert (fact.is_found, fact.slug, fact.is_hot, fact.revision) == (True, None, False, None)
        assert "authorization" not in services.requests[0].headers


@pytest.mark.parametrize(
    "chute_id",
    [
        *("", ".", "..", "../users/me", "a/b", "%2e%2e", "?x=", "a#b", "a\nb", "a\\b", "a b", "é"),
        *("a\0", "a" * 129, "..\n", "%2F", "a;b", "@", "/"),
    ],
)
def test_what_cannot_be_an_id_is_never_asked(
    chutes: Chutes, services: SimulatedServices, chute_id: str
) -> None:
    assert chutes.fact(chute_id) == absent(chute_id)
    assert services.requests == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_no_answer_and_shows_no_key(
    chutes: Chutes,
    services: SimulatedServices,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault, cause = FAULTS[name]
    caplog.set_level(logging.DEBUG)
    assert chutes.fact(CHUTE).is_found
    services.fault = lambda _path: fault
    with pytest.raises(NoAnswer) as caught:
        chutes.fact(CHUTE, 0.1 if name in ENDLESS else None)
    assert caught.value.cause is cause

    assert services.requests[0].headers["authorization"] == f"Bearer {KEY}"
    seen = [*map(str, caplog.records), *caplog.messages, repr(chutes), repr(caught.value)]
    assert KEY not in "".join([*seen, *traceback.format_exception(caught.value)])
    # Nor is there an error behind it that knows the request.
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, ValueError)

    services.fault = lambda _path: None
    assert chutes.fact(CHUTE).is_found


def test_nobody_there_is_no_answer() -> None:
    with SimulatedServices() as services:
        url = services.chutes_url
    with closing(Chutes(url, KEY, 0.3)) as chutes, pytest.raises(NoAnswer, match="connect") as no:
        chutes.fact(CHUTE)
    assert no.value.cause is Cause.OUTAGE


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"<html>",
            b"{}",
            b"[]",
            b"null",
            b'"chute"',
            b'{"detail": ["chute"]}',
            b"[" * 10**5,
        ),
        *(b'{"detail": "Not Found"}', b'{"detail": "Not found."}', b'{"error": "chute not found"}'),
    ],
)
def test_a_404_of_somebody_else_is_no_answer(
    chutes: Chutes, services: SimulatedServices, body: bytes
) -> None:
    services.fault = lambda _path: status(404, body)
    with pytest.raises(NoAnswer, match="HTTP 404") as caught:
        chutes.fact(CHUTE)
    assert caught.value.cause is Cause.UNUSABLE


def test_an_address_beside_the_right_one_denies_nobodys_chute(services: SimulatedServices) -> None:
    with closing(Chutes(f"{services.chutes_url}/v1", KEY, 10)) as chutes, pytest.raises(NoAnswer):
        chutes.fact(CHUTE)
    assert services.requests[0].path == f"/v1/chutes/{CHUTE}"


@pytest.mark.parametrize(
    "fault",
    [
        described(slug="s", revision=REVISION),
        described(slug="s", hot=None, revision=REVISION),
        described(slug="s", hot="true", revision=REVISION),
        described(slug="s", hot=1, revision=REVISION),
        described(slug=7, hot=True, revision=REVISION),
        described(slug="s", hot=True, revision=["a"]),
    ],
)
def test_a_description_of_another_form_is_no_answer(
    chutes: Chutes, services: SimulatedServices, fault: HttpFault
) -> None:
    services.fault = lambda _path: fault
    with pytest.raises(NoAnswer) as caught:
        chutes.fact(CHUTE)
    assert caught.value.cause is Cause.UNUSABLE


def test_what_is_left_out_is_not_stated(chutes: Chutes, services: SimulatedServices) -> None:
    services.fault = lambda _path: described(hot=True, more={"x": [1]})
    fact = chutes.fact(CHUTE)
    assert (fact.is_found, fact.is_hot, fact.slug, fact.revision) == (True, True, None, None)


def test_hostile_texts_are_cut_to_what_can_be_shown(
    chutes: Chutes, services: SimulatedServices
) -> None:
    # Refusing them would keep the last fact in force: who controls the text could keep it for ever.
    services.fault = lambda _path: described(slug="\ud800\x1b[2J\n", hot=True, revision="é" * 9999)
    fact = chutes.fact(CHUTE)
    assert fact.slug == "\ufffd\ufffd[2J\ufffd"
    assert fact.revision == "é" * PRINTABLE_CHARS_MAX


def test_retry_after_is_handed_on(chutes: Chutes, services: SimulatedServices) -> None:
    services.fault = lambda _path: status(429, Retry_After="17")
    with pytest.raises(NoAnswer) as caught:
        chutes.fact(CHUTE)
    assert caught.value.retry_after_seconds == 17.0


def test_the_key_follows_no_redirect(chutes: Chutes, services: SimulatedServices) -> None:
    with SimulatedServices() as elsewhere:
        places = [
            f"{elsewhere.chutes_url}/chutes/x",
            f"{services.chutes_url}/users/me",
            "/users/me",
        ]
        for place in places:
            services.fault = lambda _path, place=place: status(302, Location=place)
            with pytest.raises(NoAnswer):
                chutes.fact(CHUTE)
        assert elsewhere.requests == []
        assert {request.path for request in services.requests} == {f"/chutes/{CHUTE}"}


def test_the_environment_has_no_say(
    services: SimulatedServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with closing(Chutes(services.chutes_url, KEY, 1)) as chutes:
        assert chutes.fact(CHUTE).is_found


def test_a_shorter_time_takes_the_place_of_the_clients_own(services: SimulatedServices) -> None:
    services.fault = lambda _path: HttpFault("drip_body")
    with closing(Chutes(services.chutes_url, KEY, 3600)) as chutes:
        for seconds in (0.1, 0.0, -1.0):
            with pytest.raises(NoAnswer, match="timed out"):
                chutes.fact(CHUTE, seconds)


@pytest.mark.parametrize("key", ["one\ntwo", "schlüssel", "a\tb"])
def test_a_key_that_no_header_carries_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError, match="CHUTES_API_KEY") as caught:
        Chutes("http://127.0.0.1:1", key, 1)
    assert key not in str(caught.value)
