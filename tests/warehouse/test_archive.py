import json
import os
import time
from dataclasses import replace
from functools import partial

import polars as pl
import pytest
import zstandard

from tests.builders import signed_request
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse.archive import Archive, ArchiveError
from warehouse.compaction import compact_evidence, compact_texts
from warehouse.export import (
    differences,
    export_events,
    export_submitted,
    export_votes,
)
from warehouse.hotkeys import signed_message, verify
from warehouse.records import Event, admin_state
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_schema import LogDamagedError


@pytest.fixture
def log(tmp_path):
    opened = SqliteLog(settings(tmp_path, archive_tasks_per_partition=10))
    yield opened
    opened.close()


@pytest.fixture
def archive(log):
    return Archive(log.settings)


def export_all(archive, log, rows_max=10**6):
    export_votes(archive, log, log.head())
    export_submitted(archive, log, log.head(), rows_max)
    export_events(archive, log, log.head())


def rows(archive):
    votes = archive.votes(archive.manifest()).sort("seq")
    return votes.select("seq", "task_id", "is_passed").rows()


def test_an_archive_that_was_never_written_is_empty(archive):
    assert archive.manifest().watermark == 0
    assert archive.votes(archive.manifest()).height == 0


def test_partitions_hold_the_newest_version_of_each_sample(log, archive):
    append(log, sample("a", 1), sample("a", 1, passed=False), sample("a", 25), sample("a", "x"))
    exported = export_votes(archive, log, log.head())
    assert (exported.new_rows, exported.partitions) == (4, 3)
    assert rows(archive) == [(3, 1, False), (4, 25, True), (5, None, True)]
    append(log, sample("a", 25, passed=False), sample("b", 26))
    exported = export_votes(archive, log, log.head())
    assert (exported.new_rows, exported.partitions) == (2, 1)
    assert rows(archive) == [(3, 1, False), (5, None, True), (7, 25, False), (8, 26, True)]
    assert archive.manifest().current_samples == 4
    assert set(archive.manifest().votes) == {"0", "2", "untasked"}


def test_export_is_idempotent_and_goes_only_as_far_as_asked(log, archive):
    append(log, sample("a", 1))
    append(log, sample("a", 2))
    export_votes(archive, log, 2)
    assert rows(archive) == [(2, 1, True)]
    export_votes(archive, log, 2)
    assert rows(archive) == [(2, 1, True)]
    export_votes(archive, log, log.head())
    assert rows(archive) == [(2, 1, True), (4, 2, True)]


def test_an_archive_made_at_once_equals_one_made_in_steps(log, archive, tmp_path):
    for number in range(30):
        one = sample(f"m{number % 3}", number % 11, passed=number % 2 == 0)
        append(log, one, signer=f"v{number % 4}")
        if number % 7 == 0:
            export_votes(archive, log, log.head())
    export_votes(archive, log, log.head())
    fresh_settings = log.settings.model_copy(update={"warehouse_url": str(tmp_path / "fresh")})
    fresh = Archive(fresh_settings)
    export_votes(fresh, log, log.head())
    assert rows(fresh) == rows(archive)
    assert fresh.manifest().current_samples == archive.manifest().current_samples


def test_an_archive_made_in_pieces_equals_one_made_in_one(log, archive, tmp_path, monkeypatch):
    for number in range(12):
        append(log, sample(task=number % 4 * 5), signer=f"v{number % 3}")
    fresh_settings = log.settings.model_copy(update={"warehouse_url": str(tmp_path / "fresh")})
    fresh = Archive(fresh_settings)
    export_votes(fresh, log, log.head())
    monkeypatch.setattr("warehouse.sqlite_reads.VOTES_CHUNK_ROWS", 2)
    monkeypatch.setattr("warehouse.export.VOTES_PIECE_ROWS", 3)
    exported = export_votes(archive, log, log.head())
    assert (exported.new_rows, exported.partitions) == (12, len(fresh.manifest().votes))
    # Some were written more than once.
    assert len(list(archive.directory.rglob("*.parquet"))) > exported.partitions
    made, expected = exported.manifest, fresh.manifest()
    assert (made.watermark, made.current_samples) == (log.head(), expected.current_samples)
    key = ["task_key", "miner_hotkey", "validator_hotkey"]
    assert archive.votes(made).sort(key).equals(fresh.votes(expected).sort(key))


