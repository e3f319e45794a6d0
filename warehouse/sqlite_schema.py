"""The log as a SQLite file: its schema, and how a connection to it is opened.

The database itself refuses what the contract forbids: triggers stop updates and deletes, and seqs
only grow. `sqlite_reads` asks, `sqlite_log` appends, `sqlite_keeper` checks and drops, and
`sqlite_outbox` hands out what waits for object storage.
"""

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import apsw

from warehouse.files import fsync_path, locked_in_turn, make_directory
from warehouse.log import LogUnavailableError, WrongLogError

SCHEMA_VERSION = 3
BUSY_TIMEOUT_MS = 5_000
# A question takes milliseconds: so long those that are under way are waited for.
IN_USE_SECONDS_MAX = 0.2
# The commit that reaches this many WAL pages (16 MiB) also moves them into the file, under the
# same lock as the commit, so that no two connections ever checkpoint at once.
WAL_CHECKPOINT_PAGES = 4_096

TABLES = """
CREATE TABLE submissions (
    seq INTEGER PRIMARY KEY,
    received_at_ms INTEGER NOT NULL,
    hotkey TEXT NOT NULL,
    scheme INTEGER NOT NULL,
    timestamp TEXT NOT NULL,
    nonce TEXT,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    signature BLOB NOT NULL,
    body BLOB NOT NULL,
    sample_count INTEGER NOT NULL,
    evaluation_signature TEXT,
    is_evaluation_verified INTEGER
) STRICT;
CREATE UNIQUE INDEX submissions_signature ON submissions (signature);

-- Samples name hotkeys by number: indexes over addresses of 48 characters are several times as
-- large and double the CPU time of an append (55-67 us a sample against 28-33).
CREATE TABLE hotkeys (
    id INTEGER PRIMARY KEY,
    hotkey TEXT NOT NULL UNIQUE
) STRICT;

-- `task` is the task id as an integer, or the legacy sample id as text, which is never all digits.
-- SQLite sorts the integers of a column before the texts.
CREATE TABLE samples (
    seq INTEGER PRIMARY KEY,
    submission_seq INTEGER NOT NULL,
    received_at_ms INTEGER NOT NULL,
    validator_id INTEGER NOT NULL,
    miner_id INTEGER NOT NULL,
    task ANY NOT NULL,
    passed INTEGER NOT NULL,
    confidence INTEGER,
    latency_ms INTEGER
) STRICT;
CREATE INDEX samples_version ON samples (task, miner_id, validator_id);

CREATE TABLE sample_texts (
    seq INTEGER PRIMARY KEY,
    sample_id TEXT NOT NULL,
    prompt TEXT NOT NULL,
    s3_bucket TEXT NOT NULL,
    s3_prefix TEXT NOT NULL,
    reasoning TEXT,
    original_artifacts TEXT,
    generated_artifacts TEXT,
    presentation_order TEXT,
    evaluation_signature TEXT
) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    received_at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT,
    admin_hotkey TEXT NOT NULL
) STRICT;

-- Signatures that no write may use although no submission has them: those of an admin's GETs, and
-- of admin writes that were refused.
CREATE TABLE spent_signatures (
    signature BLOB PRIMARY KEY,
    spent_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX spent_signatures_by_age ON spent_signatures (spent_at_ms);

-- One row: samples and their submissions up to here have left for the archive.
CREATE TABLE retention (dropped_through INTEGER NOT NULL) STRICT;
INSERT INTO retention VALUES (0);
CREATE TRIGGER retention_only_grows BEFORE UPDATE ON retention
WHEN NEW.dropped_through < OLD.dropped_through
BEGIN SELECT RAISE(ABORT, 'retention never goes backwards'); END;
CREATE TRIGGER retention_stays BEFORE DELETE ON retention
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER retention_is_one BEFORE INSERT ON retention
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
-- A connection without recursive_triggers would replace the submission that has the signature.
CREATE TRIGGER submissions_never_replaced BEFORE INSERT ON submissions
WHEN EXISTS (SELECT 1 FROM submissions WHERE signature = NEW.signature)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""

DELETED_ONCE_ARCHIVED = """
CREATE TRIGGER {table}_deleted_once_archived BEFORE DELETE ON {table}
WHEN OLD.seq > (SELECT dropped_through FROM retention)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
# The samples of each validator and about each miner, as two indexes would have them, but filed some
# thousand at a time, in order: one by one they took a tenth of what a batch takes. What comes after
# `filed_through` is looked for among the samples themselves.
FILED = """
CREATE TABLE samples_by_{kind} (
    {kind}_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY ({kind}_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER samples_by_{kind}_never_updated BEFORE UPDATE ON samples_by_{kind}
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
FILING = """
-- One row.
CREATE TABLE filing (filed_through INTEGER NOT NULL) STRICT;
INSERT INTO filing VALUES (0);
CREATE TRIGGER filing_only_grows BEFORE UPDATE ON filing
WHEN NEW.filed_through < OLD.filed_through
BEGIN SELECT RAISE(ABORT, 'filing never goes backwards'); END;
CREATE TRIGGER filing_stays BEFORE DELETE ON filing
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER filing_is_one BEFORE INSERT ON filing
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
FILES = (
    "".join(
        FILED.format(kind=kind) + DELETED_ONCE_ARCHIVED.format(table=f"samples_by_{kind}")
        for kind in ("validator", "miner")
    )
    + FILING
)
# Evaluation results that wait for object storage: the newest submission a task and validator.
# `due_at_ms` is when somebody may take one: now when it is queued, the end of the lease while it is
# in flight, the end of the wait after a failure.
OUTBOX = """
CREATE TABLE outbox (
    task_id INTEGER NOT NULL,
    validator_hotkey TEXT NOT NULL,
    submission_seq INTEGER NOT NULL,
    queued_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL,
    claim TEXT,
    must_repeat INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    failed_at_ms INTEGER,
    PRIMARY KEY (task_id, validator_hotkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_due ON outbox (due_at_ms);
CREATE INDEX outbox_queued ON outbox (queued_at_ms);
"""
# Of a result whose submission has left there is nothing to upload any more.
FROM_1_TO_2 = f"""
ALTER TABLE outbox RENAME TO outbox_1;
{OUTBOX}
INSERT INTO outbox (task_id, validator_hotkey, submission_seq, queued_at_ms, due_at_ms)
SELECT task_id, validator_hotkey, submission_seq, queued_at_ms, queued_at_ms FROM outbox_1
WHERE submission_seq > (SELECT dropped_through FROM retention);
DROP TABLE outbox_1;
"""
FROM_2_TO_3 = f"""
{FILES}
INSERT INTO samples_by_validator SELECT validator_id, seq FROM samples INDEXED BY samples_validator
ORDER BY validator_id, seq;
INSERT INTO samples_by_miner SELECT miner_id, seq FROM samples INDEXED BY samples_miner
ORDER BY miner_id, seq;
UPDATE filing SET filed_through = (SELECT coalesce(max(seq), 0) FROM samples);
DROP INDEX samples_validator;
DROP INDEX samples_miner;
"""
UPGRADES = {1: FROM_1_TO_2, 2: FROM_2_TO_3}

