"""A log that does not open when its process starts. Real disks in trouble: tests/faults."""

import contextlib
import errno
import inspect
import os
import threading
import time

import apsw
import pytest

from tests.warehouse.builders import append, request, sample, settings
from warehouse import sqlite_late, sqlite_schema
from warehouse.backends import open_log
from warehouse.files import fsync_path
from warehouse.log import Log, LogUnavailableError, WrongLogError
from warehouse.sqlite_late import SqliteLateLog
from warehouse.sqlite_log import SqliteLog

SECONDS_MAX = 20


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(sqlite_late, "RETRY_SECONDS", 0.05)


class Disk:
    """Where no log can be opened for writing until it is mended; counts who tried."""

    def __init__(self, monkeypatch):
        self.tries, self.is_mended, self.lock = 0, False, sqlite_schema.locked_in_turn
        monkeypatch.setattr(sqlite_schema, "locked_in_turn", self.locked)

    @contextlib.contextmanager
    def locked(self, path, timeout_seconds):
        self.tries += 1
        if not self.is_mended:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        with self.lock(path, timeout_seconds):
            yield


def wait_for(condition):
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def written(tmp_path):
    """The settings of a log with one sample."""
    log = SqliteLog(settings(tmp_path))
    append(log, sample(task=1))
    log.close()
    return log.settings


def test_a_log_that_cannot_be_written_is_read_and_says_why_it_takes_nothing(written, monkeypatch):
    disk = Disk(monkeypatch)
    log = open_log(written)
    assert [row.task_id for row in log.newest_samples(10)] == [1]
    assert "Read-only file system" in log.problem()
    with pytest.raises(LogUnavailableError, match=r"log\.sqlite cannot be opened.*Read-only"):
        log.append_samples(request(), [sample(task=2)], None)
    disk.is_mended = True
    wait_for(lambda: log.problem() is None)
    append(log, sample(task=2))
    assert [row.task_id for row in log.newest_samples(10)] == [2, 1]
    log.close()


def test_a_log_that_is_not_there_yet_answers_nothing_until_it_is_made(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    log = open_log(settings(tmp_path))
    with pytest.raises(LogUnavailableError, match="cannot be opened"):
        log.head()
    assert log.damage() is None
    disk.is_mended = True
    wait_for(lambda: log.problem() is None)
    assert log.head() == 0
    log.close()


def test_a_log_is_opened_by_nobody_who_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_late, "RETRY_SECONDS", 60)
    disk = Disk(monkeypatch)
    log = open_log(settings(tmp_path))
    for _ in range(100):
        with pytest.raises(LogUnavailableError):
            log.head()
    assert disk.tries == 1
    log.close()


def test_a_log_that_is_closed_before_it_opened_is_left_alone(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    log = open_log(settings(tmp_path))
    log.close()
    tries, disk.is_mended = disk.tries, True
    time.sleep(5 * sqlite_late.RETRY_SECONDS)
    assert disk.tries == tries


def test_a_log_that_opens_at_once_is_the_log_itself(tmp_path):
    log = open_log(settings(tmp_path))
    assert type(log) is SqliteLog
    log.close()


def newer(home):
    SqliteLog(settings(home)).close()
    with contextlib.closing(apsw.Connection(str(settings(home).log_path))) as connection:
        connection.pragma("user_version", 99)


def something_else(home):
    settings(home).log_path.parent.mkdir()
    settings(home).log_path.write_bytes(b"not a database" * 1000)


def a_directory(home):
    settings(home).log_path.mkdir(parents=True)


def below_a_file(home):
    settings(home).log_path.parent.write_bytes(b"")


@pytest.mark.parametrize("is_writable", [True, False])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        (newer, "schema version 99"),
        (something_else, "damaged"),
        (a_directory, "Is a directory"),
        (below_a_file, "File exists"),
    ],
)
def test_what_is_no_log_of_ours_is_not_waited_for(tmp_path, monkeypatch, place, says, is_writable):
    place(tmp_path)
    Disk(monkeypatch).is_mended = is_writable
    with pytest.raises(WrongLogError, match=says):
        open_log(settings(tmp_path))


def test_a_log_of_an_earlier_version_is_waited_for(written, monkeypatch):
    with contextlib.closing(apsw.Connection(str(written.log_path))) as connection:
        connection.pragma("user_version", 1)
    Disk(monkeypatch)
    log = open_log(written)
    with pytest.raises(LogUnavailableError):
        log.head()
    log.close()


def test_what_a_killed_writer_left_is_on_the_disk_before_it_is_read(written, monkeypatch):
    wal = written.log_path.with_name("log.sqlite-wal")
    monkeypatch.setattr(sqlite_schema, "fsync_path", broken_sync)
    Disk(monkeypatch)
    with contextlib.closing(apsw.Connection(str(written.log_path))) as writer:
        writer.pragma("user_version", writer.pragma("user_version"))
        assert wal.stat().st_size
        log = open_log(written)
        with pytest.raises(LogUnavailableError):
            log.head()
        monkeypatch.setattr(sqlite_schema, "fsync_path", fsync_path)
        wait_for(lambda: is_answered(log.head))
    log.close()


def broken_sync(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


def is_answered(question):
    try:
        question()
    except LogUnavailableError:
        return False
    return True


def test_all_connections_close_also_those_in_use(written, monkeypatch):
    monkeypatch.setattr(sqlite_schema, "IN_USE_SECONDS_MAX", SECONDS_MAX)
    connection = sqlite_schema.connect(written.log_path, apsw.SQLITE_OPEN_READONLY)
    is_in_use = threading.Event()

    def hold():
        is_in_use.set()
        time.sleep(0.2)

    connection.create_scalar_function("hold", hold)
    asking = threading.Thread(target=lambda: connection.execute("SELECT hold()").fetchall())
    asking.start()
    assert is_in_use.wait(SECONDS_MAX)
    sqlite_schema.close_all()
    assert sqlite_schema.is_closed(connection)
    asking.join()


def test_an_append_after_all_connections_were_closed_is_stored(tmp_path):
    log = SqliteLog(settings(tmp_path))
    append(log, sample(task=1))
    sqlite_schema.close_all()
    append(log, sample(task=2))
    assert log.head() == 4
    log.close()


class Recorder:
    """Stands for a log that opened: tells what it was asked."""

    def __init__(self, *_):
        self.asked = []

    def __getattr__(self, name):
        def ask(*given, **named):
            self.asked.append((name, given, named))
            return self

        return ask


def test_every_question_reaches_the_log_as_it_was_put(tmp_path, monkeypatch):
    opened = Recorder()
    monkeypatch.setattr(sqlite_late, "SqliteReader", lambda *_, **__: opened)
    monkeypatch.setattr(sqlite_late, "SqliteLog", lambda *_: opened)
    log = SqliteLateLog(settings(tmp_path), print, LogUnavailableError("not yet"))
    wait_for(lambda: log.problem() is opened)
    names = [name for name, _ in inspect.getmembers(Log, inspect.isfunction) if name[0] != "_"]
    assert {"append_samples", "head", "damage"} <= set(names)
    for name in names:
        if name == "close":
            continue
        parameters = list(inspect.signature(getattr(Log, name)).parameters.values())[1:]
        given = tuple(object() for one in parameters if one.kind is not one.KEYWORD_ONLY)
        named = {one.name: object() for one in parameters if one.kind is one.KEYWORD_ONLY}
        assert getattr(log, name)(*given, **named) is opened, name
        assert opened.asked[-1] == (name, given, named)
    log.close()
