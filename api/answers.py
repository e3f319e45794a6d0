"""What the client gets back: errors, typed answers, and how they are read off a response.

LeomaError
├── UnreachableError          no answer, after all retries
├── MalformedAnswerError      an answer that is not what the contract says
└── AnswerError               the service said no; has `status` and `detail`
    ├── UnauthorizedError     401: who signed, or how, was not accepted
    ├── ForbiddenError        403: not an admin
    ├── NotFoundError         404
    ├── ConflictError         409: a step backwards, or a signature used twice
    ├── InvalidRequestError   any other 4xx: the request itself is wrong
    └── UnavailableError      429 or 5xx, after all retries
"""

import contextlib
import email.utils
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx

DELAY_SECONDS_MAX = 20.0


class LeomaError(Exception):
    """Base of everything that the client raises about the service."""


class UnreachableError(LeomaError):
    """The service gave no answer; whether a write was stored is unknown."""


class MalformedAnswerError(LeomaError):
    """The answer is not what the contract says."""


class AnswerError(LeomaError):
    """The service answered with an error; `detail` is its own word."""

    def __init__(self, request: str, status: int, detail: Any) -> None:
        text = detail if isinstance(detail, str) else json.dumps(detail)
        super().__init__(f"{request} was answered with {status}: {text}")
        self.status = status
        self.detail = detail


class UnauthorizedError(AnswerError):
    """401: the hotkey, the time or the signature was not accepted."""


class ForbiddenError(AnswerError):
    """403: the signature is good, but its hotkey is not an admin."""


class NotFoundError(AnswerError):
    """404."""


class ConflictError(AnswerError):
    """409: the write contradicts what is stored, or its signature was used before."""


class InvalidRequestError(AnswerError):
    """Another 4xx: repeating the request will not help."""


class UnavailableError(AnswerError):
    """429 or 5xx, also after all retries: try again later."""


ERRORS: dict[int, type[AnswerError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    429: UnavailableError,
}


@dataclass(frozen=True, slots=True)
class MinerWeight:
    """One miner's weight; `pass_rate` is of the scoring window."""

    miner_hotkey: str
    uid: int
    pass_rate: float
    weight: float

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Self:
        """Read an entry of `GET /weights`."""
        return cls(
            miner_hotkey=str(answer["miner_hotkey"]),
            uid=int(answer["uid"]),
            pass_rate=float(answer["pass_rate"]),
            weight=float(answer["weight"]),
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one snapshot. `winner_uid` 0 means burn, and `burn_reason` then says why.

    `netuid` is the subnet that they are for, and `watermark` the last log position that counted.
    """

    winner_uid: int
    winner_hotkey: str | None
    burn_reason: str | None
    miners: tuple[MinerWeight, ...]
    snapshot_id: str
    netuid: int
    block: int
    computed_at: datetime
    valid_until: datetime
    watermark: int

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Self:
        """Read the answer of `GET /weights`."""
        return cls(
            winner_uid=int(answer["winner_uid"]),
            winner_hotkey=answer["winner_hotkey"],
            burn_reason=answer["burn_reason"],
            miners=tuple(MinerWeight.of(entry) for entry in answer["miners"]),
            snapshot_id=str(answer["snapshot_id"]),
            netuid=int(answer["netuid"]),
            block=int(answer["block"]),
            computed_at=instant(answer["computed_at"]),
            valid_until=instant(answer["valid_until"]),
            watermark=int(answer["watermark"]),
        )

    def is_usable(self, now: datetime | None = None) -> bool:
        """Tell whether these weights may be set on chain now.

        Not when they are stale, not when they name a winner and a reason to burn, or neither, and
        not when the uid says otherwise. All of it means "we do not know", and who does not know
        leaves the chain's weights as they are.
        """
        if self.winner_hotkey:
            # The winner may have uid 0, which is then no burn.
            due = [(self.winner_hotkey, self.winner_uid, 1.0)]
            is_decided = self.burn_reason is None
        else:
            due = []
            is_decided = bool(self.burn_reason) and self.winner_uid == 0
        given = [(miner.miner_hotkey, miner.uid, miner.weight) for miner in self.miners]
        is_consistent = is_decided and [entry for entry in given if entry[2] != 0] == due
        return is_consistent and (now or datetime.now(UTC)) < self.valid_until


@dataclass(frozen=True, slots=True)
class RankEntry:
    """One line of the rank table; `block` is the miner's commitment's, None if unknown."""

    miner_hotkey: str
    uid: int
    rank: int
    passed_count: int
    pass_rate: float
    block: int | None
    eligible: bool

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Self:
        """Read an entry of `GET /scores/rank`."""
        return cls(
            miner_hotkey=str(answer["miner_hotkey"]),
            uid=int(answer["uid"]),
            rank=int(answer["rank"]),
            passed_count=int(answer["passed_count"]),
            pass_rate=float(answer["pass_rate"]),
            block=None if answer["block"] is None else int(answer["block"]),
            eligible=bool(answer["eligible"]),
        )


def retry_after_seconds(response: httpx.Response) -> float:
    """Return what Retry-After asks for (seconds or a date), at most `DELAY_SECONDS_MAX`."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(float(text), DELAY_SECONDS_MAX)
    try:
        instant = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return min(max(instant.timestamp() - time.time(), 0.0), DELAY_SECONDS_MAX)


def server_time(detail: str) -> float | None:
    """Find the server's Unix seconds in the detail of a 401, None where it does not say."""
    found = re.search(r"server[ _]time\D{0,12}(\d{9,11}(?:\.\d+)?)", detail, re.IGNORECASE)
    return float(found[1]) if found else None


def instant(text: str) -> datetime:
    """Read an ISO 8601 instant; one without an offset is a `ValueError`, not local time."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset")
    return moment


def objects(answer: Any) -> list[dict[str, Any]]:
    """Return `answer` if it is a list of objects; raise `TypeError` otherwise."""
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise TypeError("a list of objects was expected")
    return answer


def one_object(answer: Any) -> dict[str, Any]:
    """Return `answer` if it is an object; raise `MalformedAnswerError` otherwise."""
    if not isinstance(answer, dict):
        raise MalformedAnswerError(f"an object was expected, not {type(answer).__name__}")
    return answer


@contextlib.contextmanager
def contract(request: str) -> Iterator[None]:
    """Turn what goes wrong while an answer is read into `MalformedAnswerError`."""
    try:
        yield
    # Overflow: JSON's 1e999 is infinite. Recursion: it may nest without an end.
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedAnswerError(
            f"{request} was answered with something else than the contract says: {error!r}"
        ) from error


def document(request: str, response: httpx.Response) -> Any:
    """Return the JSON of a successful answer."""
    with contract(request):
        return response.json()


def error_detail(response: httpx.Response) -> Any:
    """Return the `detail` of an error, or the start of whatever was answered instead."""
    try:
        return response.json()["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return response.text[:200] or response.reason_phrase


def answer_error(request: str, response: httpx.Response) -> AnswerError:
    """Return the error that an unsuccessful answer stands for."""
    status = response.status_code
    kind = ERRORS.get(status, InvalidRequestError if 400 <= status < 500 else UnavailableError)
    return kind(request, status, error_detail(response))
