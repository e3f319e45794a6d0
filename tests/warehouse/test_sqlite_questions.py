"""Samples that SQLite writes as JSON are those that were stored, told as the API tells them."""

import math

import apsw
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.instants import iso8601
from api.routes.samples import _stored
from tests.properties import tried
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse import sqlite_reads, sqlite_transaction
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_reads import SqliteReader
from warehouse.sqlite_schema import LogDamagedError

INT63 = st.integers(0, 2**63 - 1)
# What a body may hold: any text but NUL, and no half of a surrogate pair.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
AWKWARD = '"\\/\b\f\n\r\t\x01\x1f\x7f\x80\u2028\ufeff\uffff\U0010ffff é 漢 </script>'
SAMPLES = st.builds(
    sample,
    st.sampled_from(["a", "b"]),
    INT63 | TEXT.filter(lambda text: text and not text.isdecimal()),
    passed=st.booleans(),
    confidence=st.none() | st.integers(0, 100),
    latency_ms=st.none() | INT63,
    prompt=TEXT,
    s3_bucket=TEXT,
    s3_prefix=TEXT,
    reasoning=st.none() | TEXT,
    generated_artifacts=st.none() | TEXT,
)
LAST_MS = 253_402_300_799_999  # of the year 9999


@pytest.fixture
def log(tmp_path):
    opened = SqliteLog(settings(tmp_path))
    yield opened
    opened.close()


def told(log, limit=500, **asked):
    found = log.samples_as_json(limit, **asked)
    samples = orjson.loads(found.json)
    assert len(samples) == found.sample_count
    return samples


def as_given(one):
    return one.sample_id, one.miner_hotkey, one.task_id, one.passed, one.confidence, (
        one.latency_ms, one.prompt, one.s3_bucket, one.s3_prefix, one.reasoning,
        one.generated_artifacts,
    )  # fmt: skip


@tried()
@given(st.lists(SAMPLES, min_size=1, max_size=5))
@example([sample(prompt=AWKWARD, reasoning=AWKWARD, generated_artifacts=AWKWARD, s3_prefix="")])
@example([sample(task=2**63 - 1, latency_ms=2**63 - 1, confidence=0)])
@example([sample(task=AWKWARD)])
def test_what_was_stored_is_told(log, samples):
    appended = append(log, *samples)
    stored = log.submission_samples(appended.submission_seq)
    assert [as_given(one) for one in stored] == [as_given(one) for one in samples]
    assert [one.seq for one in stored] == list(
        range(appended.submission_seq + 1, appended.submission_seq + 1 + len(samples))
    )
    assert told(log) == _stored(log.newest_samples(500))


@pytest.fixture
def judged(log):
    """Three validators about two miners, one of whom they judge twice."""
    for signer in ("v", "w", "x"):
        append(log, *(sample("a", task) for task in range(1, 6)), signer=signer)
        append(log, sample("b", 3), sample("a", 2, passed=False), signer=signer)
    return log


@pytest.mark.parametrize("limit", [1, 2, 7, 500])
def test_each_list_is_that_of_the_rows(judged, limit):
    assert told(judged, limit) == _stored(judged.newest_samples(limit))
    for name in ("v", "w", "x", "nobody"):
        whose = {"validator_hotkey": hotkey(name)}
        expected = _stored(judged.samples_of_validator(hotkey(name), limit))
        assert told(judged, limit, **whose) == expected
        assert all(one["validator_hotkey"] == hotkey(name) for one in expected)
    for name in ("a", "b", "nobody"):
        expected = _stored(judged.samples_of_miner(hotkey(name), limit))
        assert told(judged, limit, miner_hotkey=hotkey(name)) == expected
        assert all(one["miner_hotkey"] == hotkey(name) for one in expected)


def test_lists_are_newest_first_and_have_current_versions_alone(judged):
    listed = told(judged)
    assert [one["id"] for one in listed] == sorted((one["id"] for one in listed), reverse=True)
    assert len(listed) == 3 * 6
    assert [one["passed"] for one in listed if one["task_id"] == 2] == [False] * 3
    with pytest.raises(ValueError, match="one validator"):
        judged.samples_as_json(1, validator_hotkey=hotkey("v"), miner_hotkey=hotkey("a"))


def test_an_empty_list_is_one(log):
    assert log.samples_as_json(5) == (0, b"[]")
    assert log.submission_samples(1) == []


@tried(brief=40)
@given(st.integers(0, LAST_MS))
@example(0)
@example(LAST_MS)
@example(1_795_855_077_999)
@example(1_795_855_077_001)
def test_an_instant_is_told_as_everywhere(log, instant_ms):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_transaction.time, "time_ns", lambda: instant_ms * 1_000_000)
        append(log, sample())
    assert told(log, 1)[0]["evaluated_at"] == iso8601(instant_ms)


