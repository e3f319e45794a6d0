"""The log's contract: what every backend promises to api/ and pipelines/. No backend's code here.

    LogError
    ├── LogBusyError          too much is waiting for a commit: try again in a moment
    ├── LogUnavailableError   the log cannot be written or read now
    │   └── WrongLogError       what is in its place is no log of this software: waiting is no help
    └── RefusedError          nothing was stored, and repeating will not help
        ├── SignatureUsedError      an admin's signature was seen before
        ├── TaskGoesBackwardsError  the announced task is below the latest one
        ├── TaskNotAnnouncedError   a sample's task is above the latest announced one
        ├── AdminStateChangedError  what let the write in is no longer so: judge it anew
        └── NotBlacklistedError     the hotkey to remove is not on the blacklist

What a caller may rely on, whatever the backend:

1. Submissions, samples and events take their seqs from one sequence without gaps, in commit order:
   a reader that sees seq n sees every seq below it, for ever.
2. An append is all or nothing, and its future resolves only when the records survive a power cut
   and every reader of every process sees them.
3. When an append fails with `LogUnavailableError` it may or may not be stored; repeating the same
   signed request is safe, because a signature is good for one write.
4. Nothing is changed or deleted, except a prefix of samples (with their submissions) that
   `drop_through` takes out after the archive has been verified.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from warehouse.records import (
    AdminState,
    Appended,
    Evaluation,
    Event,
    RenderedSamples,
    Sample,
    SignedRequest,
    StoredSample,
)


class LogError(Exception):
    """Base of everything that the log raises on purpose."""


class LogBusyError(LogError):
    """Too many bytes wait for a commit; nothing was taken."""


class LogUnavailableError(LogError):
    """The log cannot be read or written now."""


class WrongLogError(LogUnavailableError):
    """What is in the log's place is no log that this software reads, or none can be there."""


class RefusedError(LogError):
    """The write was understood and refused; nothing of it was stored."""


class SignatureUsedError(RefusedError):
    """The signature was seen before, on a write or on a GET."""


class TaskGoesBackwardsError(RefusedError):
    """The announced task id is below the latest one."""

    def __init__(self, latest_task_id: int) -> None:
        super().__init__(f"the latest announced task is {latest_task_id}")
        self.latest_task_id = latest_task_id


class TaskNotAnnouncedError(RefusedError):
    """A sample's task is above the latest announced one: it would move everybody's window."""


class AdminStateChangedError(RefusedError):
    """An admin has acted since the state by which a write was let in; nothing is used up."""


class NotBlacklistedError(RefusedError):
    """The hotkey is not on the blacklist."""


class VoteRow(NamedTuple):
    """The narrow part of a sample, for the archive and the rules."""

    seq: int
    received_at_ms: int
    validator_hotkey: str
    miner_hotkey: str
    task_id: int | None
    task_key: str
    passed: bool
    confidence: int | None
    latency_ms: int | None


class VoteColumns(NamedTuple):
    """Votes by column, each as long as the others: a row takes more to make than to read."""

    seq: Sequence[int]
    received_at_ms: Sequence[int]
    validator_hotkey: Sequence[str]
    miner_hotkey: Sequence[str]
    task_id: Sequence[int | None]
    task_key: Sequence[str]
    passed: Sequence[bool]
    confidence: Sequence[int | None]
    latency_ms: Sequence[int | None]

    @classmethod
    def of(cls, rows: Iterable[VoteRow]) -> "VoteColumns":
        """Return the columns of rows."""
        return cls._make(
            zip(*rows, strict=True) if (rows := list(rows)) else [()] * len(VoteRow._fields)
        )

    def rows(self) -> Iterator[VoteRow]:
        """Return the rows."""
        return map(VoteRow._make, zip(*self, strict=True))


class TextRow(NamedTuple):
    """The wide part of a sample, for the archive."""

    seq: int
    sample_id: str
    prompt: str
    s3_bucket: str
    s3_prefix: str
    reasoning: str | None
    original_artifacts: str | None
    generated_artifacts: str | None
    presentation_order: str | None
    evaluation_signature: str | None


class SubmissionRow(NamedTuple):
    """A signed request as stored. `body` is zstd-compressed."""

    seq: int
    received_at_ms: int
    hotkey: str
    scheme: int
    timestamp: str
    nonce: str | None
    method: str
    path: str
    signature: bytes
    body: bytes
    sample_count: int
    evaluation_signature: str | None
    is_evaluation_verified: bool | None


