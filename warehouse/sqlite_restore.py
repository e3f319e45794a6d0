"""The beginning of a log whose earlier records are in the archive only."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import apsw

from warehouse.files import locked_in_turn
from warehouse.log import RefusedError
from warehouse.records import Event, SignedRequest
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_questions import HEAD
from warehouse.sqlite_schema import connect, create_log, lock_path, translated_errors
from warehouse.sqlite_transaction import INSERT_EVENT, INSERT_SUBMISSION, SPEND


class SignedEvent(NamedTuple):
    """An admin's act and the request that signed it, its body zstd-compressed."""

    event: Event
    request: SignedRequest


def begin_log_after(
    settings: WarehouseSettings,
    floor: int,
    events: Sequence[SignedEvent],
    spent_signatures: Sequence[bytes],
) -> None:
    """Make an empty log one that goes on after seq `floor`, in one transaction.

    All samples up to there count as left for the archive. Blacklist and latest task are what the
    events make them, and the signatures are accepted by no write. Raises `RefusedError` unless the
    log is empty, `LogUnavailableError` when it cannot be written.
    """
    path = settings.log_path
    create_log(path, settings.log_lock_seconds_max)
    now_ms = time.time_ns() // 1_000_000
    with translated_errors(), locked_in_turn(lock_path(path), settings.log_lock_seconds_max):
        connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
        try:
            with connection:
                head = connection.execute(HEAD).fetchall()[0][0]
                if head:
                    raise RefusedError(f"{path} is a log with {head} records already")
                for event, request in events:
                    connection.execute(
                        INSERT_SUBMISSION,
                        (
                            event.seq - 1, event.received_at_ms, request.hotkey, request.scheme,
                            request.timestamp, request.nonce, request.method, request.path,
                            request.signature, request.body, 0, None, None,
                        ),
                    )  # fmt: skip
                    connection.execute(INSERT_EVENT, tuple(event))
                connection.executemany(SPEND, [(one, now_ms) for one in spent_signatures])
                connection.execute("UPDATE retention SET dropped_through = ?", (floor,))
        finally:
            connection.close()
