"""What is left of all versions of samples, against the plainest way to say it."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import hotkey
from warehouse import log_frames
from warehouse.log import VoteColumns, VoteRow
from warehouse.log_frames import newest_versions, vote_rows
from warehouse.tables import ARCHIVED_VOTES

HOTKEYS = [hotkey(name) for name in "abc"]
# Close together; and so far apart that no number tells them and their miners.
TASKS = st.integers(0, 3)
FAR_TASKS = st.sampled_from([0, 1, 2**62, 2**63 - 1])
LEGACY = st.sampled_from(["first", "second"])


def rows(tasks):
    row = st.tuples(tasks, st.sampled_from(HOTKEYS), st.sampled_from(HOTKEYS), st.booleans())
    return st.lists(row, max_size=30)


def in_words(found):
    """The newest of each key, in the table's order: null first, then by number."""
    newest = {(row.task_key, row.miner_hotkey, row.validator_hotkey): row for row in found}
    return sorted(
        newest.values(),
        key=lambda row: (
            row.task_id is not None, row.task_id or 0, row.miner_hotkey, row.validator_hotkey,
            row.seq,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("tasks", [TASKS, FAR_TASKS, TASKS | LEGACY, LEGACY])
def test_the_newest_versions_are_left_in_order(tasks):
    @given(rows(tasks), st.integers(0, 30), st.integers(0, 5))
    def check(judged, cut, again):
        found = [
            VoteRow(
                seq, 1_000 + seq, validator, miner, task if isinstance(task, int) else None,
                str(task), passed, None, seq,
            )
            for seq, (task, miner, validator, passed) in enumerate(judged, 1)
        ]  # fmt: skip
        # As a run that was killed repeats it: some are in what is there and come once more.
        parts = [found[:cut], found[max(0, cut - again) :]]
        merged = newest_versions([vote_rows([VoteColumns.of(part)]) for part in parts])
        assert merged.columns == ARCHIVED_VOTES.names
        assert [VoteRow._make(row) for row in merged.iter_rows()] == in_words(found)

    check()


def test_both_ways_are_taken():
    def numbered(*tasks):
        return log_frames._numbered(
            vote_rows(
                [
                    VoteColumns.of(
                        VoteRow(n, 1, *HOTKEYS[:2], task, str(task), 1, None, None)
                        for n, task in enumerate(tasks)
                    )
                ]
            )
        )

    assert numbered(1, 2).to_list() == sorted(numbered(1, 2))
    assert numbered(0, 2**62) is None
    assert numbered(1, None) is None
    assert numbered() is None
    assert isinstance(numbered(2**62, 2**62 + 1), pl.Series)
