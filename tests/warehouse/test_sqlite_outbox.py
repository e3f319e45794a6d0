"""The outbox: who has which result in flight, what is due when, and no newer version is lost."""

import multiprocessing
import time

import apsw
import pytest

from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse.backends import open_outbox
from warehouse.files import locked
from warehouse.log import Backlog, Failure, LogUnavailableError, Submitted
from warehouse.records import Evaluation
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_outbox import DUE
from warehouse.sqlite_questions import BACKLOG
from warehouse.sqlite_schema import lock_path

# What no test waits for.
HOUR = 3_600.0


@pytest.fixture
def log(tmp_path):
    opened = SqliteLog(settings(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def outboxes(log):
    """Two of them, as two couriers have."""
    opened = [open_outbox(log.settings) for _ in range(2)]
    yield opened
    for one in opened:
        one.close()


@pytest.fixture
def outbox(outboxes):
    return outboxes[0]


def raw(log):
    return apsw.Connection(str(log.path))


def let_leases_run_out(log):
    raw(log).execute("UPDATE outbox SET due_at_ms = 0 WHERE claim IS NOT NULL")


def waiting(log):
    """What waits: task, submission, and whether somebody has it."""
    return (
        raw(log)
        .execute("SELECT task_id, submission_seq, claim IS NOT NULL FROM outbox ORDER BY task_id")
        .fetchall()
    )


def test_what_waits_is_the_newest_submission_of_each_task_and_validator(log, outbox):
    append(log, sample("a", 1), sample("b", 1), sample("a", 2), sample("a", "legacy"))
    append(log, sample("a", 1))
    append(log, sample("a", 1), signer="other")
    found = {(c.task_id, c.validator_hotkey, c.submission_seq) for c in outbox.claim(10)}
    assert found == {
        (1, hotkey("validator"), 6),
        (2, hotkey("validator"), 1),
        (1, hotkey("other"), 8),
    }


def test_what_is_claimed_is_nobody_elses(log, outboxes):
    for task in range(5):
        append(log, sample(task=task))
    first, second = outboxes[0].claim(3), outboxes[1].claim(3)
    assert sorted(claim.task_id for claim in first + second) == [0, 1, 2, 3, 4]
    assert outboxes[0].claim(3) == []
    outboxes[0].done(first)
    outboxes[1].done(second)
    assert log.backlog(10) == Backlog(0, None)


def test_processes_share_without_taking_anything_twice(log):
    for task in range(60):
        append(log, sample(task=task))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        taken = pool.map(_drain, [log.settings] * 3)
    assert sorted(task for tasks in taken for task in tasks) == list(range(60))
    assert log.backlog(10).depth == 0


def _drain(warehouse_settings):
    outbox, taken = open_outbox(warehouse_settings), []
    while claims := outbox.claim(2):
        outbox.done(claims)
        taken += [claim.task_id for claim in claims]
    outbox.close()
    return taken


def test_the_longest_due_comes_first(log, outbox):
    for task in (3, 1, 2):
        append(log, sample(task=task))
    raw(log).execute("UPDATE outbox SET due_at_ms = 1000 - task_id")
    assert [outbox.claim(1)[0].task_id for _ in range(3)] == [3, 2, 1]


def test_a_newer_submission_waits_for_the_upload_under_way(log, outboxes):
    append(log, sample(passed=True))
    (claim,) = outboxes[0].claim(10)
    queued = raw(log).execute("SELECT queued_at_ms, due_at_ms FROM outbox").fetchall()
    newer = append(log, sample(passed=False)).submission_seq
    assert raw(log).execute("SELECT queued_at_ms, due_at_ms FROM outbox").fetchall() == queued
    assert outboxes[1].claim(10) == []
    outboxes[0].done([claim])
    (again,) = outboxes[1].claim(10)
    assert (again.submission_seq, again.attempts) == (newer, 0)
    outboxes[1].done([again])
    assert waiting(log) == []


def test_a_lease_that_is_renewed_does_not_run_out(log, outboxes):
    append(log, sample())
    claims = outboxes[0].claim(1)
    let_leases_run_out(log)
    outboxes[0].renew(claims)
    assert outboxes[1].claim(1) == []
    let_leases_run_out(log)
    assert len(outboxes[1].claim(1)) == 1


def test_an_upload_that_outlived_its_lease_unharmed_is_done(log, outbox):
    append(log, sample())
    claims = outbox.claim(1)
    let_leases_run_out(log)
    outbox.done(claims)
    assert waiting(log) == []


@pytest.mark.parametrize("how", ["done", "failed"])
def test_what_came_after_anothers_upload_is_uploaded_again(log, outboxes, how):
    # The first courier is stopped in mid-upload; the second takes over, with a newer version, and
    # finishes; then the first one's old version arrives after all.
    late, other = outboxes
    append(log, sample(passed=True))
    old = late.claim(1)
    let_leases_run_out(log)
    newer = append(log, sample(passed=False)).submission_seq
    other.done(other.claim(1))
    assert waiting(log) == []
    if how == "done":
        late.done(old)
    else:
        late.failed([Failure(old[0], "no answer", HOUR)])
    (again,) = other.claim(1)
    assert again.submission_seq == newer
    other.done([again])
    assert waiting(log) == []


def test_what_came_during_anothers_upload_is_uploaded_once_more_and_no_oftener(log, outboxes):
    late, other = outboxes
    append(log, sample())
    old = late.claim(1)
    let_leases_run_out(log)
    theirs = other.claim(1)
    late.done(old)
    # Theirs is still under way, and nobody takes it from them.
    assert late.claim(1) == []
    other.done(theirs)
    again = late.claim(1)
    assert len(again) == 1
    late.done(again)
    assert waiting(log) == []


def test_nothing_is_uploaded_again_whose_submissions_have_left(log, outboxes):
    late, other = outboxes
    appended = append(log, sample())
    old = late.claim(1)
    let_leases_run_out(log)
    other.done(other.claim(1))
    keeper = SqliteKeeper(log.settings)
    keeper.drop_through(appended.submission_seq + 1)
    keeper.close()
    late.done(old)
    assert waiting(log) == []


def test_a_failure_waits_and_is_told(log, outbox):
    append(log, sample(task=1))
    append(log, sample(task=2))
    first, second = outbox.claim(2)
    outbox.failed([Failure(first, "no such bucket" + "!" * 9_999, HOUR)])
    outbox.failed([Failure(second, "no room", 0)])
    (again,) = outbox.claim(9)
    assert again[:4] == (*second[:3], 1)
    status = outbox.status()
    assert (status.depth, status.in_flight, status.attempts_max) == (2, 1, 1)
    assert status.last_error.startswith("no ")
    assert len(status.last_error) <= 500
    assert abs(status.last_failed_at_ms - time.time() * 1000) < 60_000
    assert abs(status.oldest_queued_at_ms - time.time() * 1000) < 60_000
    outbox.failed([Failure(again, "no room", 0)])
    assert [claim.attempts for claim in outbox.claim(9)] == [2]


def test_what_is_given_back_is_due_at_once_and_did_not_fail(log, outboxes):
    append(log, sample())
    outboxes[0].release(outboxes[0].claim(1))
    assert [claim.attempts for claim in outboxes[1].claim(1)] == [0]
    assert outboxes[1].status().last_error is None


def test_nothing_waits_for_a_clock_that_was_set_back(log, outbox):
    append(log, sample())
    raw(log).execute("UPDATE outbox SET due_at_ms = due_at_ms + 3600 * 1000")
    assert len(outbox.claim(1)) == 1


def test_an_empty_outbox(log, outbox):
    assert outbox.claim(5) == []
    assert outbox.status() == (0, None, 0, 0, None, None)
    assert log.oldest_waiting_submission() is None


def test_looking_into_an_empty_outbox_does_not_wait_for_the_lock(log, outbox):
    with locked(lock_path(log.path), 1):
        assert outbox.claim(5) == []
        assert outbox.status().depth == 0


def test_a_lock_that_is_not_had_is_an_error_and_changes_nothing(log):
    append(log, sample())
    hurried = open_outbox(log.settings.model_copy(update={"log_lock_seconds_max": 0.01}))
    with locked(lock_path(log.path), 1), pytest.raises(LogUnavailableError):
        hurried.claim(1)
    assert len(hurried.claim(1)) == 1
    hurried.close()


def test_the_backlog_is_counted_only_so_far(log):
    for task in range(4):
        append(log, sample(task=task))
    (oldest,) = raw(log).execute("SELECT min(queued_at_ms) FROM outbox").fetchall()[0]
    assert log.backlog(10) == Backlog(4, oldest)
    assert log.backlog(3) == Backlog(3, oldest)


def test_questions_that_are_asked_often_read_no_more_than_they_need(log):
    def plan(question, *bindings):
        rows = raw(log).execute(f"EXPLAIN QUERY PLAN {question}", bindings).fetchall()
        return "\n".join(row[-1] for row in rows)

    assert "SEARCH outbox USING COVERING INDEX outbox_due (due_at_ms>?" in plan(DUE, 0, 1)
    assert "SEARCH outbox USING COVERING INDEX outbox_queued" in plan(BACKLOG, 10)


def test_a_submission_is_read_as_it_was_submitted(log):
    samples = [
        sample("b", 7, original_artifacts="o", presentation_order="ab", passed=False),
        sample("a", "legacy", evaluation_signature="0x12", confidence=None),
    ]
    judged = Evaluation("ab12", is_verified=False)
    seq = log.append_samples(request(), samples, judged).result(30).submission_seq
    assert log.submitted(seq) == Submitted("ab12", samples)
    other = append(log, sample())
    assert log.submitted(other.submission_seq) == Submitted(None, [sample()])
    assert log.submitted(seq + 1) is None
    assert log.oldest_waiting_submission() == seq


def test_results_go_with_their_submissions(log, monkeypatch):
    monkeypatch.setattr("warehouse.sqlite_keeper.DROP_CHUNK_SEQS", 2)
    append(log, sample(task=1))
    append(log, sample(task=2))
    append(log, sample("a", "legacy"))
    append(log, sample(task=1))
    append(log, sample(task=2), signer="other")
    keeper = SqliteKeeper(log.settings)
    keeper.drop_through(6)
    # Of task 1 there is a newer submission, of task 2 one of another validator.
    assert waiting(log) == [(1, 7, False), (2, 9, False)]
    assert keeper.check() == []
    keeper.close()
