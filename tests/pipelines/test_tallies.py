"""What partitions come to: the same as the whole history, and only what is new is made anew."""

from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipelines import checks, scoring, tallies
from pipelines.tallies import TallyKeeper
from pipelines.votes import newest_versions, verdicts, votes
from tests.pipelines.rule_builders import log_of, miner, miners_of, sample, validators_of
from tests.properties import tried
from tests.warehouse import builders
from warehouse.archive import Archive, ArchiveError, with_vote_parts
from warehouse.verdicts import task_digests

STAKES = {"V": 10, "W": 7, "X": 7, "poor": 1}
TASKS = [0, 1, 99, 100, 101, 250, 100_000, "legacy", "another"]


def validators(**stakes):
    return validators_of({**STAKES, **stakes}, below_minimum={"poor"})


class Partitions:
    """An archive that is written by hand, and the keeper of its tallies."""

    def __init__(self, home):
        self.archive = Archive(builders.settings(home))
        self.keeper = TallyKeeper(self.archive, home / "tallies")
        self.manifest = self.archive.manifest()

    def put(self, *samples):
        """Put the current ones of these samples into the archive, in place of what it has there."""
        rows = newest_versions(log_of(*samples))
        groups = rows.group_by(self.manifest.partition_of("task_id"))
        parts = {
            name: self.archive.write(f"votes/{name}", "by hand", own) for (name,), own in groups
        }
        self.manifest = with_vote_parts(self.manifest, parts, rows["seq"].max() or 0)
        return self

    def made(self, **stakes):
        return self.keeper.tallies(self.manifest, validators(**stakes))

    def directory_in_the_way(self):
        self.keeper.directory.rmdir()
        self.keeper.directory.write_text("no directory")

    def directory(self):
        return self.keeper.directory

    def kept(self):
        return sorted(self.keeper.directory.iterdir())


@pytest.fixture
def partitions(tmp_path):
    return Partitions(tmp_path).put(
        sample(1, "V", "M", 1, is_passed=True),
        sample(2, "W", "M", 1, is_passed=False),
        sample(3, "V", "M", 150, is_passed=True),
        sample(4, "poor", "M", 250, is_passed=True),
        sample(5, "V", "N", "legacy", is_passed=False),
    )


def assert_whole(made, samples, validators):
    """They are what the rules make of the whole history at once."""
    weighed = votes(samples, validators)
    table = verdicts(weighed)
    assert_frame_equal(made.verdicts.whole(), table)
    for first, last in ((1, 100), (100, 100), (0, 100_000), (30, 260)):
        reached = table.filter(pl.col("task_id").is_between(first, last))
        assert_frame_equal(made.verdicts.of_tasks(first, last), reached, check_row_order=False)
    assert made.verdicts.task_digests() == task_digests(tallies.as_arrow(table))
    assert (made.verdicts.count, made.verdicts.votes) == (
        table.height,
        table["validator_count"].sum(),
    )
    miners = miners_of(miner("M", 0), miner("N", 1))
    assert_frame_equal(
        scoring.scores(made.entries, validators, miners),
        scoring.scores(scoring.score_entries(samples), validators, miners),
    )
    assert set(made.counting_tasks) == set(scoring.counting_tasks(weighed).drop_nulls())
    assert made.problems == ()


histories = st.lists(
    st.tuples(
        st.sampled_from([*STAKES, "gone"]),
        st.sampled_from(["M", "N", "unknown"]),
        st.sampled_from(TASKS),
        st.booleans(),
    ),
    max_size=40,
)


@tried(60, 400)
@given(old=histories, new=histories, stakes=st.permutations([3, 5, 8, 1]))
def test_partitions_come_to_what_the_whole_history_comes_to(tmp_path_factory, old, new, stakes):
    partitions = Partitions(tmp_path_factory.mktemp("home"))
    whole = [
        sample(seq, *row[:3], is_passed=row[3], received_at_ms=seq)
        for seq, row in enumerate([*old, *new], 1)
    ]
    for count, at in (
        (len(old), {}),
        (len(whole), {}),
        (len(whole), dict(zip(STAKES, stakes, strict=True))),
    ):
        partitions.put(*whole[:count])
        made = partitions.made(**at)
        assert_whole(made, newest_versions(log_of(*whole[:count])), validators(**at))
        again = partitions.made(**at)
        assert again.anew == 0
        assert_whole(again, newest_versions(log_of(*whole[:count])), validators(**at))


def test_only_what_changed_is_made_anew(partitions):
    assert partitions.made().anew == 4
    assert partitions.made().anew == 0
    partitions.put(sample(6, "V", "M", 160, is_passed=True))
    made = partitions.made()
    assert (made.anew, made.read) == (1, {"6"})
    # Four files a partition, one of the older ones together, and no others.
    assert len(partitions.kept()) == 4 * 4 + 1


def test_other_stakes_and_other_rules_make_all_anew(partitions, monkeypatch):
    partitions.made()
    made = partitions.made(V=11)
    # Who voted how is known.
    assert (made.anew, made.read) == (4, set())
    monkeypatch.setattr(tallies, "_rules", lambda: "other rules")
    made = partitions.made(V=11)
    assert (made.anew, len(made.read)) == (4, 4)


