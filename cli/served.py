"""The API's weights as a validator takes them: one request, with the server's clock beside them."""

import email.utils
import time
from datetime import UTC, datetime

import httpx

from api.answers import (
    AnswerError,
    LeomaError,
    MalformedAnswerError,
    UnreachableError,
    Weights,
    answer_error,
    contract,
    document,
    one_object,
)
from api.client import LOOPBACK_HOSTS, RETRIED_STATUSES, backoff_seconds
from cli.setting import Served

REQUEST = "GET /weights"
ATTEMPTS_MAX = 2
ANSWER_BYTES_MAX = 4 * 2**20


def fetch(url: str, timeout_seconds: float) -> Served:
    """Ask for the current weights, twice if need be; raise `LeomaError` when that fails.

    Each attempt ends within `timeout_seconds`, however slowly the answer drips in.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UnreachableError(f"{url!r} is no address of an API: {error}") from error
    with httpx.Client(
        base_url=address,
        timeout=timeout_seconds,
        headers={"User-Agent": "leoma-client", "Cache-Control": "no-cache"},
        # A proxy of the environment cannot know this machine's loopback.
        trust_env=address.host not in LOOPBACK_HOSTS,
    ) as http:
        for attempt in range(ATTEMPTS_MAX):
            try:
                return _asked_once(http, timeout_seconds)
            except LeomaError as error:
                is_passing = isinstance(error, UnreachableError) or (
                    isinstance(error, AnswerError) and error.status in RETRIED_STATUSES
                )
                if not is_passing or attempt + 1 == ATTEMPTS_MAX:
                    raise
                time.sleep(backoff_seconds(attempt))
    raise AssertionError("the last attempt returns or raises")


def _asked_once(http: httpx.Client, timeout_seconds: float) -> Served:
    deadline = time.monotonic() + timeout_seconds
    try:
        with http.stream("GET", "/weights") as streamed:
            response = httpx.Response(
                streamed.status_code,
                headers=_plain_headers(streamed),
                content=_whole(streamed, deadline),
            )
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"{REQUEST} at {http.base_url} got no answer: {error or type(error).__name__}"
        ) from error
    if response.status_code != 200:
        raise answer_error(REQUEST, response)
    answer = one_object(document(REQUEST, response))
    with contract(REQUEST):
        return Served(
            weights=Weights.of(answer),
            server_time=_date(response),
            local_time=datetime.now(UTC),
        )


def _plain_headers(streamed: httpx.Response) -> dict[str, str]:
    """Return the headers without those about an encoding that is undone already."""
    dropped = ("content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in streamed.headers.items() if name not in dropped}


def _whole(streamed: httpx.Response, deadline: float) -> bytes:
    content = b""
    for chunk in streamed.iter_bytes():
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise MalformedAnswerError(f"{REQUEST}: the answer has over {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the answer did not end in time", request=streamed.request)
    return content


def _date(response: httpx.Response) -> datetime:
    """Return the server's clock; a `ValueError` where it is not said."""
    text = response.headers.get("Date", "")
    moment = email.utils.parsedate_to_datetime(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
