"""What is asked of the log, one method a question. Nothing here writes."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter, itemgetter, lt
from typing import Any

import apsw
import orjson

from warehouse.log import (
    Backlog,
    LogUnavailableError,
    SubmissionRow,
    Submitted,
    TextRow,
    VoteColumns,
    VoteRow,
)
from warehouse.records import (
    AdminState,
    Event,
    RenderedSamples,
    Sample,
    StoredSample,
    admin_state,
)
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_questions import (
    BACKLOG,
    EVENTS,
    HEAD,
    HOTKEYS,
    LAST_SEQ_BEFORE,
    NARROW_COLUMNS,
    NARROW_PART,
    NEWEST,
    NEWEST_TOLD,
    OF_MINER,
    OF_MINER_TOLD,
    OF_SUBMISSION,
    OF_TASK,
    OF_TASK_AND_MINER,
    OF_TASK_AND_VALIDATOR,
    OF_TASK_VALIDATOR_AND_MINER,
    OF_VALIDATOR,
    OF_VALIDATOR_TOLD,
    SAMPLES_AS_SUBMITTED,
    SUBMISSIONS,
    SUBMITTED,
    TEXTS,
    VOTE_TYPES,
    VOTES_OF_TASK,
    Types,
)
from warehouse.sqlite_schema import (
    LogDamagedError,
    connect,
    create_log,
    is_closed,
    require_log,
    translated_errors,
)

# Rows a chunk: a long export is many short reads, so that it never keeps the WAL from being reset.
VOTES_CHUNK_ROWS = 50_000
TEXTS_CHUNK_ROWS = 2_500
# Usually 200 kB each, 2 MB at most.
SUBMISSIONS_CHUNK_ROWS = 250
HOTKEYS_KEPT_MAX = 16_384
# Of each thread that asks, of which a worker has some seven; every commit makes it empty.
READER_CACHE_KIB = 1_024

# As `TextRow._make`, without a call of Python for each of millions of rows.
AS_TEXT = partial(tuple.__new__, TextRow)
FIRST = itemgetter(0)
Bindings = tuple[Any, ...] | dict[str, Any]


def stored_task(task_key: str) -> int | str:
    """Return a task key as the column `task` holds it."""
    return int(task_key) if task_key.isascii() and task_key.isdigit() else task_key


class SqliteReader:
    """`warehouse.log.LogReader` on a SQLite file; a connection for each thread that asks.

    Raises `LogUnavailableError` when the file cannot be opened or read.
    """

    def __init__(self, settings: WarehouseSettings, *, is_inspection: bool = False) -> None:
        """`is_inspection`: the log must be there, and stays as it is, its version too."""
        self.settings = settings
        self.path = settings.log_path
        self._flags = apsw.SQLITE_OPEN_READONLY if is_inspection else apsw.SQLITE_OPEN_READWRITE
        if is_inspection:
            require_log(self.path)
        else:
            create_log(self.path, settings.log_lock_seconds_max)
        self._of_thread = threading.local()
        # Weak: a thread that ends takes its connection along, which closes it. Who serves many
        # clients has had many threads.
        self._connections: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()
        self._state = AdminState(-1, {}, None)
        # The last question that met damage.
        self._damaged: Callable[[], object] | None = None
        self._guard = threading.Lock()

    def head(self) -> int:
        return self._number(HEAD)

    def admin_state(self) -> AdminState:
        newest = self._number("SELECT coalesce(max(seq), 0) FROM events")
        state = self._state
        if state.seq < newest:
            # Two threads may both fold; either result is right for the time it was asked at.
            state = self.admin_state_at(newest)
            with self._guard:
                if self._state.seq < state.seq:
                    self._state = state
        return state

    def known_admin_state(self) -> AdminState:
        state = self._state
        return state if state.seq >= 0 else self.admin_state()

    def admin_state_at(self, seq: int) -> AdminState:
        try:
            return admin_state(self.events_between(0, seq))
        except ValueError as error:
            raise LogDamagedError(error) from error

    def submission_samples(self, submission_seq: int) -> list[StoredSample]:
        return sorted(self._samples(OF_SUBMISSION, {"seq": submission_seq}))

    def samples_as_json(
        self,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> RenderedSamples:
        if validator_hotkey is not None and miner_hotkey is not None:
            raise ValueError("of one validator, or about one miner")
        question = NEWEST_TOLD
        if validator_hotkey is not None:
            question = OF_VALIDATOR_TOLD
        elif miner_hotkey is not None:
            question = OF_MINER_TOLD
        asked = {"validator": validator_hotkey, "miner": miner_hotkey, "limit": limit}
        count, text = self._rows(question, asked, (int, str))[0]
        return RenderedSamples(count, text.encode())

    def newest_samples(self, limit: int) -> list[StoredSample]:
        return self._samples(NEWEST, {"limit": limit})

    def samples_of_validator(self, validator_hotkey: str, limit: int) -> list[StoredSample]:
        return self._samples(OF_VALIDATOR, {"validator": validator_hotkey, "limit": limit})

    def samples_of_miner(self, miner_hotkey: str, limit: int) -> list[StoredSample]:
        return self._samples(OF_MINER, {"miner": miner_hotkey, "limit": limit})

    def samples_of_task(
        self,
        task_key: str,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> list[StoredSample]:
        question = {
            (False, False): OF_TASK,
            (True, False): OF_TASK_AND_VALIDATOR,
            (False, True): OF_TASK_AND_MINER,
            (True, True): OF_TASK_VALIDATOR_AND_MINER,
        }[validator_hotkey is not None, miner_hotkey is not None]
        asked = {"validator": validator_hotkey, "miner": miner_hotkey, "limit": limit}
        found = self._samples(question, {"task": stored_task(task_key), **asked})
        return sorted(found, key=attrgetter("miner_hotkey", "validator_hotkey"))

    def votes_of_task(self, task_key: str, limit: int) -> list[VoteRow]:
        asked = {"task": stored_task(task_key), "limit": limit}
        return [VoteRow._make(row) for row in self._rows(VOTES_OF_TASK, asked, VOTE_TYPES)]

    def latest_sampled_task(self) -> int | None:
        # Any text is greater than any integer.
        latest: int | None = self._one("SELECT max(task) FROM samples WHERE task < ''")
        return latest

    def votes_between(self, after: int, through: int) -> Iterator[VoteColumns]:
        hotkeys: dict[int, str] = {}
        while (votes := self._votes(after, through, hotkeys)).seq:
            yield votes
            after = votes.seq[-1]

    def texts_between(self, after: int, through: int) -> Iterator[list[TextRow]]:
        for chunk in self._chunks(TEXTS, after, through, TEXTS_CHUNK_ROWS):
            yield list(map(AS_TEXT, chunk))

    def submissions_between(self, after: int, through: int) -> Iterator[list[SubmissionRow]]:
        for chunk in self._chunks(SUBMISSIONS, after, through, SUBMISSIONS_CHUNK_ROWS):
            yield [SubmissionRow._make(row) for row in chunk]

    def events_between(self, after: int, through: int) -> list[Event]:
        return [Event._make(row) for row in self._rows(EVENTS, (after, through))]

    def newest_submission_before(self, received_before_ms: int) -> int:
        rows = self._rows(LAST_SEQ_BEFORE, (received_before_ms,))
        return rows[0][0] if rows else 0

    def dropped_through(self) -> int:
        return self._number("SELECT dropped_through FROM retention")

    def submitted(self, submission_seq: int) -> Submitted | None:
        found = self._rows(SUBMITTED, (submission_seq,))
        if not found:
            return None
        signature, count = found[0]
        rows = self._rows(SAMPLES_AS_SUBMITTED, (submission_seq, count))
        samples = [Sample._make([*row[:4], bool(row[4]), *row[5:]]) for row in rows]
        # Retention may have come in between.
        return Submitted(signature, samples) if len(samples) == count else None

    def backlog(self, counted_max: int) -> Backlog:
        return Backlog._make(self._rows(BACKLOG, (counted_max,))[0])

    def oldest_waiting_submission(self) -> int | None:
        oldest: int | None = self._one("SELECT min(submission_seq) FROM outbox")
        return oldest

    def damage(self) -> str | None:
        if self._damaged is None:
            return None
        try:
            self._damaged()
        except LogUnavailableError as error:
            return str(error)
        self._damaged = None
        return None

    def close(self) -> None:
        with self._guard:
            connections = list(self._connections)
            self._connections.clear()
        for connection in connections:
            connection.close()

    def _samples(self, sql: str, bindings: Bindings) -> list[StoredSample]:
        _, told = self._rows(sql, bindings, (int, str))[0]
        return [StoredSample._make(row) for row in orjson.loads(told)]

    def _votes(self, after: int, through: int, hotkeys: dict[int, str]) -> VoteColumns:
        """Return a chunk of votes; `hotkeys` are those known so far, and then of these too."""
        asked = (after, through, VOTES_CHUNK_ROWS)
        try:
            columns = _parsed(self._rows(NARROW_COLUMNS, asked, (str,) * len(NARROW_PART))[0])
            _refuse_others(columns, NARROW_PART.values())
            _refuse_disorder(after, columns[0])
            seqs, validators, miners, tasks, received_at_ms, *judged = columns
            self._look_up({*validators, *miners}, hotkeys)
        except LogUnavailableError as error:
            is_damage = isinstance(error, LogDamagedError)
            # JSON holds no bytes, and none were written there.
            has_bytes = "BLOB" in str(error.__cause__)
            if is_damage or has_bytes:
                self._damaged = partial(self._votes, after, through, {})
                self._let_go()
            if has_bytes and not is_damage:
                raise LogDamagedError(error.__cause__) from error
            raise
        return VoteColumns(
            seqs, received_at_ms, [hotkeys[one] for one in validators],
            [hotkeys[one] for one in miners],
            [task if isinstance(task, int) else None for task in tasks],
            list(map(str, tasks)), *judged,
        )  # fmt: skip

    def _look_up(self, ids: set[int], hotkeys: dict[int, str]) -> None:
        if not hotkeys.keys() >= ids:
            # Samples may be about any hotkey that somebody makes up.
            if len(hotkeys) > HOTKEYS_KEPT_MAX:
                hotkeys.clear()
            missing = orjson.dumps(list(ids - hotkeys.keys())).decode()
            hotkeys.update(self._rows(HOTKEYS, (missing,), (int, str)))
            if unknown := ids - hotkeys.keys():
                raise LogDamagedError(f"hotkeys {sorted(unknown)[:3]} are missing in it")

    def _chunks(
        self, sql: str, after: int, through: int, rows_max: int, types: Sequence[Types] = ()
    ) -> Iterator[list[tuple[Any, ...]]]:
        while rows := self._rows(sql, (after, through, rows_max), types):
            _refuse_disorder(after, list(map(FIRST, rows)))
            yield rows
            after = rows[-1][0]

    def _number(self, sql: str) -> int:
        rows = self._rows(sql, ())
        if not rows or type(rows[0][0]) is not int:
            raise LogDamagedError("a number is missing in it")
        return rows[0][0]

    def _one(self, sql: str) -> Any:
        return self._rows(sql, ())[0][0]

    def _rows(
        self, sql: str, bindings: Bindings, types: Sequence[Types] = ()
    ) -> list[tuple[Any, ...]]:
        try:
            with translated_errors():
                rows = self._connection().execute(sql, bindings).fetchall()
            _refuse_others((map(itemgetter(at), rows) for at in range(len(types))), types)
        except LogDamagedError:
            self._damaged = partial(self._rows, sql, bindings, types)
            # What it keeps of the file in memory would outlive the damage.
            self._let_go()
            raise
        return rows

    def _let_go(self) -> None:
        """Have the next question of this thread look at the file anew."""
        connection: apsw.Connection | None = getattr(self._of_thread, "connection", None)
        self._of_thread.connection = None
        if connection is not None:
            with self._guard:
                self._connections.discard(connection)
            with contextlib.suppress(apsw.Error):
                connection.close(True)

    def _connection(self) -> apsw.Connection:
        connection: apsw.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None or is_closed(connection):
            connection = connect(self.path, self._flags)
            connection.pragma("query_only", True)
            connection.pragma("cache_size", -READER_CACHE_KIB)
            # A reader never moves WAL pages: commits do, under their lock.
            connection.pragma("wal_autocheckpoint", 0)
            self._of_thread.connection = connection
            with self._guard:
                self._connections.add(connection)
        return connection


def _parsed(told: Iterable[str]) -> list[list[Any]]:
    try:
        return list(map(orjson.loads, told))
    except orjson.JSONDecodeError as error:
        raise LogDamagedError(error) from error


def _refuse_others(columns: Iterable[Iterable[object]], types: Iterable[Types]) -> None:
    # By columns, each in one step of Python: an export asks it of millions of rows.
    for values, allowed in zip(columns, types, strict=True):
        if not set(map(type, values)).issubset(
            allowed if isinstance(allowed, tuple) else (allowed,)
        ):
            raise LogDamagedError("a record is none that was written")


def _refuse_disorder(after: int, seqs: list[int]) -> None:
    # Or the same rows would come again and again.
    if not all(map(lt, [after, *seqs], seqs)):
        raise LogDamagedError(f"what follows seq {after} is out of order")