# A seq at or below the greatest one would rewrite history, also by INSERT OR REPLACE. A submission
# comes after every record of any kind, and after those that have left.
APPEND_ONLY = """
CREATE TRIGGER {table}_never_updated BEFORE UPDATE ON {table}
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER {table}_only_grows BEFORE INSERT ON {table}
WHEN NEW.seq <= max(
    coalesce((SELECT max(seq) FROM {table}), 0), (SELECT dropped_through FROM retention)
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
AFTER_ALL_OTHERS = """
CREATE TRIGGER {table}_after_all_others BEFORE INSERT ON {table}
WHEN NEW.seq <= max(
    coalesce((SELECT max(seq) FROM submissions), 0), coalesce((SELECT max(seq) FROM samples), 0),
    coalesce((SELECT max(seq) FROM events), 0)
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
NEVER_DELETED = """
CREATE TRIGGER events_never_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER hotkeys_never_deleted BEFORE DELETE ON hotkeys
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER hotkeys_never_updated BEFORE UPDATE ON hotkeys
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER hotkeys_only_grow BEFORE INSERT ON hotkeys
WHEN NEW.id <= (SELECT max(id) FROM hotkeys)
    OR EXISTS (SELECT 1 FROM hotkeys WHERE hotkey = NEW.hotkey)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
# The evidence of an admin's act stays as long as its event.
ADMIN_SUBMISSIONS_STAY = """
CREATE TRIGGER admin_submissions_never_deleted BEFORE DELETE ON submissions
WHEN OLD.sample_count = 0
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


def schema_statements() -> str:
    """Return everything that makes an empty database a log."""
    archived = ("submissions", "samples", "sample_texts")
    return "".join(
        [
            TABLES,
            FILES,
            OUTBOX,
            *(APPEND_ONLY.format(table=table) for table in (*archived, "events")),
            *(AFTER_ALL_OTHERS.format(table=table) for table in ("submissions", "events")),
            *(DELETED_ONCE_ARCHIVED.format(table=table) for table in archived),
            NEVER_DELETED,
            ADMIN_SUBMISSIONS_STAY,
            f"PRAGMA user_version = {SCHEMA_VERSION};",
        ]
    )


# A text that is none is in no file that was written here.
DAMAGE = (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError)
# The settings name a place where there can be no log, or one of somebody else.
WRONG_PLACE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


class LogDamagedError(LogUnavailableError):
    """The log's file is not what was written to it."""

    def __init__(self, what: object) -> None:
        super().__init__(
            f"the log's file is damaged ({what}): stop the service, keep the file, and put its "
            "newest copy in its place, or move it away and run `leoma restore`; `leoma fsck` "
            "checks it"
        )


class NoLogError(LogDamagedError, WrongLogError):
    """The file is no database at all."""


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the database's errors as `LogUnavailableError`, with what SQLite said."""
    try:
        yield
    except apsw.NotADBError as error:
        raise NoLogError(error) from error
    except DAMAGE as error:
        raise LogDamagedError(error) from error
    except WRONG_PLACE as error:
        raise WrongLogError(f"the log does not answer: {error}") from error
    except apsw.ReadOnlyError as error:
        close_all()
        raise LogUnavailableError(f"the log does not answer: {error}") from error
    except (apsw.Error, OSError) as error:
        raise LogUnavailableError(f"the log does not answer: {error}") from error


def lock_path(path: Path) -> Path:
    """Return the file whose lock every commit and checkpoint of this log holds."""
    return path.with_name(path.name + ".lock")


def create_log(path: Path, lock_seconds_max: float) -> None:
    """Create the log at `path` unless it is there; several processes may call this at once.

    A log of an earlier version becomes one of this version, whole or not at all. Raises
    `LogUnavailableError` when the file cannot be made or opened now, and `WrongLogError` when it
    is something else or has a later version's schema.
    """
    with translated_errors():
        make_directory(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with locked_in_turn(lock_path(path), lock_seconds_max):
            _sync_wal(path)
            connection = connect(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
            try:
                version = connection.pragma("user_version")
                if version == 0:
                    connection.pragma("journal_mode", "wal")
                    with connection:
                        connection.execute(schema_statements())
                    fsync_path(path.parent)
                elif version in UPGRADES:
                    with connection:
                        for earlier in range(version, SCHEMA_VERSION):
                            connection.execute(UPGRADES[earlier])
                        connection.pragma("user_version", SCHEMA_VERSION)
                else:
                    _refuse_other_version(path, version)
            finally:
                connection.close()


def require_log(path: Path) -> None:
    """Raise `LogUnavailableError` unless there is a log of this version; change nothing.

    `WrongLogError` where there is something else.
    """
    with translated_errors():
        if not path.exists():
            raise LogUnavailableError(f"there is no log at {path}")
        _sync_wal(path)
        connection = connect(path, apsw.SQLITE_OPEN_READONLY)
        try:
            _refuse_other_version(path, connection.pragma("user_version"))
        finally:
            connection.close()


def _sync_wal(path: Path) -> None:
    """Have what a killed writer left in the WAL on the disk.

    Who opens the log sees it from then on, and its repeat is answered.
    """
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        fsync_path(wal)


def _refuse_other_version(path: Path, version: int) -> None:
    if version != SCHEMA_VERSION:
        # An earlier one becomes ours when it can be written.
        refusal = LogUnavailableError if 0 <= version < SCHEMA_VERSION else WrongLogError
        raise refusal(f"{path} has schema version {version}; this software reads {SCHEMA_VERSION}")


class _Opened:
    """All connections of this process, each as long as somebody has it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._connections: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()

    def add(self, connection: apsw.Connection) -> None:
        with self._guard:
            self._connections.add(connection)

    def close(self) -> None:
        deadline = time.monotonic() + IN_USE_SECONDS_MAX
        # Nobody opens one meanwhile: it would keep the mapping of those that are still in use.
        with self._guard:
            while not self._have_closed() and time.monotonic() < deadline:
                time.sleep(0.001)

    def _have_closed(self) -> bool:
        """Close all connections that no thread is using just now; tell whether none is left."""
        for connection in list(self._connections):
            with contextlib.suppress(apsw.Error):
                connection.close(True)
                self._connections.discard(connection)
        return not self._connections


_opened = _Opened()


def close_all() -> None:
    """Close the connections of this process, which all of them open again when they are needed.

    They share one mapping of SQLite's shared memory. Who opened it while nothing could be written
    got it for reading only, and so does everybody after, until the last one lets go.
    """
    _opened.close()


def is_closed(connection: apsw.Connection) -> bool:
    """Tell whether `close_all` has closed a connection."""
    try:
        connection.total_changes()
    except apsw.ConnectionClosedError:
        return True
    return False


def connect(path: Path, flags: int) -> apsw.Connection:
    """Open one connection with the settings that durability and append-only depend on."""
    connection = apsw.Connection(str(path), flags=flags)
    _opened.add(connection)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        # FULL: a commit returns after its WAL frames are on the disk.
        connection.pragma("synchronous", "full")
        # Otherwise INSERT OR REPLACE would delete without asking the triggers.
        connection.pragma("recursive_triggers", True)
        connection.pragma("wal_autocheckpoint", WAL_CHECKPOINT_PAGES)
    except BaseException:
        # Or it would, whenever its memory is freed: and the last to close touches the file.
        connection.close(True)
        raise
    return connection


def connect_to_write(path: Path) -> apsw.Connection:
    """Open a connection that can write; raise `LogUnavailableError` where it cannot just now."""
    connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
    # SQLite opens for reading what it cannot open for writing just now, and BEGIN IMMEDIATE works.
    if connection.readonly("main"):
        connection.close()
        raise LogUnavailableError(f"{path} cannot be opened for writing")
    return connection
