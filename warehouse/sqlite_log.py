"""Appending to the SQLite log: one writer thread per process, many submissions a commit.

What arrived while a commit was on its way to the disk goes into the next one together, so the
fsync is paid once for all of them. The commits of several processes take turns under one file
lock, which is fairer than SQLite's own busy handler (p99 of a commit 12 ms against 42 ms).
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

import apsw
import zstandard

from warehouse.files import locked_in_turn
from warehouse.log import (
    LogBusyError,
    LogUnavailableError,
    RefusedError,
)
from warehouse.records import (
    BLACKLIST_ADDED,
    BLACKLIST_REMOVED,
    TASK_ANNOUNCED,
    Appended,
    Evaluation,
    Sample,
    SignedRequest,
)
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_reads import SqliteReader
from warehouse.sqlite_schema import (
    DAMAGE,
    LogDamagedError,
    close_all,
    connect_to_write,
    is_closed,
    lock_path,
    translated_errors,
)
from warehouse.sqlite_transaction import APPENDED, Transaction

ZSTD_LEVEL = 1  # bodies shrink to a third; level 3 takes twice the time for 4 % more
# The upper pages of the indexes, and what one commit changes, stay in memory.
WRITER_CACHE_KIB = 12_288
ROW_BYTES = 200  # what a record costs beside its body, for the queue's account
# How often it is tried whether commits succeed again, while nobody appends.
TRY_SECONDS = 2.0


@dataclass(slots=True)
class _Pending:
    """One append on its way: what it does inside the transaction, and who waits for it."""

    apply: Callable[[Transaction], object]
    queued_bytes: int
    future: Future[Any]
    outcome: object = None


class _ApplyError(Exception):
    """One append of a group could not be applied; the others are not to blame."""

    def __init__(self, pending: _Pending, cause: Exception) -> None:
        super().__init__(str(cause))
        self.pending = pending


class SqliteLog(SqliteReader):
    """`warehouse.log.LogWriter` and `LogReader` on a SQLite file. Threads share one."""

    def __init__(
        self, settings: WarehouseSettings, on_commit: Callable[[int, float], None] = lambda *_: None
    ) -> None:
        super().__init__(settings)
        self._on_commit = on_commit
        self._problem: str | None = None
        self._is_to_be_tried = False
        self._arrived = Condition()
        self._queue: deque[_Pending] = deque()
        self._queued_bytes = 0
        self._is_closing = False
        self._packing = Lock()
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._writer: Thread | None = None
        # Of the writer thread. None: of this turn nothing is taken from the queue yet.
        self._group: list[_Pending] | None = None
        self._hotkey_ids: dict[str, int] = {}

    def append_samples(
        self,
        request: SignedRequest,
        samples: Sequence[Sample],
        evaluation: Evaluation | None,
        admin_seq: int | None = None,
    ) -> "Future[Appended]":
        # It would take a seq that no sample and no event shows: HEAD would hand it out again.
        if not samples:
            raise ValueError("a submission has at least one sample")
        packed_body = self._packed(request.body)
        return self._enqueue(
            lambda transaction: transaction.append_samples(
                request, packed_body, samples, evaluation, admin_seq
            ),
            len(request.body),
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

    def remember_signature(self, signature: bytes, good_at_ms: int = 0) -> "Future[None]":
        return self._enqueue(lambda transaction: transaction.spend(signature, good_at_ms), 0, 1)

    def problem(self) -> str | None:
        return self._problem

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
        packed_body = self._packed(request.body)
        return self._enqueue(
            lambda transaction: transaction.append_event(
                request, packed_body, kind, subject, detail
            ),
            len(request.body),
            1,
        )

    def _packed(self, body: bytes) -> bytes:
        """Return the body as it is stored. By the caller, since nobody waits for him meanwhile."""
        with self._arrived:
            self._refuse_beyond(len(body))
        try:
            with self._packing:
                return self._compressor.compress(body)
        except Exception as error:
            raise _unavailable(error) from error

    def _enqueue(
        self, apply: Callable[[Transaction], object], body_bytes: int, record_count: int
    ) -> "Future[Any]":
        pending = _Pending(apply, body_bytes + ROW_BYTES * record_count, Future())
        with self._arrived:
            self._refuse_beyond(pending.queued_bytes)
            self._queue.append(pending)
            self._queued_bytes += pending.queued_bytes
            if self._writer is None:
                self._writer = Thread(target=self._write, name="log-writer", daemon=True)
                self._writer.start()
            self._arrived.notify()
        return pending.future

    def _refuse_beyond(self, more_bytes: int) -> None:
        if self._is_closing:
            raise LogUnavailableError("the log is closing")
        if self._queued_bytes + more_bytes > self.settings.log_queue_bytes_max:
            raise LogBusyError("too many submissions wait for a commit")

    def _write(self) -> None:
        """Commit group after group until the log closes and nothing waits."""
        connection: apsw.Connection | None = None
        file: tuple[int, int] | None = None
        while self._is_more_to_do():
            self._group = None
            try:
                with translated_errors():
                    if connection is None or is_closed(connection):
                        file = _identity(self.path)
                        connection = self._opened()
                    _refuse_another(self.path, file)
                try:
                    has_committed = self._commit_all(connection)
                except apsw.ReadOnlyError:
                    # It can be written again, but not through what was opened meanwhile.
                    close_all()
                    connection = self._opened()
                    has_committed = self._commit_all(connection)
                if has_committed:
                    self._problem, self._is_to_be_tried = None, False
            except Exception as error:  # noqa: BLE001  (whatever it was, the callers must hear it)
                at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                failure = _unavailable(error)
                self._problem = f"{failure} (last tried {at})"
                # A damaged page need not be one that a try meets; and such a file is left as it is.
                self._is_to_be_tried = not isinstance(failure, LogDamagedError)
                for pending in self._taken() if self._group is None else self._group:
                    pending.future.set_exception(_unavailable(error))
                # A connection that failed in mid-commit is not trusted again.
                if connection is not None:
                    with contextlib.suppress(apsw.Error):
                        connection.close(True)
                    connection = None
        if connection is not None:
            connection.close()

    def _is_more_to_do(self) -> bool:
        """Wait for work, or until a try is due; tell whether the writer is to go on."""
        with self._arrived:
            while not self._queue:
                if self._is_closing:
                    return False
                if not self._arrived.wait(TRY_SECONDS if self._is_to_be_tried else None):
                    return True
        return True

    def _opened(self) -> apsw.Connection:
        # It may be another file than before.
        self._hotkey_ids.clear()
        return _open_for_writing(self.path)

    def _commit_all(self, connection: apsw.Connection) -> bool:
        """Commit what waits and tell everybody; what cannot be applied fails alone.

        What is in it is decided under the lock, so that who came while it was waited for comes
        along. Where nobody waits it is a try, if one is due. Returns whether there was a commit;
        raises when nothing of `_group` is known to be stored.
        """
        begun = time.perf_counter()
        with locked_in_turn(lock_path(self.path), self.settings.log_lock_seconds_max):
            group = self._group = self._group or self._taken()
            is_try = not group and self._is_to_be_tried
            if is_try:
                self._try_out(connection)
            while group:
                try:
                    self._commit(connection, group)
                    break
                except _ApplyError as error:
                    group.remove(error.pending)
                    error.pending.future.set_exception(_unavailable(error))
        seconds = time.perf_counter() - begun
        for pending in group:
            if isinstance(pending.outcome, RefusedError):
                pending.future.set_exception(pending.outcome)
            else:
                pending.future.set_result(pending.outcome)
        if group:
            # Who only counts must not make a failure of what is stored.
            with contextlib.suppress(Exception):
                self._on_commit(len(group), seconds)
        return bool(group) or is_try

    def _taken(self) -> list[_Pending]:
        """Take from the queue what one commit may hold."""
        group: list[_Pending] = []
        group_bytes = 0
        with self._arrived:
            while self._queue and (
                not group
                or group_bytes + self._queue[0].queued_bytes <= self.settings.log_group_bytes_max
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
        with self._transaction(connection):
            transaction = Transaction(connection, self._hotkey_ids)
            for pending in group:
                try:
                    pending.outcome = pending.apply(transaction)
                except RefusedError as refusal:
                    pending.outcome = refusal
                except DAMAGE:
                    # No fault of this one; and what the connection keeps of the file in memory
                    # would outlive the damage.
                    raise
                except Exception as error:
                    raise _ApplyError(pending, error) from error
            transaction.file()

    def _try_out(self, connection: apsw.Connection) -> None:
        """Make a durable commit that changes nothing: what a number was is written again.

        SQLite writes and syncs the page of this one whether it has changed or not.
        """
        with self._transaction(connection):
            connection.pragma("user_version", connection.pragma("user_version"))

    @contextlib.contextmanager
    def _transaction(self, connection: apsw.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # Some may have been of this transaction.
            self._hotkey_ids.clear()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _open_for_writing(path: Path) -> apsw.Connection:
    connection = connect_to_write(path)
    try:
        connection.pragma("cache_size", -WRITER_CACHE_KIB)
        # The first to read the file, so that it fails where that does.
        connection.execute(APPENDED)
    except BaseException:
        connection.close(True)
        raise
    return connection


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
    if isinstance(error, DAMAGE):
        return LogDamagedError(error)
    return LogUnavailableError(f"the log cannot be written: {error}")
