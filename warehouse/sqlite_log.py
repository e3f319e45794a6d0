"""Appending to the SQLite log: one writer thread per process, many submissions a commit.

What arrived while a commit was on its way to the disk goes into the next one together, so the
fsync is paid once for all of them. The commits of several processes take turns under one file
lock, which is fairer than SQLite's own busy handler (p99 of a commit 12 ms against 42 ms).
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import apsw
import zstandard

from warehouse.files import locked
from warehouse.log import (
    LogBusyError,
    LogUnavailableError,
    NotBlacklistedError,
    RefusedError,
    SignatureUsedError,
    TaskGoesBackwardsError,
    TaskNotAnnouncedError,
)
from warehouse.records import (
    BLACKLIST_ADDED,
    BLACKLIST_REMOVED,
    TASK_ANNOUNCED,
    Appended,
    Evaluation,
    Event,
    Sample,
    SignedRequest,
    admin_state,
)
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_reads import EVENTS, HEAD, SqliteReader
from warehouse.sqlite_schema import connect, lock_path, translated_errors

ZSTD_LEVEL = 1  # bodies shrink to a third; level 3 takes twice the time for 4 % more
# The upper pages of the indexes, and what one commit changes, stay in memory.
WRITER_CACHE_KIB = 16_384
ROW_BYTES = 200  # what a record costs beside its body, for the queue's account
# A signature lives twice SIGNATURE_EXPIRY_SECONDS; a day leaves room for any clock set back.
SPENT_SIGNATURES_KEPT_MS = 86_400_000

FIND_SIGNATURE = """
    SELECT seq, sample_count, received_at_ms, method, path FROM submissions WHERE signature = ?
"""
LATEST_TASK = "SELECT subject FROM events WHERE kind = ? ORDER BY seq DESC LIMIT 1"
FIND_SPENT = "SELECT 1 FROM spent_signatures WHERE signature = ?"
SPEND = "INSERT INTO spent_signatures VALUES (?, ?) ON CONFLICT DO NOTHING"
FORGET_SPENT = "DELETE FROM spent_signatures WHERE spent_at_ms < ?"
INSERT_SUBMISSION = "INSERT INTO submissions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_SAMPLE = "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
FIND_HOTKEY = "SELECT id FROM hotkeys WHERE hotkey = ?"
INSERT_HOTKEY = "INSERT INTO hotkeys SELECT coalesce(max(id), 0) + 1, ? FROM hotkeys RETURNING id"
INSERT_TEXTS = "INSERT INTO sample_texts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"
QUEUE_RESULT = """
    INSERT INTO outbox VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
    SET submission_seq = excluded.submission_seq, queued_at_ms = excluded.queued_at_ms
