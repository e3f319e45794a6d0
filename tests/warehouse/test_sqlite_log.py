import itertools
import json
import multiprocessing
from concurrent.futures import wait
from dataclasses import replace

import apsw
import pytest

from tests.builders import is_locked, wait_for
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse import sqlite_keeper, sqlite_transaction
from warehouse.files import locked_in_turn, next_lock_path
from warehouse.log import (
    AdminStateChangedError,
    LogBusyError,
    LogUnavailableError,
    NotBlacklistedError,
    RefusedError,
    SignatureUsedError,
    TaskGoesBackwardsError,
)
from warehouse.records import Evaluation
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_questions import OF_MINER_TOLD, OF_VALIDATOR_TOLD
from warehouse.sqlite_restore import begin_log_after
from warehouse.sqlite_schema import LogDamagedError, lock_path


@pytest.fixture
def log(tmp_path):
    opened = SqliteLog(settings(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def keeper(log):
    opened = SqliteKeeper(log.settings)
    yield opened
    opened.close()


def raw(log):
    return apsw.Connection(str(log.path))


def test_an_empty_log(log, keeper):
    assert log.head() == 0
    assert log.newest_samples(10) == []
    assert log.latest_sampled_task() is None
    assert log.admin_state().blacklist == {}
    assert keeper.check() == []


def test_what_was_appended_is_read_back(log, keeper):
    first = append(log, sample(task=1), sample(task=2, passed=False, reasoning=None))
    second = append(log, sample(task="legacy"))
    assert (first.submission_seq, first.sample_count, first.is_replay) == (1, 2, False)
    assert second.submission_seq == 4
    newest = log.newest_samples(10)
    assert [(row.seq, row.task_id, row.sample_id, row.passed) for row in newest] == [
        (5, None, "legacy", True),
        (3, 2, "2", False),
        (2, 1, "1", True),
    ]
    assert newest[1].reasoning is None
    assert newest[2].received_at_ms == first.received_at_ms
    assert log.submission_samples(1) == [newest[2], newest[1]]
    assert log.head() == 5
    assert log.latest_sampled_task() == 2
    assert keeper.check() == []


def test_another_process_reads_what_was_acknowledged(log):
    append(log, sample())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_head, (log.settings,)) == 2


def _head(warehouse_settings):
    reader = SqliteKeeper(warehouse_settings)
    try:
        return reader.head()
    finally:
        reader.close()


def test_processes_append_at_once_without_gap_or_loss(log, keeper):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        seqs = pool.starmap(_append_many, [(log.settings, n) for n in range(3)])
    assert len(set(itertools.chain.from_iterable(seqs))) == 3 * 40
    assert log.head() == 3 * 40 * 3
    assert len(log.newest_samples(1000)) == 3 * 40 * 2
    assert keeper.check() == []


def _append_many(warehouse_settings, number):
    log = SqliteLog(warehouse_settings)
    signer = f"validator{number}"
    futures = [
        log.append_samples(request(signer, task), [sample("a", task), sample("b", task)], None)
        for task in range(40)
    ]
    seqs = [future.result(60).submission_seq for future in futures]
    log.close()
    return seqs


def test_lists_show_the_newest_version_only(log):
    append(log, sample("a", 1), sample("b", 1))
    append(log, sample("a", 1, passed=False))
    append(log, sample("a", 1), signer="other")
    assert [row.seq for row in log.newest_samples(10)] == [7, 5, 3]
    assert [row.seq for row in log.newest_samples(2)] == [7, 5]
    assert [row.seq for row in log.samples_of_validator(hotkey("validator"), 10)] == [5, 3]
    assert [row.seq for row in log.samples_of_miner(hotkey("a"), 10)] == [7, 5]
    of_task = {row.seq for row in log.samples_of_task("1", 500)}
    assert of_task == {3, 5, 7}
    other = hotkey("other")
    assert [row.seq for row in log.samples_of_task("1", 500, validator_hotkey=other)] == [7]
    assert {row.seq for row in log.samples_of_task("1", 500, miner_hotkey=hotkey("a"))} == {5, 7}
    both = {"validator_hotkey": other, "miner_hotkey": hotkey("a")}
    assert [row.seq for row in log.samples_of_task("1", 500, **both)] == [7]
    assert log.samples_of_task("2", 500) == []


def filed_through(log):
    return raw(log).execute("SELECT filed_through FROM filing").fetchall()[0][0]


@pytest.mark.parametrize("limit", [3, 500])
def test_lists_of_a_hotkey_are_right_wherever_filing_is(log, keeper, monkeypatch, limit):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 10)
    newest, filed = {}, set()
    for number in range(40):
        signer, task = f"v{number % 3}", number % 7
        seq = append(log, sample("a", task), sample(f"m{number % 4}", task), signer=signer)
        for place, miner in enumerate(("a", f"m{number % 4}"), 1):
            newest[signer, miner, task] = seq.submission_seq + place
        filed.add(filed_through(log))
        for name in ("v0", "v1", "nobody"):
            expected = sorted((at for key, at in newest.items() if key[0] == name), reverse=True)
            found = log.samples_of_validator(hotkey(name), limit)
            assert [row.seq for row in found] == expected[:limit]
            told = log.samples_as_json(limit, validator_hotkey=hotkey(name))
            assert [row["id"] for row in json.loads(told.json)] == expected[:limit]
        for name in ("a", "m2", "nobody"):
            expected = sorted((at for key, at in newest.items() if key[1] == name), reverse=True)
            found = log.samples_of_miner(hotkey(name), limit)
            assert [row.seq for row in found] == expected[:limit]
            told = log.samples_as_json(limit, miner_hotkey=hotkey(name))
            assert [row["id"] for row in json.loads(told.json)] == expected[:limit]
    # In steps, each before a question reads more than it is allowed to.
    assert filed == {0, *range(12, log.head() + 1, 12)}
    assert keeper.check() == []