class Submitted(NamedTuple):
    """What one submission said: its samples in its order, and the evaluation signature as given."""

    evaluation_signature: str | None
    samples: list[Sample]


class Backlog(NamedTuple):
    """Evaluation results that wait for object storage: how many, the oldest since when (UTC ms)."""

    depth: int
    oldest_queued_at_ms: int | None


class Claim(NamedTuple):
    """An evaluation result in one courier's hands: the newest submission when it was taken.

    `attempts`: failed uploads so far. `token` tells this claim from all others.
    """

    task_id: int
    validator_hotkey: str
    submission_seq: int
    attempts: int
    token: str


class Failure(NamedTuple):
    """An upload that failed: why, and after how many seconds it may be tried again."""

    claim: Claim
    error: str
    delay_seconds: float


class OutboxStatus(NamedTuple):
    """What waits in the outbox. `attempts_max` and the last failure are of what still waits."""

    depth: int
    oldest_queued_at_ms: int | None
    in_flight: int
    attempts_max: int
    last_error: str | None
    last_failed_at_ms: int | None


class LogWriter(Protocol):
    """Appends. One per process; threads share it."""

    def append_samples(
        self,
        request: SignedRequest,
        samples: Sequence[Sample],
        evaluation: Evaluation | None,
        admin_seq: int | None = None,
    ) -> "Future[Appended]":
        """Store the request and its samples, in order.

        `admin_seq`: the `AdminState.seq` by which the sender was let in. Where an admin has acted
        since, if only to announce a task, the future raises `AdminStateChangedError`, before all
        else, so that whoever is on the blacklist when a commit begins has nothing stored by it.
        None: the caller answers for the sender.

        A signature that was used for a write before stores nothing: the result says so
        (`is_replay`) and describes the submission that used it. Tasked samples also enter the
        outbox of evaluation results. Raises `LogBusyError` at once, and `ValueError` where there
        are no samples; the future raises `SignatureUsedError` when the signature was first seen on
        a GET or was refused before, and `TaskNotAnnouncedError`, which uses the signature up:
        replayed once the task is announced, the samples would replace newer votes. While no task
        was announced, any is accepted.
        """

    def announce_task(self, request: SignedRequest, task_id: int) -> "Future[Appended]":
        """Record that `task_id` is the latest task; the same id again is no step backwards.

        The future raises `TaskGoesBackwardsError` or `SignatureUsedError`. A refused admin write
        uses its signature up as well.
        """

    def add_to_blacklist(
        self, request: SignedRequest, hotkey: str, reason: str | None
    ) -> "Future[Appended]":
        """Put `hotkey` on the blacklist, or give its entry a new reason."""

    def remove_from_blacklist(self, request: SignedRequest, hotkey: str) -> "Future[Appended]":
        """Take `hotkey` off the blacklist. The future raises `NotBlacklistedError`."""

    def remember_signature(self, signature: bytes, good_at_ms: int = 0) -> "Future[None]":
        """Make sure that no write ever accepts this signature (it was seen on an admin's GET).

        `good_at_ms`: around when it would be accepted; until a day after that it is remembered.
        """

    def problem(self) -> str | None:
        """Return why the last commit failed, and when; None if it did not, or there was none.

        A failed one is followed by tries that store nothing, so that this ends when its cause does.
        Damage is told until something is stored.
        """

    def close(self) -> None:
        """Finish what was accepted, then let go of everything."""


