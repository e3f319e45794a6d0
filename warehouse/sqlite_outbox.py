"""The outbox of the SQLite log: who has which evaluation result in flight, and what is due when.

Every change is one small transaction under the log's lock. None waits for the disk: a lost "done"
only means that an object is written once more.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import apsw

from warehouse.files import locked_in_turn
from warehouse.log import Claim, Failure, OutboxStatus
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_schema import (
    connect_to_write,
    create_log,
    is_closed,
    lock_path,
    translated_errors,
)

ERROR_CHARACTERS_MAX = 500
FOREVER_MS = 2**62

DUE = "SELECT 1 FROM outbox WHERE due_at_ms BETWEEN ? AND ? LIMIT 1"
CLAIM = """
    UPDATE outbox SET claim = :token, due_at_ms = :until, must_repeat = 0
    WHERE (task_id, validator_hotkey) IN (
        SELECT task_id, validator_hotkey FROM outbox
        WHERE due_at_ms BETWEEN :earliest AND :latest ORDER BY due_at_ms LIMIT :limit
    )
    RETURNING task_id, validator_hotkey, submission_seq, attempts, claim
"""
IS_CLAIMED = "task_id = :task_id AND validator_hotkey = :validator AND claim = :token"
RENEW = f"UPDATE outbox SET due_at_ms = :until WHERE {IS_CLAIMED}"
FORGET = f"""
    DELETE FROM outbox WHERE {IS_CLAIMED} AND submission_seq = :submission_seq AND NOT must_repeat
"""
RELEASE = f"UPDATE outbox SET claim = NULL, due_at_ms = :now WHERE {IS_CLAIMED}"
RELEASE_NEWER = f"""
    UPDATE outbox SET claim = NULL, queued_at_ms = :now, due_at_ms = :now, attempts = 0,
        last_error = NULL, failed_at_ms = NULL
    WHERE {IS_CLAIMED}
"""
FAIL = f"""
    UPDATE outbox SET claim = NULL, due_at_ms = :retry_at, attempts = attempts + 1,
        last_error = :error, failed_at_ms = :now
    WHERE {IS_CLAIMED}
"""
# Whoever has it in flight now began before our upload ended: theirs is followed by one more.
REQUEUE = """
    INSERT INTO outbox (task_id, validator_hotkey, submission_seq, queued_at_ms, due_at_ms)
    SELECT :task_id, :validator, max(submission_seq), :now, :now
    FROM samples INDEXED BY samples_version
    WHERE task = :task_id AND validator_id = (SELECT id FROM hotkeys WHERE hotkey = :validator)
    HAVING max(submission_seq) IS NOT NULL
    ON CONFLICT DO UPDATE SET must_repeat = 1
"""
STATUS = """
    SELECT count(*), min(queued_at_ms),
        count(*) FILTER (WHERE claim IS NOT NULL AND due_at_ms > ?), coalesce(max(attempts), 0)
    FROM outbox
"""
LAST_ERROR = """
    SELECT last_error, failed_at_ms FROM outbox WHERE failed_at_ms IS NOT NULL
    ORDER BY failed_at_ms DESC LIMIT 1
"""


class SqliteOutbox:
    """`warehouse.log.Outbox` on a SQLite file."""

    def __init__(self, settings: WarehouseSettings) -> None:
        self._path = settings.log_path
        self._lock_seconds_max = settings.log_lock_seconds_max
        self._lease_ms = _milliseconds(settings.outbox_lease_seconds)
        retry_ms = _milliseconds(settings.outbox_retry_seconds_max)
        self._wait_ms_max = max(self._lease_ms, retry_ms)
        create_log(self._path, self._lock_seconds_max)
        self._opened: apsw.Connection | None = None
        with translated_errors():
            self._connection()

    def claim(self, limit: int) -> list[Claim]:
        now = _now_ms()
        # What is due later than anything ever is was queued before the clock was set back.
        for span in ((0, now), (now + self._wait_ms_max + 1, FOREVER_MS)):
            with self._trusted() as connection:
                # Asked without the lock, which appends want.
                is_any_due = bool(connection.execute(DUE, span).fetchall())
            if is_any_due:
                return self._claim(limit, span, now)
        return []

    def renew(self, claims: Sequence[Claim]) -> None:
        self._update_all(RENEW, claims, until=_now_ms() + self._lease_ms)

    def done(self, claims: Sequence[Claim]) -> None:
        now = _now_ms()
        with self._transaction() as connection:
            for claim in claims:
                _first_that_changes(connection, (FORGET, RELEASE_NEWER, REQUEUE), claim, now=now)

    def failed(self, failures: Sequence[Failure]) -> None:
        now = _now_ms()
        with self._transaction() as connection:
            for claim, error, delay_seconds in failures:
                _first_that_changes(
                    connection,
                    (FAIL, REQUEUE),
                    claim,
                    now=now,
                    retry_at=now + _milliseconds(delay_seconds),
                    error=error[:ERROR_CHARACTERS_MAX],
                )

    def release(self, claims: Sequence[Claim]) -> None:
        self._update_all(RELEASE, claims, now=_now_ms())

    def status(self) -> OutboxStatus:
        with self._trusted() as trusted, trusted as connection:
            (counts,) = connection.execute(STATUS, (_now_ms(),)).fetchall()
            last = connection.execute(LAST_ERROR).fetchall()
        return OutboxStatus._make((*counts, *(last[0] if last else (None, None))))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _claim(self, limit: int, span: tuple[int, int], now: int) -> list[Claim]:
        with self._transaction() as connection:
            rows = connection.execute(
                CLAIM,
                {
                    "token": uuid4().hex,
                    "until": now + self._lease_ms,
                    "earliest": span[0],
                    "latest": span[1],
                    "limit": limit,
                },
            ).fetchall()
        return [Claim._make(row) for row in rows]

    def _update_all(self, statement: str, claims: Sequence[Claim], **values: int) -> None:
        with self._transaction() as connection:
            connection.executemany(statement, [_bindings(claim, values) for claim in claims])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        with (
            self._trusted() as trusted,
            locked_in_turn(lock_path(self._path), self._lock_seconds_max),
            trusted as connection,
        ):
            yield connection

    @contextlib.contextmanager
    def _trusted(self) -> Iterator[apsw.Connection]:
        """Yield a connection; one on which anything failed is not taken again."""
        with translated_errors():
            try:
                yield self._connection()
            except Exception:
                if self._opened is not None:
                    with contextlib.suppress(apsw.Error):
                        self._opened.close(True)
                self._opened = None
                raise

    def _connection(self) -> apsw.Connection:
        if self._opened is None or is_closed(self._opened):
            self._opened = connect_to_write(self._path)
            self._opened.pragma("synchronous", "normal")
        return self._opened


def _first_that_changes(
    connection: apsw.Connection, statements: Sequence[str], claim: Claim, **values: Any
) -> None:
    """Run the statements in turn until one of them finds a row."""
    for statement in statements:
        connection.execute(statement, _bindings(claim, values))
        if connection.changes():
            return


def _bindings(claim: Claim, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "task_id": claim.task_id,
        "validator": claim.validator_hotkey,
        "submission_seq": claim.submission_seq,
        "token": claim.token,
        **values,
    }


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