def test_lists_of_a_hotkey_are_right_when_filed_ones_have_left(log, keeper, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 10)
    for task in range(10):
        append(log, sample("a", task), sample("b", task))
    assert filed_through(log) == 24
    # Some of what is filed; all of it; and some of what is not.
    for floor in (9, 24, 27):
        keeper.drop_through(floor)
        expected = [seq for seq in range(2, 30, 3) if seq > floor]
        assert [row.seq for row in log.samples_of_miner(hotkey("a"), 99)] == expected[::-1]
        assert len(log.samples_of_validator(hotkey("validator"), 99)) == 2 * len(expected)
        assert keeper.check() == []
    append(log, sample("a", 10), sample("b", 10))
    append(log, sample("a", 11), sample("b", 11))
    assert filed_through(log) == 36
    assert [row.seq for row in log.samples_of_miner(hotkey("a"), 99)] == [35, 32, 29]
    assert keeper.check() == []


def test_a_list_of_a_hotkey_reads_no_further_than_its_limit(log):
    # One query of both parts would read, and sort, all that a hotkey has.
    for question in (OF_VALIDATOR_TOLD, OF_MINER_TOLD):
        asked = {"validator": "", "miner": "", "limit": 1}
        plan = [row[3] for row in raw(log).execute(f"EXPLAIN QUERY PLAN {question}", asked)]
        assert "MERGE (UNION ALL)" in plan
        assert not any("TEMP B-TREE" in step or step.startswith("MATERIALIZE") for step in plan)
        # Tables of one row, and what other steps give; never all samples of anybody.
        scanned = {step for step in plan if step.startswith("SCAN") and "subquery" not in step}
        assert scanned == {"SCAN filing", "SCAN found", "SCAN retention", "SCAN CONSTANT ROW"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE filing SET filed_through = filed_through - 1",
        "DELETE FROM filing",
        "INSERT INTO filing VALUES (99)",
        "INSERT OR REPLACE INTO filing (rowid, filed_through) VALUES (1, 0)",
    ],
)
def test_filing_goes_forwards_only(log, statement):
    append(log, sample())
    with pytest.raises(apsw.ConstraintError):
        raw(log).execute(statement)


@pytest.mark.parametrize("table", ["samples_by_miner", "samples_by_validator"])
def test_what_is_filed_stays(log, keeper, monkeypatch, table):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 2)
    append(log, sample())
    for statement in (f"UPDATE {table} SET seq = 1", f"DELETE FROM {table}"):
        with pytest.raises(apsw.ConstraintError):
            raw(log).execute(statement)
    keeper.drop_through(2)
    assert raw(log).execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]