class LogReader(Protocol):
    """Reads. Threads share it; every read sees all that was acknowledged before it began."""

    def head(self) -> int:
        """Return the highest seq, 0 for an empty log."""

    def admin_state(self) -> AdminState:
        """Return the blacklist and the latest task as of now; microseconds when unchanged."""

    def known_admin_state(self) -> AdminState:
        """Return what this reader found when it last asked; asks only if it never did."""

    def admin_state_at(self, seq: int) -> AdminState:
        """Return the blacklist and the latest task as events up to `seq` left them."""

    def submission_samples(self, submission_seq: int) -> list[StoredSample]:
        """Return the samples of one submission in its order, superseded or not."""

    def samples_as_json(
        self,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> RenderedSamples:
        """Return current samples as JSON, newest first: of one validator or about one miner if one
        is given. They are those of the three methods below; Python does next to nothing for it.
        """

    def newest_samples(self, limit: int) -> list[StoredSample]:
        """Return current samples, newest first."""

    def samples_of_validator(self, validator_hotkey: str, limit: int) -> list[StoredSample]:
        """Return one validator's current samples, newest first."""

    def samples_of_miner(self, miner_hotkey: str, limit: int) -> list[StoredSample]:
        """Return the current samples about one miner, newest first."""

    def samples_of_task(
        self,
        task_key: str,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> list[StoredSample]:
        """Return a task's current samples by (miner, validator), of one of them if given; `limit`
        at most.
        """

    def votes_of_task(self, task_key: str, limit: int) -> list[VoteRow]:
        """Return the narrow part of a task's current samples, `limit` at most, in no order."""

    def latest_sampled_task(self) -> int | None:
        """Return the greatest task id of any sample, None where there is none."""

    def votes_between(self, after: int, through: int) -> Iterator[VoteColumns]:
        """Yield all samples with after < seq <= through, in order, in chunks; none is empty."""

    def texts_between(self, after: int, through: int) -> Iterator[list[TextRow]]:
        """Yield the texts of all samples with after < seq <= through, in order, in chunks."""

    def submissions_between(self, after: int, through: int) -> Iterator[list[SubmissionRow]]:
        """Yield all submissions with after < seq <= through, in order, in chunks."""

    def events_between(self, after: int, through: int) -> list[Event]:
        """Return all events with after < seq <= through, in order."""

    def newest_submission_before(self, received_before_ms: int) -> int:
        """Return the last seq of the newest submission older than that, 0 where there is none."""

    def dropped_through(self) -> int:
        """Return the seq through which samples have left the log for the archive, 0 for none."""

    def submitted(self, submission_seq: int) -> Submitted | None:
        """Return what one submission said, None where the log does not have it (any more)."""

    def backlog(self, counted_max: int) -> Backlog:
        """Return how much waits for object storage. Cheap: the count ends at `counted_max`."""

    def oldest_waiting_submission(self) -> int | None:
        """Return the lowest seq of a submission whose evaluation result waits, None for none."""

    def damage(self) -> str | None:
        """Return what was damaged when somebody asked for it last, None if it no longer is."""

    def close(self) -> None:
        """Let go of everything."""


class Log(LogWriter, LogReader, Protocol):
    """What the API works with."""


class LogKeeper(LogReader, Protocol):
    """What the pipelines work with: reading, and letting go of what is archived."""

    def drop_through(self, seq: int) -> int:
        """Take samples and their submissions with seqs <= `seq` out; return how many records left.

        The caller vouches that the archive holds them and was verified. Events stay. An evaluation
        result that waits for such a submission waits no longer.
        """

    def disorder(self) -> list[str]:
        """Return what is wrong with the order of the records: a gap, an orphan, damage."""

    def check(self) -> list[str]:
        """Return what is wrong with the log: its order, and every signature."""


class Outbox(Protocol):
    """Evaluation results on their way to object storage. One thread uses it.

    A result is claimed for OUTBOX_LEASE_SECONDS, and again with each `renew`; after that another
    may claim it. A submission that replaces the claimed one waits until the claim ends, so that one
    upload at most is under way for an object. All methods raise `LogUnavailableError`.
    """

    def claim(self, limit: int) -> list[Claim]:
        """Take up to `limit` results that are due, the longest due first."""

    def renew(self, claims: Sequence[Claim]) -> None:
        """Keep what was claimed for another lease."""

    def done(self, claims: Sequence[Claim]) -> None:
        """Forget what was uploaded; what has a newer submission by now is due at once.

        So is what somebody else had claimed meanwhile: these uploads may have come after theirs,
        and have put an older version in the place of a newer one.
        """

    def failed(self, failures: Sequence[Failure]) -> None:
        """Note what went wrong. What was claimed by others is due again, as for `done`."""

    def release(self, claims: Sequence[Claim]) -> None:
        """Give back what was claimed and not begun."""

    def status(self) -> OutboxStatus:
        """Return what waits. Reads all of it."""

    def close(self) -> None:
        """Let go of everything."""
