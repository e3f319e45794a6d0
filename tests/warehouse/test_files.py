"""What writers that were killed have left, and when it goes."""

import os
import time
from pathlib import Path

from warehouse.files import LEFTOVER_AGE_SECONDS_MIN, remove_leftovers, temporary_beside


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