def test_two_writers_file_for_each_other(log, keeper, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 7)
    other = SqliteLog(log.settings)
    futures = [
        writer.append_samples(request(signer, n), [sample("a", n), sample("b", n)], None)
        for n in range(60)
        for writer, signer in ((log, "v"), (other, "w"))
    ]
    seqs = {future.result(30).submission_seq for future in futures}
    other.close()
    assert filed_through(log) > log.head() - 7 - 3 * len(futures)
    assert [row.seq for row in log.samples_of_miner(hotkey("a"), 500)] == sorted(
        (seq + 1 for seq in seqs), reverse=True
    )
    assert len(log.samples_of_validator(hotkey("w"), 500)) == 2 * 60
    assert keeper.check() == []


def test_a_restored_log_files_what_comes_after(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 6)
    begin_log_after(settings(tmp_path / "restored"), 1_000, [], [])
    log = SqliteLog(settings(tmp_path / "restored"))
    for task in range(5):
        append(log, sample("a", task))
    assert [row.seq for row in log.samples_of_miner(hotkey("a"), 9)] == [*range(1_010, 1_000, -2)]
    assert filed_through(log) == 1_008
    keeper = SqliteKeeper(log.settings)
    assert keeper.disorder() == []
    keeper.close()
    log.close()


def test_what_cannot_be_filed_is_not_stored(log, keeper, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 4)
    append(log, sample())
    connection = raw(log)
    connection.execute("ALTER TABLE samples_by_miner RENAME TO elsewhere")
    with pytest.raises(LogUnavailableError):
        append(log, sample())
    assert log.head() == 2
    connection.execute("ALTER TABLE elsewhere RENAME TO samples_by_miner")
    append(log, sample(task=2))
    assert (log.head(), filed_through(log)) == (4, 4)
    assert keeper.check() == []


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM filing",
        "INSERT INTO filing VALUES (0)",
        "UPDATE filing SET filed_through = -1",
        "UPDATE filing SET filed_through = filed_through + 1000",
    ],
)
def test_without_knowing_what_is_filed_nothing_is_told_and_nothing_taken(log, keeper, harm):
    append(log, sample())
    without_triggers(log).execute(harm)
    for ask in (log.samples_of_miner, log.samples_of_validator):
        with pytest.raises(LogDamagedError):
            ask(hotkey("nobody"), 9)
    assert "damaged" in log.damage()
    assert "nothing says how far samples are filed" in keeper.disorder()
    with pytest.raises(LogDamagedError, match="nothing says how far samples are filed"):
        append(log, sample())
    assert "damaged" in log.problem()
    assert log.head() == 2


@pytest.mark.parametrize("table", ["samples_by_miner", "samples_by_validator"])
@pytest.mark.parametrize(
    ("harm", "found"),
    [
        # No sample there, one of another hotkey, and what comes after all that is filed.
        ("DELETE FROM samples WHERE seq = 2", None),
        ("UPDATE {table} SET {id} = 3 - {id} WHERE {id} < 3", None),
        ("INSERT INTO {table} VALUES (1, 5)", [2]),
    ],
)
def test_what_is_filed_wrongly_is_told_or_made_good(log, monkeypatch, table, harm, found):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 2)
    append(log, sample("miner"), signer="validator")
    append(log, sample("z"), signer="y")
    column = "miner_id" if table == "samples_by_miner" else "validator_id"
    without_triggers(log).execute(harm.format(table=table, id=column))
    # Which of the two ids is whose is chance; and one of them has a sample that is not its own.
    told, damaged = [], 0
    for name in ("miner", "validator"):
        ask = log.samples_of_miner if table == "samples_by_miner" else log.samples_of_validator
        try:
            told += [row.seq for row in ask(hotkey(name), 9)]
        except LogDamagedError:
            damaged += 1
    assert (told, damaged) == ((found, 0) if found else ([], 1))


def test_what_is_filed_before_its_time_is_damage(log, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 4)
    append(log, sample())
    raw(log).execute("INSERT INTO samples_by_miner SELECT miner_id, 4 FROM samples")
    with pytest.raises(LogDamagedError, match="samples are filed that come after those"):
        append(log, sample(task=2))
    assert "damaged" in log.problem()
    assert log.head() == 2


def test_a_signature_is_good_for_one_write(log):
    signed, samples = request(), [sample()]
    first = log.append_samples(signed, samples, None).result(30)
    again = log.append_samples(signed, samples, None).result(30)
    assert again == first._replace(is_replay=True)
    assert log.head() == 2


