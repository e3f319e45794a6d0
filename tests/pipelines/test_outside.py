"""What a service's headers and texts become before anybody relies on them."""

import time
from email.utils import formatdate

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.outside import Cause, header_secret, no_answer_of_status, printable
from pipelines.outside import retry_after_seconds as seconds_of

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOON = "Tue, 14 Nov 2023 12:00:00 GMT"


def test_retry_after_in_seconds() -> None:
    assert seconds_of({"retry-after": "17"}) == 17.0
    assert seconds_of({"retry-after": " 0 "}) == 0.0
    assert seconds_of(httpx2.Headers({"Retry-After": "5"})) == 5.0


def test_retry_after_as_an_instant_is_by_the_servers_clock() -> None:
    later = "Tue, 14 Nov 2023 12:01:30 GMT"
    assert seconds_of({"retry-after": later, "date": NOON}) == 90.0
    assert seconds_of({"retry-after": NOON, "date": later}) == 0.0
    # Without its clock by ours.
    ahead = seconds_of({"retry-after": formatdate(time.time() + 1000, usegmt=True)})
    assert ahead is not None
    assert 900 < ahead <= 1000


@pytest.mark.parametrize(
    ("window", "seconds"),
    [('"api";r=0;t=55', 55.0), ('"api"; r = 0 ; t = 7', 7.0), ('"api";r=10;t=55', None)],
)
def test_a_window_that_is_used_up_says_when_the_next_begins(
    window: str, seconds: float | None
) -> None:
    assert seconds_of({"ratelimit": window}) == seconds
    assert seconds_of({"ratelimit": window, "retry-after": "3"}) == 3.0


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.5", "²", "1e9", "Tue, 99 Xxx 2023", "9x", "\x00"]
)
def test_what_is_not_clear_is_nothing(text: str) -> None:
    assert seconds_of({"retry-after": text}) is None


@unhurried
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_no_header_raises(retry_after: str, date: str, window: str) -> None:
    found = seconds_of({"retry-after": retry_after, "date": date, "ratelimit": window})
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        *[(status, Cause.OUTAGE) for status in (408, 425, 429, 500, 502, 503, 504, 529)],
        *[(status, Cause.REFUSED) for status in (401, 403)],
        *[(status, Cause.UNUSABLE) for status in (204, 302, 400, 404, 405, 410, 451)],
    ],
)
def test_what_a_status_means(status: int, cause: Cause) -> None:
    assert no_answer_of_status(status, {}).cause is cause


def test_a_secret_is_trimmed() -> None:
    assert header_secret("KEY", " abc\n") == "abc"
    assert header_secret("KEY", "") == ""


@unhurried
@given(st.text(st.characters(codec=None)))
def test_printable_text_can_be_stored_and_shown(text: str) -> None:
    shown = printable(text)
    assert shown.encode().decode() == shown
    assert shown.isprintable()
    assert len(shown) <= 200
