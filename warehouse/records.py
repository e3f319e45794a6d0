"""The log's records: what a caller hands in, and what it reads back.

A *submission* is a signed write as it arrived. It carries *samples* (a validator's) or one *event*
(an admin's). All three take their `seq` from one gap-free sequence, so a hole is a loss.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A signed write as it arrived: the evidence that this hotkey said this.

    `timestamp` and `nonce` are kept as sent, because the signature covers that text.
    """

    hotkey: str
    signature: bytes
    scheme: int
    timestamp: str
    nonce: str | None
    method: str
    path: str
    body: bytes


class Sample(NamedTuple):
    """One judged video, as the validator sent it. `task_key` names the task: the task id in
    decimal, or the legacy sample id where there is none (that is never all digits).
    """

    miner_hotkey: str
    task_id: int | None
    task_key: str
    sample_id: str
    passed: bool
    confidence: int | None
    latency_ms: int | None
    prompt: str
    s3_bucket: str
    s3_prefix: str
    reasoning: str | None
    original_artifacts: str | None
    generated_artifacts: str | None
    presentation_order: str | None
    evaluation_signature: str | None


class StoredSample(NamedTuple):
    """A sample as the log tells it. `received_at_ms`: the server's UTC milliseconds at commit."""

    seq: int
    received_at_ms: int
    validator_hotkey: str
    miner_hotkey: str
    task_id: int | None
    sample_id: str
    passed: bool
    confidence: int | None
    latency_ms: int | None
    prompt: str
    s3_bucket: str
    s3_prefix: str
    reasoning: str | None
    generated_artifacts: str | None


class RenderedSamples(NamedTuple):
    """Samples as a JSON array, with the names that the API's clients know."""

    sample_count: int
    json: bytes


class Evaluation(NamedTuple):
    """A validator's signature over its evaluation payload, and whether it verified on receipt."""

    signature: str
    is_verified: bool


class Appended(NamedTuple):
    """Where a submission stands in the log. Its samples have the seqs after `submission_seq`.

    `is_replay`: the signature had been used before; nothing was stored, and the rest describes the
    submission that had used it.
    """

    submission_seq: int
    sample_count: int
    received_at_ms: int
    method: str
    path: str
    is_replay: bool


class BlacklistEntry(NamedTuple):
    """A hotkey on the blacklist: who put it there, when (UTC ms), and the newest reason."""

    hotkey: str
    reason: str | None
    added_by: str
    created_at_ms: int


class Event(NamedTuple):
    """An admin's act. `kind`: task_announced, blacklist_added or blacklist_removed.

    `subject` is a task id in decimal or a hotkey; `detail` the reason, if any.
    """

    seq: int
    received_at_ms: int
    kind: str
    subject: str
    detail: str | None
    admin_hotkey: str


TASK_ANNOUNCED = "task_announced"
BLACKLIST_ADDED = "blacklist_added"
BLACKLIST_REMOVED = "blacklist_removed"


@dataclass(frozen=True, slots=True)
class AdminState:
    """What all events up to `seq` (0: none) come to."""

    seq: int
    blacklist: dict[str, BlacklistEntry]
    latest_task_id: int | None


def admin_state(events: list[Event]) -> AdminState:
    """Fold events, in order of seq, into the state they leave behind."""
    blacklist: dict[str, BlacklistEntry] = {}
    latest_task_id: int | None = None
    for event in events:
        if event.kind == TASK_ANNOUNCED:
            latest_task_id = int(event.subject)
        elif event.kind == BLACKLIST_ADDED:
            first = blacklist.get(event.subject)
            blacklist[event.subject] = BlacklistEntry(
                event.subject,
                event.detail,
                first.added_by if first else event.admin_hotkey,
                first.created_at_ms if first else event.received_at_ms,
            )
        elif event.kind == BLACKLIST_REMOVED:
            blacklist.pop(event.subject, None)
        else:
            raise ValueError(f"event {event.seq} has the unknown kind {event.kind!r}")
    return AdminState(events[-1].seq if events else 0, blacklist, latest_task_id)