def test_a_signature_is_good_for_one_write_within_one_commit(log):
    signed = request()
    futures = [log.append_samples(signed, [sample()], None) for _ in range(20)]
    results = [future.result(30) for future in futures]
    assert sorted(result.is_replay for result in results) == [False] + [True] * 19
    assert {result.submission_seq for result in results} == {1}
    assert log.head() == 2


def test_a_replay_never_overwrites_a_newer_vote(log):
    old = request("validator", "old")
    log.append_samples(old, [sample(passed=True)], None).result(30)
    append(log, sample(passed=False))
    log.append_samples(old, [sample(passed=True)], None).result(30)
    assert [row.passed for row in log.newest_samples(10)] == [False]


def test_a_signature_seen_on_a_get_is_never_a_write(log):
    signed = request("admin")
    log.remember_signature(signed.signature).result(30)
    log.remember_signature(signed.signature).result(30)
    for append_it in (
        lambda: log.append_samples(signed, [sample()], None),
        lambda: log.remove_from_blacklist(signed, hotkey("miner")),
        lambda: log.announce_task(signed, 5),
    ):
        with pytest.raises(SignatureUsedError):
            append_it().result(30)
    assert log.head() == 0


def test_tasks_are_announced_and_never_go_backwards(log, keeper):
    log.announce_task(request("admin", 5), 5).result(30)
    log.announce_task(request("admin", "5 again"), 5).result(30)
    with pytest.raises(TaskGoesBackwardsError, match="latest announced task is 5"):
        log.announce_task(request("admin", 4), 4).result(30)
    assert log.admin_state().latest_task_id == 5
    assert keeper.check() == []


def test_the_blacklist_and_its_history(log, keeper):
    bad = hotkey("bad")
    added = log.add_to_blacklist(request("admin", 1), bad, "copies").result(30)
    log.add_to_blacklist(request("other", 2), bad, "copies all day").result(30)
    entry = log.admin_state().blacklist[bad]
    assert entry == (bad, "copies all day", hotkey("admin"), added.received_at_ms)
    log.remove_from_blacklist(request("admin", 3), bad).result(30)
    assert log.admin_state().blacklist == {}
    assert keeper.admin_state_at(2).blacklist[bad].reason == "copies"
    assert [event.kind for event in log.events_between(0, 99)] == [
        "blacklist_added",
        "blacklist_added",
        "blacklist_removed",
    ]
    assert keeper.check() == []


def test_another_reader_sees_the_blacklist_at_once(log, keeper):
    assert keeper.admin_state().blacklist == {}
    log.add_to_blacklist(request("admin"), hotkey("bad"), None).result(30)
    assert hotkey("bad") in keeper.admin_state().blacklist


def test_what_an_older_state_let_in_is_judged_again(log, keeper):
    known = log.known_admin_state()
    assert known == log.admin_state()
    judged = [sample(miner=number) for number in range(3)]
    requests = [request("validator", number) for number in range(3)]
    assert log.append_samples(requests[0], judged[:1], None, known.seq).result(30).sample_count == 1
    # Acts of an admin that is not this reader's: of another worker.
    other = SqliteLog(log.settings)
    other.add_to_blacklist(request("admin"), hotkey("bad"), None).result(30)
    assert log.known_admin_state() == known
    before = log.head()
    for again in (requests[1], requests[0]):
        with pytest.raises(AdminStateChangedError):
            log.append_samples(again, judged[1:2], None, known.seq).result(30)
    assert log.head() == before
    # Nothing is used up by it.
    now = log.admin_state()
    assert log.known_admin_state() == now
    appended = log.append_samples(requests[1], judged[1:2], None, now.seq).result(30)
    assert not appended.is_replay
    # Within one commit, too.
    with locked_in_turn(lock_path(log.path), 30):
        announced = log.announce_task(request("admin", "task"), 9)
        late = log.append_samples(requests[2], judged[2:], None, now.seq)
    announced.result(30)
    with pytest.raises(AdminStateChangedError):
        late.result(30)
    other.close()
    assert keeper.check() == []