@pytest.fixture
def in_small_pieces(monkeypatch):
    monkeypatch.setattr("warehouse.sqlite_reads.TEXTS_CHUNK_ROWS", 2)
    monkeypatch.setattr("warehouse.export.TEXTS_PIECE_ROWS", 4)
    monkeypatch.setattr("warehouse.export.TEXTS_PIECES_A_STRETCH", 1)
    monkeypatch.setattr("warehouse.export.PIECES_A_MANIFEST", 2)
    monkeypatch.setattr("warehouse.sqlite_reads.SUBMISSIONS_CHUNK_ROWS", 3)


@pytest.mark.usefixtures("in_small_pieces")
def test_texts_and_submissions_are_written_in_pieces_and_in_order(log, archive):
    for number in range(11):
        append(log, sample(task=number))
    log.announce_task(request("admin", 99), 99).result(30)
    told = []
    through = log.head()
    export = partial(export_submitted, archive, log, through)
    assert export(7, lambda *progress: told.append(progress)) == {"texts": 8, "submissions": 8}
    # What bounds the texts bounds these.
    assert archive.manifest().submissions_watermark == archive.manifest().texts_watermark == 16
    assert export(100) == {"texts": 3, "submissions": 4}
    assert export(100) == {}
    manifest = archive.manifest()
    texts = [archive.read(part)["seq"].to_list() for part in manifest.texts]
    assert texts == [[2, 4, 6, 8], [10, 12, 14, 16], [18, 20, 22]]
    submissions = [archive.read(part)["seq"].to_list() for part in manifest.submissions]
    # The last one has no sample: the act of an admin.
    assert submissions == [[1, 3, 5], [7], [9, 11, 13], [15], [17, 19, 21], [23]]
    assert (manifest.texts_watermark, manifest.submissions_watermark) == (22, 24)
    assert told == [("Texts", 8, 24), ("Texts", 16, 24), ("Submissions", 16, 24)]


@pytest.mark.usefixtures("in_small_pieces")
def test_a_piece_that_could_not_be_written_ends_the_export_where_it_was(log, archive, monkeypatch):
    for number in range(11):
        append(log, sample(task=number))
    write = Archive.write

    def fail(self, folder, name, rows):
        if 10 in rows["seq"]:
            raise OSError("no space left on device")
        return write(self, folder, name, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Archive, "write", fail)
        with pytest.raises(OSError, match="no space"):
            export_submitted(archive, log, log.head(), 100)
    # A later piece may have been written: nobody names it.
    assert archive.manifest().texts_watermark == 8
    assert export_submitted(archive, log, log.head(), 100)["texts"] == 7
    seqs = pl.concat([archive.read(part) for part in archive.manifest().texts])["seq"]
    assert seqs.to_list() == list(range(2, 23, 2))


@pytest.mark.usefixtures("in_small_pieces")
def test_what_came_before_damage_in_the_log_is_archived_once(log, archive, monkeypatch):
    for number in range(11):
        append(log, sample(task=number))
    read = log.submissions_between

    def damaged(after, through):
        for chunk in read(after, through):
            if any(row.seq == 13 for row in chunk):
                raise LogDamagedError("a page")
            yield chunk

    with monkeypatch.context() as patched:
        patched.setattr(log, "submissions_between", damaged)
        for _ in range(3):
            with pytest.raises(LogDamagedError):
                export_submitted(archive, log, log.head(), 100)
    assert archive.manifest().submissions_watermark == 8
    assert len(list(archive.directory.rglob("submissions/*.parquet"))) == 2
    assert export_submitted(archive, log, log.head(), 100)["submissions"] == 7
    seqs = pl.concat([archive.read(part) for part in archive.manifest().submissions])["seq"]
    assert seqs.to_list() == list(range(1, 23, 2))


