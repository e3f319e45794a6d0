"""The clock of the machine is set back by an hour, while the service runs and across a restart."""

from tests.faults.shim import run_child

DRIVER = "tests.faults.clock_driver"
VALID_SECONDS_MAX = 900


def test_a_clock_that_is_set_back_harms_nothing(shim, tmp_path):
    root, work = tmp_path / "disk", tmp_path / "work"
    root.mkdir()
    work.mkdir()
    seen = run_child(shim, root, work, DRIVER)
    nothing_is_lost_and_ids_grow(seen)
    no_signature_is_good_again(seen["answers"])
    generations_never_go_back_and_the_chain_is_read_all_the_same(seen)
    # No upload waits for the clock.
    assert seen["claimed before"] == [1]
    assert seen["claimed after"] == [1, 2, 3]


def nothing_is_lost_and_ids_grow(seen):
    stored = [seen["answers"][one] for one in ("used", "while it ran", "after a restart", "last")]
    assert [status for status, _ in stored] == [200] * 4
    ids = [seq for _, seq in stored]
    assert ids == sorted(set(ids))
    assert seen["newest"] == ids[::-1]
    assert seen["check"] == []


def no_signature_is_good_again(answers):
    assert answers["used, early"] == [401, None]
    # The same request gets the answer that it had, and stores nothing.
    assert answers["used again"] == answers["used"]
    assert (answers["refused"], answers["put on"][0]) == ([404, None], 200)
    assert answers["refused again"] == [409, None]


def generations_never_go_back_and_the_chain_is_read_all_the_same(seen):
    assert seen["names"] == sorted(set(seen["names"]))
    assert seen["before"]["problems"] == seen["after a run"]["problems"] == []
    (problem,) = seen["set back"]["problems"]
    assert "clock was set back" in problem
    assert "`leoma materialize`" in problem
    assert not seen["set back"]["is_synced"]
    # Of what was read with the right clock the weights expire in time.
    assert seen["after a run"]["valid_seconds"] <= VALID_SECONDS_MAX