def test_a_refused_admin_write_uses_its_signature_up(log):
    removal, bad = request("admin", "remove"), hotkey("bad")
    with pytest.raises(NotBlacklistedError):
        log.remove_from_blacklist(removal, bad).result(30)
    log.add_to_blacklist(request("admin", "add"), bad, None).result(30)
    # Whoever captured the refused request cannot free the hotkey with it now.
    with pytest.raises(SignatureUsedError):
        log.remove_from_blacklist(removal, bad).result(30)
    assert bad in log.admin_state().blacklist


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET passed = 0",
        "DELETE FROM samples",
        "DELETE FROM sample_texts",
        "DELETE FROM submissions",
        "UPDATE submissions SET hotkey = 'x'",
        "UPDATE sample_texts SET prompt = ''",
        "DELETE FROM events",
        "UPDATE events SET subject = 'x'",
        "INSERT OR REPLACE INTO events VALUES (4, 0, 'task_announced', '9', NULL, 'x')",
        "INSERT INTO events VALUES (1, 0, 'task_announced', '9', NULL, 'x')",
        "INSERT OR REPLACE INTO sample_texts SELECT * FROM sample_texts",
        "INSERT INTO events VALUES (5, 0, 'task_announced', '9', NULL, 'x')",
        (
            "INSERT OR REPLACE INTO submissions SELECT 99, 0, hotkey, scheme, timestamp, nonce, "
            "method, path, signature, body, sample_count, NULL, NULL FROM submissions LIMIT 1"
        ),
        "INSERT INTO retention (rowid, dropped_through) VALUES (-1, 99)",
        "INSERT OR REPLACE INTO retention (rowid, dropped_through) VALUES (1, 0)",
        "DELETE FROM retention",
        "DELETE FROM hotkeys",
        "UPDATE hotkeys SET hotkey = 'x'",
        "INSERT OR REPLACE INTO hotkeys SELECT 99, hotkey FROM hotkeys",
    ],
)
def test_the_database_itself_refuses_to_change_history(log, statement):
    append(log, sample())
    log.announce_task(request("admin"), 1).result(30)
    append(log, sample())
    with pytest.raises(apsw.ConstraintError):
        raw(log).execute(statement)


def test_what_has_left_is_never_written_again(log, keeper):
    append(log, sample("a"), sample("b"))
    (row,) = raw(log).execute("SELECT * FROM samples WHERE seq = 3")
    keeper.drop_through(3)
    with pytest.raises(apsw.ConstraintError):
        raw(log).execute(f"INSERT INTO samples VALUES ({', '.join('?' * len(row))})", row)


def test_a_submission_without_samples_is_refused(log, keeper):
    with pytest.raises(ValueError, match="at least one sample"):
        log.append_samples(request(), [], None)
    append(log, sample())
    assert keeper.check() == []


def test_the_writer_outlives_what_cannot_be_packed(log, keeper):
    no_bytes = replace(request(), body="text")
    with pytest.raises(LogUnavailableError):
        log.append_samples(no_bytes, [sample()], None)
    assert append(log, sample()).submission_seq == 1
    assert keeper.check() == []


def test_nothing_is_acknowledged_into_a_file_that_was_replaced(log):
    append(log, sample())
    backup = log.path.with_name("backup")
    raw(log).execute("VACUUM INTO ?", (str(backup),))
    append(log, sample())
    backup.replace(log.path)
    for leftover in ("-wal", "-shm"):
        log.path.with_name(log.path.name + leftover).unlink()
    with pytest.raises(LogUnavailableError, match="not the file that was opened"):
        append(log, sample())
    # The next commit goes to the file that has the name now.
    appended = append(log, sample())
    reader = SqliteKeeper(log.settings)
    assert reader.head() == appended.submission_seq + 1 == 4
    reader.close()


def test_one_append_that_cannot_be_stored_fails_alone(log, keeper):
    # SQLite stores no lone surrogate; the API refuses it long before, this is the second line.
    bad = sample(prompt="\ud800")
    futures = [
        log.append_samples(request(body=task), [bad if task == 3 else sample(task=task)], None)
        for task in range(6)
    ]
    wait(futures, 30)
    failed = [type(future.exception()) for future in futures]
    assert failed == [type(None)] * 3 + [LogUnavailableError] + [type(None)] * 2
    assert log.head() == 10
    assert keeper.check() == []


def names(log):
    return {(one.validator_hotkey, one.miner_hotkey) for one in log.newest_samples(500)}