OF_NO_COLUMN = (b"\xff\x00", 1.5)
COLUMNS = {
    "samples": ("received_at_ms", "passed", "confidence", "latency_ms"),
    "sample_texts": (
        "sample_id", "prompt", "s3_bucket", "s3_prefix", "reasoning", "generated_artifacts",
    ),
    "hotkeys": ("hotkey",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *(
            (table, column, value)
            for table, columns in COLUMNS.items()
            for column in columns
            for value in OF_NO_COLUMN
        ),
        # Of no year that has a text.
        ("samples", "received_at_ms", 2**60),
        ("samples", "received_at_ms", -(2**60)),
    ],
)
def test_what_is_of_another_type_is_damage(log, table, column, value):
    log.append_samples(request("v"), [sample("a", 1), sample("a", 2)], None).result(30)
    # A file that says of itself that a column may hold anything, as damaged bytes make it.
    raw = apsw.Connection(str(log.path))
    raw.execute("DROP TRIGGER IF EXISTS hotkeys_never_updated")
    raw.execute(f"DROP TRIGGER IF EXISTS {table}_never_updated")
    raw.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    raw.pragma("writable_schema", 1)
    raw.execute(
        "UPDATE sqlite_schema SET sql = replace(replace(replace(sql, ') STRICT', ')'), "
        "'INTEGER', ''), 'TEXT', '') WHERE name = ?", (table,)
    )  # fmt: skip
    raw.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'seq  PRIMARY', 'seq INTEGER PRIMARY')"
    )
    raw.execute("UPDATE sqlite_schema SET sql = replace(sql, 'id  PRIMARY', 'id INTEGER PRIMARY')")
    raw.pragma("writable_schema", "RESET")
    last = f"(SELECT max(rowid) FROM {table})"
    raw.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = {last}", (value,))
    raw.close()
    reader = SqliteReader(log.settings)
    assert_damaged(reader)
    if table != "sample_texts" and value in OF_NO_COLUMN:
        assert_votes_damaged(log)
    reader.close()


def test_votes_are_told_of_more_hotkeys_than_are_kept(log, monkeypatch):
    monkeypatch.setattr(sqlite_reads, "HOTKEYS_KEPT_MAX", 2)
    monkeypatch.setattr(sqlite_reads, "VOTES_CHUNK_ROWS", 2)
    given = [f"m{number % 5}" for number in range(12)]
    samples = [sample(name, task) for task, name in enumerate(given)]
    log.append_samples(request("v"), samples, None).result(30)
    told = [row for votes in log.votes_between(0, 99) for row in votes.rows()]
    assert [row.miner_hotkey for row in told] == list(map(hotkey, given))
    assert {row.validator_hotkey for row in told} == {hotkey("v")}


def assert_votes_damaged(log):
    reader = SqliteReader(log.settings)
    with pytest.raises(LogDamagedError):
        list(reader.votes_between(0, 99))
    assert "damaged" in str(reader.damage())
    reader.close()


@pytest.mark.parametrize("value", [*OF_NO_COLUMN, math.inf])
def test_a_task_of_no_type_that_one_has_is_damage(log, value):
    log.append_samples(request("v"), [sample("a", 1), sample("a", "legacy")], None).result(30)
    reader = SqliteReader(log.settings)
    (votes,) = reader.votes_between(0, 99)
    assert (votes.task_id, votes.task_key) == ([1, None], ["1", "legacy"])
    raw = apsw.Connection(str(log.path))
    raw.execute("DROP TRIGGER samples_never_updated")
    raw.execute("UPDATE samples SET task = ? WHERE seq = 3", (value,))
    raw.close()
    assert_votes_damaged(log)
    reader.close()


def assert_damaged(reader):
    questions = [
        lambda: reader.samples_as_json(5),
        lambda: reader.samples_as_json(5, validator_hotkey=hotkey("v")),
        lambda: reader.newest_samples(5),
        lambda: reader.submission_samples(1),
        lambda: reader.samples_of_task("2", 500),
    ]
    for ask in questions:
        with pytest.raises(LogDamagedError):
            ask()
    assert "damaged" in str(reader.damage())


@pytest.mark.parametrize("table", ["sample_texts", "hotkeys"])
def test_what_cannot_be_found_is_damage_and_no_shorter_list(log, table):
    log.append_samples(request("v"), [sample("a", 1), sample("a", 2)], None).result(30)
    raw = apsw.Connection(str(log.path))
    for trigger in ("hotkeys_never_deleted", "sample_texts_deleted_once_archived"):
        raw.execute(f"DROP TRIGGER {trigger}")
    raw.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
    raw.close()
    reader = SqliteReader(log.settings)
    if table == "sample_texts":
        assert_damaged(reader)
    else:
        # The miner's: it is not known any more that it is this one's.
        for ask in (lambda: reader.samples_as_json(5), lambda: list(reader.votes_between(0, 9))):
            with pytest.raises(LogDamagedError):
                ask()
        with pytest.raises(LogDamagedError):
            reader.votes_of_task("1", 500)
        assert_votes_damaged(log)
    reader.close()