def test_an_unreadable_manifest_is_not_an_empty_archive(log, archive):
    append(log, sample())
    export_votes(archive, log, log.head())
    (archive.directory / "manifest.json").write_text("{")
    with pytest.raises(ArchiveError, match="cannot be read"):
        export_votes(archive, log, log.head())


def test_a_lost_file_is_an_error(log, archive):
    append(log, sample())
    export_votes(archive, log, log.head())
    (part,) = archive.manifest().votes.values()
    (archive.directory / part.file).unlink()
    with pytest.raises(ArchiveError, match="cannot be read"):
        archive.votes(archive.manifest())


def test_a_damaged_file_is_an_error_before_it_is_parsed(log, archive):
    append(log, sample())
    export_votes(archive, log, log.head())
    (part,) = archive.manifest().votes.values()
    path = archive.directory / part.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="is damaged"):
        archive.votes(archive.manifest())


def test_an_archive_ahead_of_its_log_is_an_error(log, archive, tmp_path):
    append(log, sample())
    export_votes(archive, log, log.head())
    elsewhere = settings(tmp_path / "elsewhere", warehouse_url=str(log.settings.warehouse_path))
    other = SqliteLog(elsewhere)
    with pytest.raises(ArchiveError, match="another or an older log"):
        export_votes(Archive(elsewhere), other, other.head())
    other.close()


def test_texts_follow_in_bounded_steps(log, archive):
    append(log, sample("a", 1, prompt="one"))
    append(log, sample("a", 2, prompt="two"))
    assert export_submitted(archive, log, log.head(), 1)["texts"] == 2
    append(log, sample("a", 3, prompt="three"))
    assert export_submitted(archive, log, log.head(), 1)["texts"] == 1
    assert export_submitted(archive, log, log.head(), 1)["texts"] == 0
    texts = pl.concat([archive.read(part) for part in archive.manifest().texts])
    assert texts["prompt"].to_list() == ["one", "two", "three"]


def test_compaction_merges_files_and_drops_superseded_texts(log, archive):
    for number in range(4):
        append(log, sample("a", number // 2, prompt=str(number)))
        export_all(archive, log)
    assert len(archive.manifest().texts) == 4
    assert compact_texts(archive) == 4
    (part,) = archive.manifest().texts
    assert archive.read(part)["prompt"].to_list() == ["1", "3"]
    assert compact_texts(archive) == 0
    assert differences(archive, log, log.head()) == []


def test_no_difference_between_log_and_archive(log, archive):
    append(log, sample("a", 1), sample("a", 1), sample("b", "x", confidence=None))
    log.announce_task(request("admin"), 4).result(30)
    export_all(archive, log)
    append(log, sample("a", 1))
    export_votes(archive, log, log.head())
    assert differences(archive, log, 5) == []


def test_what_is_not_archived_yet_is_a_difference(log, archive):
    append(log, sample())
    export_votes(archive, log, log.head())
    assert differences(archive, log, 2) == ["the archive's submissions end at seq 0, before 2"]


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (("votes", "is_passed", False), "sample 2 differs in the archive"),
        (("votes", "miner_hotkey", "x"), "sample 2 is not in the archive"),
        (("submissions", "body", b"x"), "submission 1 is not in the archive as it arrived"),
        (("submissions", "timestamp", "1"), "submission 1 is not in the archive as it arrived"),
        (("texts", "seq", 77), "the texts of sample 2 are not in the archive"),
    ],
)
def test_a_changed_archive_is_found(log, archive, harm, finding):
    folder, column, value = harm
    append(log, sample("a", 1))
    export_all(archive, log)
    manifest = archive.manifest()
    parts = {"votes": [*manifest.votes.values()], "texts": manifest.texts}
    part = parts.get(folder, manifest.submissions)[0]
    rows = archive.read(part)
    changed = rows.with_columns(pl.lit(value).cast(rows.schema[column]).alias(column))
    lie = archive.write(folder, "lie", changed)
    with archive.changing():
        named = {"votes": {"0": lie}} if folder == "votes" else {folder: (lie,)}
        archive.replace_manifest(replace(manifest, **named))
    assert finding in differences(archive, log, log.head())


