"""Evaluation results, from the outbox to object storage. `leoma courier` runs it.

One thread talks to the outbox, in small commits that are over before anything is sent; others read
a submission and send it. So neither a slow nor a dead bucket is ever waited for under a lock.
"""

import json
import logging
import random
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

from warehouse.evaluation import evaluation_entries
from warehouse.log import Claim, Failure, LogError, LogReader, Outbox, Submitted
from warehouse.objects import ObjectStorageError, ObjectStore
from warehouse.settings import WarehouseSettings

# Results in hand for each that is sent, so that no sender waits for a commit.
CLAIMED_AHEAD = 4
# How long uploads under way may still take when the process is to end.
GRACE_SECONDS = 10.0
# Beyond it a wait has reached any maximum.
EXPONENT_MAX = 30

logger = logging.getLogger(__name__)


class _Answer(NamedTuple):
    """What came of one upload. `is_of_storage`: it may be no fault of this very object."""

    claim: Claim
    error: str | None = None
    is_of_storage: bool = False


def result_key(task_id: int, validator_hotkey: str) -> str:
    """Return where a validator's evaluation result about a task lies in the bucket."""
    return f"{task_id}/evaluation_results/{validator_hotkey}.json"


def result_content(submitted: Submitted, task_id: int) -> bytes:
    """Return the object's JSON: the signature as given (or null), and the entries of one task.

    Where there is a signature, it is over all samples of the submission, which are of one task.
    """
    entries = evaluation_entries(one for one in submitted.samples if one.task_id == task_id)
    signature = submitted.evaluation_signature
    return json.dumps({"signature": signature, "data": entries}).encode()


