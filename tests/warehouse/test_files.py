"""What writers that were killed have left, and when it goes; and whose turn it is at a lock."""

import os
import time
from pathlib import Path
from threading import Thread

import pytest

from tests.builders import is_locked, wait_for
from warehouse.files import (
    LEFTOVER_AGE_SECONDS_MIN,
    LockTimeoutError,
    locked,
    locked_in_turn,
    remove_leftovers,
    temporary_beside,
)


def leftover(final):
    path = temporary_beside(final)
    path.write_bytes(b"half")
    before = time.time() - 2 * LEFTOVER_AGE_SECONDS_MIN
    os.utime(path, (before, before))
    return path


def test_only_old_leftovers_go_wherever_they_are(tmp_path):
    deep = tmp_path / "archive" / "votes"
    deep.mkdir(parents=True)
    old = [leftover(directory / "1.parquet") for directory in (tmp_path, deep)]
    young, whole = temporary_beside(deep / "1.parquet"), deep / "1.parquet"
    for path in (young, whole):
        path.touch()
    assert remove_leftovers(tmp_path) == len(old)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {young, whole}
    assert remove_leftovers(tmp_path / "not there") == 0


def test_one_that_goes_meanwhile_is_forgiven(tmp_path, monkeypatch):
    renamed, stays = leftover(tmp_path / "a"), leftover(tmp_path / "b")
    lstat = Path.lstat

    def gone(path):
        # Listed, and not there when it is asked for its age: its writer has renamed it.
        if path == renamed:
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", gone)
    assert remove_leftovers(tmp_path) == 1
    assert not stays.exists()


def test_who_waits_has_a_lock_before_who_had_it_last(tmp_path):
    path, order = tmp_path / "lock", []

    def take(name):
        with locked_in_turn(path, 60):
            order.append(name)

    for _ in range(20):
        with locked_in_turn(path, 60):
            waiting = Thread(target=take, args=("who waited",))
            waiting.start()
            wait_for(lambda: is_locked(tmp_path / "lock.next"))
        take("who had it")
        waiting.join()
    assert order == ["who waited", "who had it"] * 20


def test_a_turn_that_does_not_come_is_given_up(tmp_path):
    path = tmp_path / "lock"
    with locked(path, 1), pytest.raises(LockTimeoutError, match="lock has been locked by another"):
        locked_in_turn(path, 0.01).__enter__()
    with (
        locked(tmp_path / "lock.next", 1),
        pytest.raises(LockTimeoutError, match=r"lock\.next has"),
    ):
        locked_in_turn(path, 0.01).__enter__()
    with locked_in_turn(path, 0):
        assert is_locked(path)
        assert not is_locked(tmp_path / "lock.next")
    assert not is_locked(path)