@pytest.mark.parametrize("stake", [STAKES["V"], 2], ids=["same stakes", "other stakes"])
@pytest.mark.parametrize("kind", ["ballots", "verdicts", "summary", "entries", "sum"])
@pytest.mark.parametrize("harm", ["changed", "cut", "emptied", "removed", "exchanged", "another"])
def test_what_was_kept_and_is_damaged_is_made_anew(partitions, harm, kind, stake, tmp_path):
    partitions.put(*(sample(10 + task, "V", "M", 100 * task) for task in range(3, 9)))
    partitions.made()
    fresh = TallyKeeper(partitions.archive, tmp_path / "fresh")
    before = fresh.tallies(partitions.manifest, validators(V=stake))
    other = next(path for path in partitions.kept() if not path.name.startswith(f"{kind}-"))
    same = [path.read_bytes() for path in partitions.kept() if path.name.startswith(f"{kind}-")]
    for path in partitions.kept():
        content = path.read_bytes()
        if not path.name.startswith(f"{kind}-"):
            continue
        match harm:
            case "changed":
                path.write_bytes(content[:-80] + bytes([content[-80] ^ 1]) + content[-79:])
            case "cut":
                path.write_bytes(content[:-1])
            case "emptied":
                path.write_bytes(b"")
            case "removed":
                path.unlink()
            case "another":
                path.write_bytes(next((one for one in same if one != content), b""))
            case "exchanged":
                path.write_bytes(other.read_bytes()[:64] + content[64:])
    after = partitions.made(V=stake)
    assert_frame_equal(after.verdicts.whole(), before.verdicts.whole())
    assert after.verdicts.task_digests() == before.verdicts.task_digests()
    entries = [scoring.summed_entries(one.entries) for one in (after, before)]
    assert_frame_equal(*entries, check_row_order=False)
    assert set(after.counting_tasks) == set(before.counting_tasks)


def test_a_partition_of_another_size_is_looked_at_anew_and_told(partitions):
    made = partitions.made()
    partitions.manifest = replace(partitions.manifest, tasks_per_partition=7)
    again = partitions.made()
    assert len(again.read) == made.anew
    assert any("belong to another partition" in problem for problem in again.problems)
    assert_frame_equal(again.verdicts.of_tasks(1, 300), made.verdicts.of_tasks(1, 300))


def test_counts_of_older_partitions_are_kept_as_one_sum(partitions):
    samples = [sample(10 + task, "V", "M", 100 * task, is_passed=True) for task in range(9)]
    partitions.put(*samples)
    partitions.made()
    for path in partitions.directory().glob("entries-*"):
        # Whatever it says now: nobody reads it.
        path.write_bytes(b"")
    made = partitions.made()
    assert made.anew == 0
    # Two pairs are in the older ones; the four newest, those without a task among them, are read
    # from the archive instead.
    assert made.entries.height == 2 + 4
    assert made.entries["total_samples"].sum() == partitions.manifest.current_samples


@pytest.mark.parametrize("lie", ["elsewhere", "key twice", "seq twice", "miscounted"])
def test_a_partition_that_contradicts_itself_is_told_and_never_kept(partitions, lie):
    part = partitions.manifest.votes["0"]
    rows = partitions.archive.read(part)
    harmed = {
        "elsewhere": rows.with_columns(task_id=pl.lit(700, pl.Int64), task_key=pl.lit("700")),
        "key twice": pl.concat([rows, rows.head(1).with_columns(seq=pl.lit(70, pl.Int64))]),
        "seq twice": rows.with_columns(seq=pl.lit(1, pl.Int64)),
        "miscounted": rows.head(1),
    }[lie]
    wrong = partitions.archive.write("votes/0", "lie", harmed)
    if lie == "miscounted":
        wrong = type(wrong)(**{**wrong.__dict__, "rows": 2})
    partitions.manifest = with_vote_parts(partitions.manifest, {"0": wrong}, 5)
    assert any(wrong.file in problem for problem in partitions.made().problems)
    again = partitions.made()
    assert again.problems
    assert (again.verdicts.anew, set(again.verdicts.held)) == (["0"], {"0"})


def test_a_damaged_file_of_the_archive_is_not_counted(partitions):
    path = partitions.archive.directory / partitions.manifest.votes["0"].file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArchiveError, match="damaged"):
        partitions.made()


def test_what_cannot_be_kept_is_made_again(partitions, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    before = partitions.made()
    # What is kept needs no memory, and what is not is there all the same, once made.
    assert (before.anew, before.verdicts.held) == (4, {})
    whole = before.verdicts.whole()
    for path in partitions.kept():
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        made = partitions.made()
        assert (made.anew, set(made.verdicts.held)) == (4, set(made.verdicts.anew))
        monkeypatch.setattr(partitions.archive, "read", full)
        assert_frame_equal(made.verdicts.whole(), whole)
    monkeypatch.undo()
    assert partitions.kept() == []
    partitions.directory_in_the_way()
    assert_frame_equal(partitions.made().verdicts.whole(), whole)


def test_a_vote_that_no_verdict_counts_stops_the_run(partitions):
    made = partitions.made()
    summaries = dict(made.verdicts.summaries)
    summaries["0"] = replace(summaries["0"], votes=0)
    short = replace(made, verdicts=replace(made.verdicts, summaries=summaries))
    told = {
        name: checks.reconciled(
            recent=log_of(),
            archived=log_of(),
            manifest=partitions.manifest,
            tallies=one,
            scores=made.entries,
        )
        for name, one in (("whole", made), ("short", short))
    }
    assert told == {"whole": [], "short": ["4 samples have a task, 2 count in verdicts"]}
