"""What a signed request proves: which samples it brought, or which act of an admin it is.

As the API would take it now. Whoever doubts a stored record, and whoever restores one, asks here.
"""

from collections.abc import Mapping
from urllib.parse import unquote

from fastapi.exceptions import RequestValidationError

from api.auth import UNIX_TIME
from api.bodies import BlacklistAddition, SampleBatch, SampleSubmission, TaskAnnouncement
from api.dependencies import AnyBody, read
from warehouse.evaluation import evaluation
from warehouse.evidence import EvidenceError, body_of, unsigned
from warehouse.log import SubmissionRow
from warehouse.records import (
    BLACKLIST_ADDED,
    BLACKLIST_REMOVED,
    TASK_ANNOUNCED,
    Evaluation,
    Event,
    Sample,
)
from warehouse.sqlite_restore import SignedEvent

# The longest SIGNATURE_EXPIRY_SECONDS there is, and a day for clocks, as the log has it.
RECEIPT_DISTANCE_MS_MAX = 3_600_000 + 86_400_000


def proven(row: SubmissionRow, events: Mapping[int, Event]) -> list[Sample]:
    """Return the samples that a submission brought, none where it is an admin's act.

    `events` by seq. Raises `EvidenceError`, a sentence, where the hotkey did not sign it, or signed
    something else than what is stored.
    """
    if problem := unsigned(row):
        raise EvidenceError(problem)
    is_time = UNIX_TIME.fullmatch(row.timestamp)
    if not is_time or (
        abs(int(row.timestamp) * 1000 - row.received_at_ms) > RECEIPT_DISTANCE_MS_MAX
    ):
        raise EvidenceError(
            f"submission {row.seq} is stamped {row.timestamp}: it cannot have been received at "
            f"{row.received_at_ms} ms"
        )
    samples, judged = _said(row) if row.sample_count else ([], None)
    is_same = (
        len(samples) == row.sample_count
        and (row.evaluation_signature, row.is_evaluation_verified) == (judged or (None, None))
        and (row.sample_count > 0 or _is_act(row, events.get(row.seq + 1)))
    )
    if not is_same:
        raise EvidenceError(unlike(row))
    return samples


def prove_act(one: SignedEvent) -> None:
    """Raise `EvidenceError` unless an archived act is what its admin signed."""
    event, request = one
    row = SubmissionRow(
        event.seq - 1, event.received_at_ms, request.hotkey, request.scheme, request.timestamp,
        request.nonce, request.method, request.path, request.signature, request.body, 0, None, None,
    )  # fmt: skip
    proven(row, {event.seq: event})


def unlike(row: SubmissionRow) -> str:
    """Say that what is stored is something else than what was signed."""
    return f"submission {row.seq}: what is stored of it is not what {row.hotkey} signed"


def _route(row: SubmissionRow) -> str:
    """Return what was asked for, as the API routes it."""
    return f"{row.method} {unquote(row.path.partition('?')[0])}"


def _said(row: SubmissionRow) -> tuple[list[Sample], Evaluation | None]:
    """Return what a request says, as the API would take it now."""
    route = _route(row)
    if route == "POST /samples/batch":
        batch = _read(row, SampleBatch)
        samples, given = [one.to_sample() for one in batch.samples], batch.signature
    elif route == "POST /samples":
        samples = [_read(row, SampleSubmission).to_sample()]
        given = samples[0].evaluation_signature
    else:
        raise EvidenceError(f"submission {row.seq} is a {route}, which takes no samples")
    return samples, evaluation(row.hotkey, given, samples) if given else None


def _read(row: SubmissionRow, model: type[AnyBody]) -> AnyBody:
    try:
        return read(model, body_of(row))
    except RequestValidationError as error:
        what = "; ".join(str(problem["msg"]) for problem in error.errors())
        raise EvidenceError(f"submission {row.seq} holds no {model.__name__}: {what}") from error


def _is_act(row: SubmissionRow, event: Event | None) -> bool:
    """Tell whether an event is what an admin's request asked for."""
    if event is None:
        return False
    asked: tuple[str, str, str | None]
    if event.kind == TASK_ANNOUNCED:
        asked = ("POST /tasks", str(_read(row, TaskAnnouncement).task_id), None)
    elif event.kind == BLACKLIST_ADDED:
        addition = _read(row, BlacklistAddition)
        asked = ("POST /blacklist", addition.hotkey, addition.reason)
    elif event.kind == BLACKLIST_REMOVED:
        asked = (f"DELETE /blacklist/{event.subject}", event.subject, None)
    else:
        return False
    return (*asked, row.hotkey, row.received_at_ms) == (
        _route(row), event.subject, event.detail, event.admin_hotkey, event.received_at_ms,
    )  # fmt: skip
