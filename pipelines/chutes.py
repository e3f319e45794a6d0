"""Chutes, asked about one chute at a time: what it says of it, or `NoAnswer`."""

import json
import re

from pipelines.outside import (
    Cause,
    Clock,
    NoAnswer,
    bounded_client,
    due_within,
    header_secret,
    no_answer,
    no_answer_of_status,
    now_ms,
    printable,
)
from pipelines.validation import ChuteFact

# Chutes' ids are UUIDs. What could be more than one segment of a path, or mean something to a
# server in between, never reaches it: our key would open other routes than the one of a chute.
ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")


class Chutes:
    """A client of Chutes' API, safe for use by several threads; close it when done.

    `timeout_seconds` limits a question as a whole. Without a key none is sent.
    """

    def __init__(
        self, url: str, api_key: str, timeout_seconds: float, clock_ms: Clock = now_ms
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._clock_ms = clock_ms
        key = header_secret("CHUTES_API_KEY", api_key)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        # A redirect is no answer: whoever is named by it has no business with our key.
        self._client = bounded_client(follow_redirects=False)

    def fact(self, chute_id: str, timeout_seconds: float | None = None) -> ChuteFact:
        """Return what Chutes says about a chute now; raise `NoAnswer` when it says nothing.

        There is a definite answer when Chutes describes the chute or says that there is none: a 404
        in its own words, not one of whatever else answers at that address. What cannot be a chute's
        id is not found without a question. `timeout_seconds`, when it is shorter than the client's
        own, takes its place.
        """
        if not ID.fullmatch(chute_id):
            return self._absent(chute_id)
        seconds = self._timeout_seconds
        if timeout_seconds is not None:
            seconds = min(seconds, timeout_seconds)
        failure: NoAnswer | None = None
        try:
            with due_within(seconds):
                response = self._client.get(f"{self._url}/chutes/{chute_id}", headers=self._headers)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong on the way is no answer
            failure = no_answer(error)
        # Raised outside of the handler: the error that it would carry along knows our key.
        if failure is not None:
            raise failure
        if response.status_code == 404 and _is_denial(response.content):
            return self._absent(chute_id)
        if response.status_code != 200:
            raise no_answer_of_status(response.status_code, response.headers)
        return self._described(chute_id, response.content)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _absent(self, chute_id: str) -> ChuteFact:
        return ChuteFact(
            chute_id,
            is_found=False,
            slug=None,
            is_hot=None,
            revision=None,
            answered_at_ms=self._clock_ms(),
        )

    def _described(self, chute_id: str, body: bytes) -> ChuteFact:
        """Read a chute's description; another form than the known one is no answer."""
        try:
            chute = json.loads(body)
        except (ValueError, RecursionError) as error:
            # Neither a chute nor a denial: something in between speaks.
            raise NoAnswer("not JSON") from error
        if not isinstance(chute, dict) or not isinstance(chute.get("hot"), bool):
            raise NoAnswer("JSON of another form: `hot` is not a boolean", Cause.UNUSABLE)
        slug, revision = chute.get("slug"), chute.get("revision")
        if not isinstance(slug, str | None) or not isinstance(revision, str | None):
            raise NoAnswer("JSON of another form: `slug`, `revision` are no texts", Cause.UNUSABLE)
        return ChuteFact(
            chute_id,
            is_found=True,
            slug=None if slug is None else printable(slug),
            is_hot=chute["hot"],
            revision=None if revision is None else printable(revision),
            answered_at_ms=self._clock_ms(),
        )


def _is_denial(body: bytes) -> bool:
    """Tell whether a 404 is about a chute; one about a route that is not there says "Not Found"."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    detail = answer.get("detail") if isinstance(answer, dict) else None
    return isinstance(detail, str) and detail.strip(" .").lower() not in {"", "not found"}