def test_what_a_failed_commit_named_is_named_anew(log, keeper):
    append(log, sample("a"), signer="v")
    # Both hotkeys are stored before the text that cannot be.
    with pytest.raises(LogUnavailableError):
        append_unchecked(log, sample("b", prompt="\ud800"), signer="w")
    # They would have had the ids that these get now.
    append(log, sample("c"), signer="x")
    append(log, sample("b"), signer="w")
    assert names(log) == {
        (hotkey("v"), hotkey("a")), (hotkey("x"), hotkey("c")), (hotkey("w"), hotkey("b")),
    }  # fmt: skip
    assert keeper.check() == []


def append_unchecked(log, one, signer):
    """Append what no body could say."""
    return log.append_samples(request(signer), [one], None).result(30)


def test_ids_of_another_file_are_not_those_of_this_one(log, tmp_path):
    append(log, sample("a"), signer="v")
    append(log, sample("b"), signer="w")
    elsewhere = SqliteLog(settings(tmp_path / "elsewhere"))
    append(elsewhere, sample("b"), signer="w")
    elsewhere.close()
    elsewhere.path.replace(log.path)
    for leftover in ("-wal", "-shm"):
        log.path.with_name(log.path.name + leftover).unlink()
    with pytest.raises(LogUnavailableError, match="not the file that was opened"):
        append(log, sample("a"), signer="v")
    append(log, sample("a"), signer="v")
    append(log, sample("b", 2), signer="w")
    keeper = SqliteKeeper(log.settings)
    assert names(keeper) == {(hotkey("v"), hotkey("a")), (hotkey("w"), hotkey("b"))}
    assert keeper.check() == []
    keeper.close()


def test_more_hotkeys_than_are_kept(log, keeper, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "HOTKEYS_KEPT_MAX", 2)
    given = set()
    for number in range(3):
        for signer in ("v", "w"):
            miners = [f"m{number}", f"n{number}"]
            append(log, *(sample(one, number) for one in miners), signer=signer)
            given |= {(hotkey(signer), hotkey(one)) for one in miners}
    assert names(log) == given
    assert keeper.check() == []


def test_too_much_waiting_is_refused_and_not_stored(tmp_path):
    log = SqliteLog(settings(tmp_path, log_queue_bytes_max=100))
    with pytest.raises(LogBusyError):
        log.append_samples(request(), [sample()], None)
    log.close()


def test_closing_finishes_what_was_accepted_and_takes_no_more(tmp_path):
    log = SqliteLog(settings(tmp_path))
    futures = [log.append_samples(request(body=n), [sample(task=n)], None) for n in range(30)]
    log.close()
    assert all(future.done() and not future.exception() for future in futures)
    with pytest.raises(LogUnavailableError, match="closing"):
        log.append_samples(request(), [sample()], None)


def test_a_caller_that_gave_up_stores_nothing(log):
    # Whatever the writer had not begun by then is cancelled; a future says which it was.
    futures = [log.append_samples(request(body=n), [sample(task=n)], None) for n in range(50)]
    cancelled = sum(future.cancel() for future in futures)
    wait(futures, 30)
    append(log, sample(task=99))
    assert log.head() == 2 * (50 - cancelled) + 2


def test_the_evaluation_signature_is_kept(log):
    signed = request()
    log.append_samples(signed, [sample()], Evaluation("ab", is_verified=False)).result(30)
    (row,) = next(log.submissions_between(0, 99))
    assert (row.evaluation_signature, row.is_evaluation_verified) == ("ab", False)
    assert (row.hotkey, row.signature) == (signed.hotkey, signed.signature)


def without_triggers(log):
    connection = raw(log)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'"):
        connection.execute(f'DROP TRIGGER "{name}"')
    return connection


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        ("DELETE FROM samples_by_miner WHERE seq = 2", "not filed as it should be at seq 2"),
        ("DELETE FROM samples_by_validator WHERE seq = 3", "not filed as it should be at seq 3"),
        ("UPDATE samples_by_miner SET miner_id = 1 WHERE seq = 3", "not filed as it should be"),
        ("INSERT INTO samples_by_validator VALUES (1, 5)", "not filed as it should be at seq 5"),
        ("INSERT INTO samples_by_miner VALUES (1, 99)", "not filed as it should be at seq 99"),
        ("UPDATE filing SET filed_through = 2", "not filed as it should be at seq 3"),
        ("DELETE FROM filing", "nothing says how far samples are filed"),
        ("DELETE FROM samples WHERE seq = 2", "1 of 5 records are missing"),
        ("DELETE FROM submissions WHERE seq = 1", "sample without its submission at seq 2"),
        ("UPDATE samples SET validator_id = 99 WHERE seq = 2", "without its submission"),
        ("DELETE FROM sample_texts WHERE seq = 5", "without texts"),
        ("DELETE FROM samples WHERE seq = 3", "torn submission at seq 1"),
        ("UPDATE submissions SET hotkey = 'x' WHERE seq = 1", "submission 1 is not signed"),
        ("UPDATE submissions SET timestamp = '1' WHERE seq = 4", "submission 4 is not signed"),
        ("UPDATE submissions SET body = x'00' WHERE seq = 4", "cannot be unpacked"),
    ],
)
def test_the_check_finds_harm(log, keeper, harm, finding, monkeypatch):
    monkeypatch.setattr(sqlite_transaction, "UNFILED_SEQS_MAX", 3)
    append(log, sample("a"), sample("b"))
    append(log, sample("c"))
    assert keeper.check() == []
    without_triggers(log).execute(harm)
    assert any(finding in found for found in keeper.check())


