"""Logs of earlier schema versions become one of this version, whole or not at all."""

import multiprocessing

import apsw
import pytest

from tests.warehouse.builders import append, hotkey, sample, settings
from warehouse import sqlite_schema, sqlite_transaction
from warehouse.backends import open_outbox
from warehouse.log import Backlog, LogUnavailableError
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

# What each version had instead of what the next one has.
VERSION_2 = """
DROP TABLE samples_by_validator;
DROP TABLE samples_by_miner;
DROP TABLE filing;
CREATE INDEX samples_validator ON samples (validator_id);
CREATE INDEX samples_miner ON samples (miner_id);
PRAGMA user_version = 2;
"""
VERSION_1 = f"""
{VERSION_2}
DROP TABLE outbox;
CREATE TABLE outbox (
    task_id INTEGER NOT NULL,
    validator_hotkey TEXT NOT NULL,
    submission_seq INTEGER NOT NULL,
    queued_at_ms INTEGER NOT NULL,
    PRIMARY KEY (task_id, validator_hotkey)
) STRICT, WITHOUT ROWID;
INSERT INTO outbox VALUES (1, 'gone', 1, 1000), (1, 'here', 3, 2000), (2, 'here', 3, 3000);
PRAGMA user_version = 1;
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a log of an earlier version, of which one submission has left; return its settings."""

    def made(version):
        # Some are filed and some are not.
        monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 5)
        log = SqliteLog(settings(tmp_path / "old"))
        append(log, sample(task=1))
        for task in (1, 2, 3):
            append(log, sample(task=task), sample("other", task))
        keeper = SqliteKeeper(log.settings)
        keeper.drop_through(2)
        keeper.close()
        log.close()
        connection = apsw.Connection(str(log.path))
        connection.execute({1: VERSION_1, 2: VERSION_2}[version])
        connection.close()
        return log.settings

    return made


def schema(path):
    connection = apsw.Connection(str(path))
    return sorted(connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall())


@pytest.mark.parametrize("version", [1, 2])
def test_a_log_of_an_earlier_version_becomes_one_of_this(make, version, tmp_path):
    older = make(version)
    log, new, keeper = SqliteLog(older), SqliteLog(settings(tmp_path / "new")), SqliteKeeper(older)
    assert apsw.Connection(str(log.path)).pragma("user_version") == sqlite_schema.SCHEMA_VERSION
    assert schema(log.path) == schema(new.path)
    assert keeper.check() == []
    assert [row.seq for row in log.samples_of_miner(hotkey("other"), 9)] == [11, 8, 5]
    of_validator = [row.seq for row in log.samples_of_validator(hotkey("validator"), 9)]
    assert of_validator == [11, 10, 8, 7, 5, 4]
    assert append(log, sample(task=9)).submission_seq == 12
    assert [row.seq for row in log.samples_of_miner(hotkey("miner"), 9)] == [13, 10, 7, 4]
    assert keeper.check() == []
    for one in (log, new, keeper):
        one.close()


def test_results_that_waited_wait_on(make):
    log = SqliteLog(make(1))
    assert log.backlog(9) == Backlog(2, 2000)
    outbox = open_outbox(log.settings)
    assert [claim.task_id for claim in outbox.claim(1)] == [1]
    outbox.close()
    log.close()


@pytest.mark.parametrize("version", [1, 2])
def test_processes_migrate_at_once(make, version):
    older = make(version)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_head, [older] * 3) == [11] * 3


def _head(warehouse_settings):
    reader = SqliteKeeper(warehouse_settings)
    try:
        return reader.head()
    finally:
        reader.close()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_migration_that_fails_changes_nothing(make, monkeypatch, failing):
    older = make(1)
    before = schema(older.log_path)
    monkeypatch.setitem(sqlite_schema.UPGRADES, failing, "DROP TABLE outbox; SELECT * FROM nowhere")
    with pytest.raises(LogUnavailableError):
        SqliteLog(older)
    assert schema(older.log_path) == before
    connection = apsw.Connection(str(older.log_path))
    assert connection.pragma("user_version") == 1
    connection.close()
    monkeypatch.undo()
    SqliteLog(older).close()