class Uploader:
    """Uploads what waits, OUTBOX_CONCURRENCY_MAX at once, and tries again what fails.

    One object that fails waits by itself, ever longer. When object storage as a whole fails,
    nothing but one probe is sent after each of ever longer pauses, until one arrives. While the log
    ends before `counted_seq`, what the current generation counts, it is an older copy, whose
    results would take the place of newer ones: then nothing is sent.
    """

    def __init__(
        self,
        settings: WarehouseSettings,
        outbox: Outbox,
        log: LogReader,
        store: ObjectStore,
        counted_seq: Callable[[], int] = lambda: 0,
    ) -> None:
        self._outbox, self._log, self._store = outbox, log, store
        self._at_once = settings.outbox_concurrency_max
        self._retry_seconds_max = settings.outbox_retry_seconds_max
        self._probe_seconds_max = settings.outbox_probe_seconds_max
        self._renewal_seconds = settings.outbox_lease_seconds / 3
        self._poll_seconds = min(settings.outbox_poll_seconds, self._renewal_seconds)
        self._to_send: SimpleQueue[Claim | None] = SimpleQueue()
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        # Claimed and not yet settled; of these, what ended.
        self._in_hand: set[Claim] = set()
        self._done: list[Claim] = []
        self._failed: list[Failure] = []
        self._renew_at = 0.0
        self._storage_failures = 0  # since the last success
        self._pauses = 0
        self._resume_at = 0.0
        self._counted_seq, self._is_behind = counted_seq, False

    def run(self, stopping: Event) -> None:
        """Upload until `stopping` is set; then finish what is under way. Raises nothing."""
        for number in range(self._at_once):
            Thread(target=self._send_all, name=f"sender-{number}", daemon=True).start()
        while not stopping.is_set():
            if not self._survived(self._turn):
                stopping.wait(self._poll_seconds)
        self._survived(self._give_back)
        until = time.monotonic() + GRACE_SECONDS
        while self._in_hand and time.monotonic() < until:
            if not self._survived(self._settle_some):
                time.sleep(self._poll_seconds)
        for _ in range(self._at_once):
            self._to_send.put(None)

    def _survived(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except LogError as error:
            logger.warning("%s; trying again", error)
        except Exception:
            logger.exception("a defect; trying again")
        else:
            return True
        return False

    def _turn(self) -> None:
        if self._in_hand and time.monotonic() >= self._renew_at:
            self._outbox.renew(list(self._in_hand))
            self._renew_at = time.monotonic() + self._renewal_seconds
        self._claim()
        self._settle_some()
        self._pause()

    def _claim(self) -> None:
        if time.monotonic() < self._resume_at:
            return
        if self._log.head() < self._counted_seq():
            if not self._is_behind:
                logger.error("the log is older than what is published: no results are uploaded")
            self._is_behind = True
            return
        self._is_behind = False
        wanted = 1 if self._pauses else CLAIMED_AHEAD * self._at_once
        if len(self._in_hand) < wanted:
            for claim in self._outbox.claim(wanted - len(self._in_hand)):
                self._in_hand.add(claim)
                self._to_send.put(claim)

    def _settle_some(self) -> None:
        """Wait for what ends, and tell the outbox of many at once unless senders would wait."""
        while len(self._done) + len(self._failed) < self._at_once:
            try:
                self._judge(self._answers.get(timeout=self._poll_seconds))
            except Empty:
                break
            if self._to_send.empty() and self._answers.empty():
                break
        if self._done:
            self._outbox.done(self._done)
            self._in_hand.difference_update(self._done)
            self._done = []
        if self._failed:
            self._outbox.failed(self._failed)
            self._in_hand.difference_update(failure.claim for failure in self._failed)
            self._failed = []

    def _judge(self, answer: _Answer) -> None:
        if answer.error is None:
            if self._pauses:
                logger.info("object storage takes evaluation results again")
            self._storage_failures, self._pauses, self._resume_at = 0, 0, 0.0
            self._done.append(answer.claim)
            return
        # What began before a pause says nothing about what comes after it.
        if answer.is_of_storage and time.monotonic() >= self._resume_at:
            self._storage_failures += 1
        # Anywhere below the ceiling, so that what failed together is not tried together.
        ceiling = _ceiling(answer.claim.attempts, self._retry_seconds_max)
        delay_seconds = random.uniform(0, ceiling)  # noqa: S311
        self._failed.append(Failure(answer.claim, answer.error, delay_seconds))
        logger.debug("%s; again in %.1f s", answer.error, delay_seconds)

    def _pause(self) -> None:
        """Begin a pause when all fails: as many in a row as are sent at once, or all there are."""
        failures, now = self._storage_failures, time.monotonic()
        if now < self._resume_at or not failures or (failures < self._at_once and self._in_hand):
            return
        ceiling = _ceiling(self._pauses, self._probe_seconds_max)
        seconds = random.uniform(ceiling / 2, ceiling)  # noqa: S311
        self._pauses += 1
        self._storage_failures = 0
        self._resume_at = now + seconds
        logger.warning("object storage takes no evaluation results; again in %.1f s", seconds)
        self._give_back()

    def _give_back(self) -> None:
        """Release what no sender has begun."""
        unsent = []
        try:
            while claim := self._to_send.get_nowait():
                unsent.append(claim)
        except Empty:
            pass
        self._in_hand.difference_update(unsent)
        if unsent:
            self._outbox.release(unsent)

    def _send_all(self) -> None:
        while claim := self._to_send.get():
            self._answers.put(self._sent(claim))

    def _sent(self, claim: Claim) -> _Answer:
        try:
            submitted = self._log.submitted(claim.submission_seq)
            if submitted is None:
                # Retention may have come first, if a newer submission waits by now.
                return _Answer(claim, f"submission {claim.submission_seq} is not in the log")
            self._store.put(
                result_key(claim.task_id, claim.validator_hotkey),
                result_content(submitted, claim.task_id),
                content_type="application/json",
            )
        except ObjectStorageError as error:
            return _Answer(claim, str(error), is_of_storage=True)
        except LogError as error:
            return _Answer(claim, str(error))
        except Exception as error:
            logger.exception("a defect in the upload of %s", claim)
            return _Answer(claim, type(error).__name__)
        return _Answer(claim)


def _ceiling(failures: int, seconds_max: float) -> float:
    """Return the longest wait after so many earlier failures: 1, 2, 4 ... seconds."""
    return min(float(2 ** min(failures, EXPONENT_MAX)), seconds_max)