"""


@dataclass(slots=True)
class _Pending:
    """One append on its way: what it does inside the transaction, and who waits for it."""

    apply: Callable[["_Transaction", bytes], object]
    body: bytes
    queued_bytes: int
    future: Future[Any]
    packed_body: bytes = b""
    outcome: object = None


class _ApplyError(Exception):
    """One append of a group could not be applied; the others are not to blame."""

    def __init__(self, pending: _Pending, cause: Exception) -> None:
        super().__init__(str(cause))
        self.pending = pending


class SqliteLog(SqliteReader):
    """`warehouse.log.LogWriter` and `LogReader` on a SQLite file. Threads share one."""

    def __init__(self, settings: WarehouseSettings) -> None:
        super().__init__(settings)
        self._arrived = Condition()
        self._queue: deque[_Pending] = deque()
        self._queued_bytes = 0
        self._is_closing = False
        self._writer: Thread | None = None

    def append_samples(
        self, request: SignedRequest, samples: Sequence[Sample], evaluation: Evaluation | None
    ) -> "Future[Appended]":
        # It would take a seq that no sample and no event shows: HEAD would hand it out again.
        if not samples:
            raise ValueError("a submission has at least one sample")
        return self._enqueue(
            lambda transaction, body: transaction.append_samples(
                request, body, samples, evaluation
            ),
            request.body,
            len(samples),
        )

    def announce_task(self, request: SignedRequest, task_id: int) -> "Future[Appended]":
        return self._enqueue_event(request, TASK_ANNOUNCED, str(task_id), None)

    def add_to_blacklist(
        self, request: SignedRequest, hotkey: str, reason: str | None
    ) -> "Future[Appended]":
        return self._enqueue_event(request, BLACKLIST_ADDED, hotkey, reason)

    def remove_from_blacklist(self, request: SignedRequest, hotkey: str) -> "Future[Appended]":
        return self._enqueue_event(request, BLACKLIST_REMOVED, hotkey, None)

    def remember_signature(self, signature: bytes) -> "Future[None]":
        return self._enqueue(lambda transaction, _: transaction.spend(signature), b"", 1)

    def close(self) -> None:
        with self._arrived:
            self._is_closing = True
            self._arrived.notify()
            writer = self._writer
        if writer is not None:
            writer.join()
        super().close()

    def _enqueue_event(
        self, request: SignedRequest, kind: str, subject: str, detail: str | None
    ) -> "Future[Appended]":
        return self._enqueue(
            lambda transaction, body: transaction.append_event(
                request, body, kind, subject, detail
            ),
            request.body,
            1,
        )

    def _enqueue(
        self, apply: Callable[["_Transaction", bytes], object], body: bytes, record_count: int
    ) -> "Future[Any]":
        pending = _Pending(apply, body, len(body) + ROW_BYTES * record_count, Future())
        with self._arrived:
            if self._is_closing:
                raise LogUnavailableError("the log is closing")
            if self._queued_bytes + pending.queued_bytes > self.settings.log_queue_bytes_max:
                raise LogBusyError("too many submissions wait for a commit")
            self._queue.append(pending)
            self._queued_bytes += pending.queued_bytes
            if self._writer is None:
                self._writer = Thread(target=self._write, name="log-writer", daemon=True)
                self._writer.start()
            self._arrived.notify()
        return pending.future

    def _write(self) -> None:
        """Commit group after group until the log closes and nothing waits."""
        connection: apsw.Connection | None = None
        file: tuple[int, int] | None = None
        while group := self._next_group():
            try:
                for pending in group:
                    pending.packed_body = zstandard.compress(pending.body, ZSTD_LEVEL)
                with translated_errors():
                    if connection is None:
                        file = _identity(self.path)
                        connection = connect(self.path, apsw.SQLITE_OPEN_READWRITE)
                        connection.pragma("cache_size", -WRITER_CACHE_KIB)
                    _refuse_another(self.path, file)
                self._commit_all(connection, group)
            except Exception as error:  # noqa: BLE001  (whatever it was, the callers must hear it)
                for pending in group:
                    pending.future.set_exception(_unavailable(error))
                # A connection that failed in mid-commit is not trusted again.
                if connection is not None:
                    with contextlib.suppress(apsw.Error):
                        connection.close(True)
                    connection = None
        if connection is not None:
            connection.close()

    def _commit_all(self, connection: apsw.Connection, group: list[_Pending]) -> None:
        """Commit a group and tell everybody in it; what cannot be applied fails alone.

        Raises when nothing of what is left in `group` is known to be stored.
        """
        while group:
            try:
                self._commit(connection, group)
            except _ApplyError as error:
                group.remove(error.pending)
                error.pending.future.set_exception(_unavailable(error))
                continue
            for pending in group:
                if isinstance(pending.outcome, RefusedError):
                    pending.future.set_exception(pending.outcome)
                else:
                    pending.future.set_result(pending.outcome)
            return

    def _next_group(self) -> list[_Pending]:
        """Wait for work and take what one commit may hold; an empty list ends the writer."""
        group: list[_Pending] = []
        group_bytes = 0
        with self._arrived:
            while not group:
                while not self._queue:
                    if self._is_closing:
                        return []
                    self._arrived.wait()
                while self._queue and (
                    not group
                    or group_bytes + self._queue[0].queued_bytes
                    <= self.settings.log_group_bytes_max
                ):
                    pending = self._queue.popleft()
                    self._queued_bytes -= pending.queued_bytes
                    # A caller that gave up before its turn wants nothing stored.
                    if pending.future.set_running_or_notify_cancel():
                        group.append(pending)
                        group_bytes += pending.queued_bytes
        return group

    def _commit(self, connection: apsw.Connection, group: list[_Pending]) -> None:
        """Apply a group in one transaction; when this returns, all of it is durable."""
        with locked(lock_path(self.path), self.settings.log_lock_seconds_max):
            connection.execute("BEGIN IMMEDIATE")
            try:
                transaction = _Transaction(connection)
                for pending in group:
                    try:
                        pending.outcome = pending.apply(transaction, pending.packed_body)
                    except RefusedError as refusal:
                        pending.outcome = refusal
                    except Exception as error:
                        raise _ApplyError(pending, error) from error
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another that takes its name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _refuse_another(path: Path, file: tuple[int, int] | None) -> None:
    """Raise unless `path` still names the file that was opened.

    One that was moved away or replaced while it is open takes commits that nobody ever finds.
    """
    if _identity(path) != file:
        raise LogUnavailableError(f"{path} is not the file that was opened")


def _unavailable(error: Exception) -> LogUnavailableError:
    if isinstance(error, LogUnavailableError):
        return error
    return LogUnavailableError(f"the log cannot be written: {error}")


class _Transaction:
    """The writes of one group: hands out seqs, and knows which signatures were used."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.seq = self._ask(HEAD, ())[0][0]
        self.now_ms = time.time_ns() // 1_000_000

    def append_samples(
        self,
        request: SignedRequest,
        packed_body: bytes,
        samples: Sequence[Sample],
        evaluation: Evaluation | None,
    ) -> Appended:
        """Store a submission of samples, or describe the one that used its signature."""
        if earlier := self._earlier(request.signature):
            return earlier
        latest = self._latest_task_id()
        highest = max((s.task_id for s in samples if s.task_id is not None), default=None)
        if latest is not None and highest is not None and highest > latest:
            self.spend(request.signature)
            raise TaskNotAnnouncedError(
                f"task_id {highest} is above the latest announced task {latest}"
            )
        if self._is_spent(request.signature):
            raise SignatureUsedError("the signature was already used for another request")
        appended = self._submission(request, packed_body, len(samples), evaluation)
        first_seq = self.seq + 1
        self.seq += len(samples)
        validator_id = self._hotkey_id(request.hotkey)
        miner_ids = {
            hotkey: self._hotkey_id(hotkey) for hotkey in {s.miner_hotkey for s in samples}
        }
        self.connection.executemany(
            INSERT_SAMPLE,
            [
                (
                    seq, appended.submission_seq, self.now_ms, validator_id,
                    miner_ids[sample.miner_hotkey],
                    sample.task_key if sample.task_id is None else sample.task_id,
                    sample.passed, sample.confidence, sample.latency_ms,
                )
                for seq, sample in enumerate(samples, first_seq)
            ],
        )  # fmt: skip
        self.connection.executemany(
            INSERT_TEXTS,
            [
                (
                    seq, sample.sample_id, sample.prompt, sample.s3_bucket, sample.s3_prefix,
                    sample.reasoning, sample.original_artifacts, sample.generated_artifacts,
                    sample.presentation_order, sample.evaluation_signature,
                )
                for seq, sample in enumerate(samples, first_seq)
            ],
        )  # fmt: skip
        for task_id in {sample.task_id for sample in samples if sample.task_id is not None}:
            self.connection.execute(
                QUEUE_RESULT, (task_id, request.hotkey, appended.submission_seq, self.now_ms)
            )
        return appended

    def append_event(
        self,
        request: SignedRequest,
        packed_body: bytes,
        kind: str,
        subject: str,
        detail: str | None,
    ) -> Appended:
        """Store an admin's act. A refused one uses up its signature: what is refused now must not
        be replayed when it would be accepted.
        """
        if self._earlier(request.signature) or self._is_spent(request.signature):
            raise SignatureUsedError("the signature was already used")
        try:
            self._check_event(kind, subject)
        except RefusedError:
            self.spend(request.signature)
            raise
        appended = self._submission(request, packed_body, 0, None)
        self.seq += 1
        self.connection.execute(
            INSERT_EVENT, (self.seq, self.now_ms, kind, subject, detail, request.hotkey)
        )
        return appended

    def spend(self, signature: bytes) -> None:
        """Make sure that no write accepts this signature."""
        self.connection.execute(FORGET_SPENT, (self.now_ms - SPENT_SIGNATURES_KEPT_MS,))
        self.connection.execute(SPEND, (signature, self.now_ms))

    def _latest_task_id(self) -> int | None:
        rows = self._ask(LATEST_TASK, (TASK_ANNOUNCED,))
        return int(rows[0][0]) if rows else None

    def _check_event(self, kind: str, subject: str) -> None:
        state = admin_state([Event._make(row) for row in self._ask(EVENTS, (0, self.seq))])
        if kind == TASK_ANNOUNCED:
            if state.latest_task_id is not None and int(subject) < state.latest_task_id:
                raise TaskGoesBackwardsError(state.latest_task_id)
        elif kind == BLACKLIST_REMOVED and subject not in state.blacklist:
            raise NotBlacklistedError(f"{subject} is not on the blacklist")

    def _submission(
        self,
        request: SignedRequest,
        packed_body: bytes,
        sample_count: int,
        evaluation: Evaluation | None,
    ) -> Appended:
        self.seq += 1
        self.connection.execute(
            INSERT_SUBMISSION,
            (
                self.seq, self.now_ms, request.hotkey, request.scheme, request.timestamp,
                request.nonce, request.method, request.path, request.signature, packed_body,
                sample_count, evaluation.signature if evaluation else None,
                evaluation.is_verified if evaluation else None,
            ),
        )  # fmt: skip
        return Appended(
            self.seq, sample_count, self.now_ms, request.method, request.path, is_replay=False
        )

    def _earlier(self, signature: bytes) -> Appended | None:
        rows = self._ask(FIND_SIGNATURE, (signature,))
        return Appended._make((*rows[0], True)) if rows else None

    def _is_spent(self, signature: bytes) -> bool:
        return bool(self._ask(FIND_SPENT, (signature,)))

    def _hotkey_id(self, hotkey: str) -> int:
        rows = self._ask(FIND_HOTKEY, (hotkey,)) or self._ask(INSERT_HOTKEY, (hotkey,))
        return int(rows[0][0])

    def _ask(self, sql: str, bindings: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, bindings).fetchall()