def test_the_log_forgets_only_what_the_archive_holds(log, archive):
    append(log, sample("a", 1), sample("b", 1))
    append(log, sample("a", 2))
    export_all(archive, log)
    before = rows(archive)
    keeper = SqliteKeeper(log.settings)
    assert differences(archive, log, 3) == []
    keeper.drop_through(3)
    append(log, sample("b", 1, passed=False))
    export_all(archive, log)
    assert rows(archive) == [before[0], before[2], (7, 1, False)]
    assert differences(archive, log, log.head()) == []
    assert keeper.check() == []
    # Without its archive the log cannot say any more what it once held.
    (archive.directory / "manifest.json").unlink()
    with pytest.raises(ArchiveError, match="restore the archive"):
        export_votes(archive, log, log.head())
    keeper.close()


def test_files_that_nobody_names_go_once_they_are_old(log, archive):
    append(log, sample("a", 1))
    export_votes(archive, log, log.head())
    (old,) = archive.manifest().votes.values()
    append(log, sample("a", 2))
    export_votes(archive, log, log.head())
    assert archive.remove_unnamed(set()) == 0
    path = archive.directory / old.file
    hours_ago = time.time() - 7200
    for file in archive.directory.rglob("*.parquet"):
        os.utime(file, (hours_ago, hours_ago))
    assert archive.remove_unnamed({path}) == 0
    assert archive.remove_unnamed(set()) == 1
    assert not path.exists()
    assert len(rows(archive)) == 2
    assert rows(archive)[0][0] == 2
    assert hotkey("a") in archive.votes(archive.manifest())["miner_hotkey"].to_list()


def announce(log, task_id):
    body = json.dumps({"task_id": task_id}).encode()
    return log.announce_task(signed_request("admin", body, path="/tasks"), task_id).result(30)


def test_events_are_archived_with_the_requests_that_signed_them(log, archive):
    announce(log, 7)
    append(log, sample("a", 1))
    log.add_to_blacklist(request("admin"), hotkey("v1"), "copies").result(30)
    assert export_events(archive, log, 2) == 1
    assert export_events(archive, log, log.head()) == 1
    assert export_events(archive, log, log.head()) == 0
    found = pl.concat([archive.read(part) for part in archive.manifest().events])
    events = [Event._make(row) for row in found.select(found.columns[:6]).rows()]
    assert admin_state(events) == log.admin_state()
    for row in found.iter_rows(named=True):
        message = signed_message(
            scheme=row["scheme"],
            method=row["method"],
            path=row["path"],
            body=zstandard.decompress(row["body"]),
            timestamp=row["timestamp"],
            nonce=row["nonce"],
        )
        assert verify(row["admin_hotkey"], row["signature"], message)


def test_small_files_of_evidence_are_merged_and_nothing_of_them_is_lost(log, archive, monkeypatch):
    for number in range(6):
        append(log, sample("a", number))
        announce(log, 100 + number)
        export_all(archive, log)
    before = archive.manifest()
    read = [archive.read(part) for part in before.submissions]
    assert len(read) == 6
    monkeypatch.setattr("warehouse.compaction.COMPACT_PART_BYTES", 3 * before.submissions[0].size)
    assert compact_evidence(archive) > 0
    after = archive.manifest()
    assert 1 < len(after.submissions) < 6
    assert pl.concat([archive.read(part) for part in after.submissions]).equals(pl.concat(read))
    assert sum(part.rows for part in after.events) == 6
    assert differences(archive, log, log.head()) == []
    # Merged files are smaller than their parts, so that more may fit; it comes to an end.
    while compact_evidence(archive):
        pass
    assert differences(archive, log, log.head()) == []


def test_a_manifest_of_the_first_release_is_read(log, archive):
    append(log, sample())
    export_all(archive, log)
    document = json.loads(archive.manifest().as_json())
    for name in ("events", "events_watermark"):
        del document[name]
    for part in [*document["votes"].values(), *document["texts"], *document["submissions"]]:
        del part["size"]
    (archive.directory / "manifest.json").write_text(json.dumps(document))
    assert archive.manifest().watermark == 2
    assert compact_evidence(archive) == 0
    announce(log, 7)
    assert export_events(archive, log, log.head()) == 1