def test_dropping_takes_whole_submissions_and_leaves_events(log, keeper):
    append(log, sample("a", 1), sample("b", 1))
    log.announce_task(request("admin"), 7).result(30)
    append(log, sample("a", 2))
    # 2 is in the middle of the first submission: it stays whole.
    assert keeper.drop_through(2) == 0
    assert keeper.drop_through(4) == 3
    assert [row.task_id for row in log.newest_samples(10)] == [2]
    assert keeper.dropped_through() == 3
    assert log.admin_state().latest_task_id == 7
    assert keeper.check() == []
    keeper.drop_through(7)
    assert log.newest_samples(10) == []
    assert log.head() == 7
    assert append(log, sample()).submission_seq == 8
    assert keeper.check() == []
    with pytest.raises(RefusedError):
        keeper.drop_through(99)


def test_appends_have_their_turn_between_the_chunks_of_a_drop(log, keeper, monkeypatch):
    monkeypatch.setattr(sqlite_keeper, "DROP_CHUNK_SEQS", 2)
    for _ in range(5):
        append(log, sample())
    drop_chunk, heads, appends = sqlite_keeper._drop_chunk, [], []

    def while_another_waits(connection, floor):
        heads.append(log.head())
        appends.append(log.append_samples(request("v", len(heads)), [sample()], None))
        wait_for(lambda: is_locked(next_lock_path(lock_path(log.path))))
        return drop_chunk(connection, floor)

    monkeypatch.setattr(sqlite_keeper, "_drop_chunk", while_another_waits)
    assert keeper.drop_through(10) == 10
    assert heads == [10, 12, 14, 16, 18]
    assert [one.result().submission_seq for one in appends] == [11, 13, 15, 17, 19]
    assert keeper.check() == []


def test_who_comes_while_the_lock_is_waited_for_shares_the_commit(tmp_path):
    commits = []
    log = SqliteLog(settings(tmp_path), lambda count, _seconds: commits.append(count))
    append(log, sample())
    with locked_in_turn(lock_path(log.path), 60):
        futures = [log.append_samples(request("v", 1), [sample()], None)]
        wait_for(lambda: is_locked(next_lock_path(lock_path(log.path))))
        futures += [log.append_samples(request("v", n), [sample()], None) for n in (2, 3)]
    assert [future.result().submission_seq for future in futures] == [3, 5, 7]
    log.close()
    assert commits == [1, 3]


def test_an_append_that_nobody_wants_any_more_is_no_commit(log, keeper):
    append(log, sample())
    with locked_in_turn(lock_path(log.path), 60):
        log._problem = "a damaged page"
        given_up = log.append_samples(request("v", 1), [sample()], None)
        wait_for(lambda: is_locked(next_lock_path(lock_path(log.path))))
        assert given_up.cancel()
    log.close()
    assert log.problem() == "a damaged page"
    assert keeper.head() == 2


def test_a_file_that_is_no_log_is_refused(tmp_path):
    warehouse = settings(tmp_path)
    warehouse.log_path.parent.mkdir(parents=True)
    warehouse.log_path.write_bytes(b"not a database" * 1000)
    with pytest.raises(LogUnavailableError):
        SqliteLog(warehouse)


def test_a_log_of_another_version_is_refused(log):
    raw(log).pragma("user_version", 99)
    with pytest.raises(LogUnavailableError, match="schema version 99"):
        SqliteLog(log.settings)
