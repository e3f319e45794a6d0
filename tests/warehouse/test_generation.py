import json
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.warehouse.builders import settings
from warehouse import arrow
from warehouse.archive_views import ArchiveFiles
from warehouse.generation import (
    Generation,
    GenerationError,
    Generations,
    StaleRunError,
    archived_files,
    open_generation,
)
from warehouse.publication import publish
from warehouse.tables import ARCHIVED_TEXTS, ARCHIVED_VOTES, COMPUTED_TABLES, GENERATION, Kind

EMPTY = {table.name: arrow.schema(table).empty_table() for table in COMPUTED_TABLES}


BESIDE = {"samples", "archived_votes", "archived_texts", "generation", "verdict_partitions"}


def info(**values):
    defaults = {
        "valid_until_ms": 2,
        "watermark": 0,
        "netuid": 99,
        "block": 1,
        "metagraph_snapshot": "snapshots/1.parquet",
        "metagraph_synced_at_ms": 1,
        "winner_uid": 0,
        "burn_reason": "no_rank",
        "total_samples": 0,
        "parameters": "{}",
        "code_version": "0",
    }
    return defaults | values


def blacklist(*hotkeys):
    rows = [{"hotkey": name, "added_by": "admin", "created_at_ms": 1} for name in hotkeys]
    declared = next(table for table in COMPUTED_TABLES if table.name == "blacklist")
    return EMPTY | {"blacklist": pa.Table.from_pylist(rows, schema=arrow.schema(declared))}


@pytest.fixture
def generations(tmp_path):
    return Generations(settings(tmp_path))


def test_before_the_first_publication(generations):
    assert generations.current() is None
    assert generations.kept() == []
    assert generations.at(time.time_ns()) is None


def test_what_was_published_is_current_and_complete(generations):
    published = publish(generations, blacklist("5a"), info(watermark=7))
    assert generations.current() == published
    with open_generation(published) as connection:
        names = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
        assert names == {*EMPTY, *BESIDE}
        assert connection.execute("SELECT hotkey FROM blacklist").fetchall() == [("5a",)]
        row = connection.sql("SELECT * FROM generation").to_arrow_table().to_pylist()[0]
    assert set(row) == set(GENERATION.names)
    assert (row["watermark"], row["snapshot_id"]) == (7, published.snapshot_id)
    assert row["computed_at_ms"] == published.computed_at_ms


def test_a_generation_cannot_be_written_by_its_readers(generations):
    published = publish(generations, EMPTY, info())
    with open_generation(published) as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM blacklist")


def test_names_are_never_reused_and_sort_by_time(generations):
    published = [publish(generations, EMPTY, info()) for _ in range(5)]
    names = [generation.snapshot_id for generation in published]
    assert len(set(names)) == 5
    assert sorted(names) == names
    assert [generation.snapshot_id for generation in generations.kept()] == names[::-1]


def test_equal_rows_have_equal_digests_and_other_rows_another(generations):
    one = publish(generations, blacklist("5a"), info())
    same = publish(generations, blacklist("5a"), info(block=2))
    other = publish(generations, blacklist("5b"), info())
    digests = [name.snapshot_id.split("-")[1] for name in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_generations_are_found_by_name_and_by_time(generations):
    first = publish(generations, EMPTY, info())
    second = publish(generations, EMPTY, info())
    assert generations.find(first.snapshot_id) == first
    assert generations.find("20200101T000000000Z-00000000") is None
    assert generations.find("../../etc/passwd") is None
    assert generations.at(first.computed_at_ms) == first
    assert generations.at(second.computed_at_ms - 1) == first
    assert generations.at(second.computed_at_ms) == second
    assert generations.at(first.computed_at_ms - 1) is None


def test_a_generation_that_was_built_and_never_pointed_to_is_nobodys(generations):
    published = publish(generations, EMPTY, info())
    # What a run leaves that dies between the file's rename and the pointer's.
    later = publish(generations, EMPTY, info())
    content = json.dumps({"snapshot_id": published.snapshot_id, "watermark": 0})
    generations.pointer.write_text(content)
    assert generations.current() == published
    assert generations.kept() == [published]
    assert generations.find(later.snapshot_id) is None
    assert generations.at(later.computed_at_ms) == published
    last = publish(generations, EMPTY, info())
    assert generations.kept() == [last, published]
    assert not later.path.exists()


def test_a_lost_pointer_costs_no_generation(generations):
    published = [publish(generations, EMPTY, info()) for _ in range(3)]
    generations.pointer.unlink()
    assert generations.current() is None
    last = publish(generations, EMPTY, info())
    assert generations.kept() == [last, *published[::-1]]


def test_a_run_that_counts_less_of_the_log_publishes_nothing(generations):
    published = publish(generations, EMPTY, info(watermark=10))
    with pytest.raises(StaleRunError, match="made from watermark 10, this run from 9"):
        publish(generations, EMPTY, info(watermark=9))
    assert generations.current() == published
    assert len(generations.kept()) == 1


def test_a_run_on_an_older_metagraph_publishes_nothing(generations):
    published = publish(generations, EMPTY, info(watermark=10, metagraph_synced_at_ms=5_000))
    with pytest.raises(StaleRunError, match="metagraph_synced_at_ms 5000, this run from 4999"):
        publish(generations, EMPTY, info(watermark=11, metagraph_synced_at_ms=4_999))
    assert generations.current() == published
    assert generations.made_from() == (10, 5_000)


def test_a_pointer_of_the_first_release_is_still_read(generations):
    published = publish(generations, EMPTY, info(watermark=10))
    pointed = json.loads(generations.pointer.read_bytes())
    del pointed["metagraph_synced_at_ms"]
    generations.pointer.write_text(json.dumps(pointed))
    assert generations.current() == published
    assert generations.made_from() == (10, 0)
    assert publish(generations, EMPTY, info(watermark=11)) == generations.current()


@pytest.mark.parametrize("harm", ["missing table", "missing column", "null", "type"])
def test_tables_that_do_not_fit_are_not_published(generations, harm):
    tables = dict(blacklist("5a"))
    if harm == "missing table":
        del tables["ranks"]
    elif harm == "missing column":
        tables["blacklist"] = tables["blacklist"].drop_columns(["added_by"])
    elif harm == "null":
        tables["blacklist"] = pa.table(
            {"hotkey": [None], "reason": ["x"], "added_by": ["x"], "created_at_ms": [1]}
        )
    else:
        tables["blacklist"] = pa.table(
            {"hotkey": ["x"], "reason": ["x"], "added_by": ["x"], "created_at_ms": ["soon"]}
        )
    with pytest.raises((GenerationError, duckdb.ConstraintException)):
        publish(generations, tables, info())
    assert generations.current() is None
    assert generations.kept() == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"snapshot_id": "../x"}', b"\xff"])
def test_a_pointer_that_cannot_be_read_is_not_an_empty_warehouse(generations, content):
    publish(generations, EMPTY, info())
    generations.pointer.write_bytes(content)
    with pytest.raises(GenerationError):
        generations.current()


def test_a_truncated_generation_is_an_error(generations):
    published = publish(generations, EMPTY, info())
    published.path.write_bytes(published.path.read_bytes()[:1000])
    with pytest.raises(GenerationError):
        open_generation(published)


# An analyst is another process: one session, opened once, asked again and again.
ANALYST = """
import duckdb, sys
session = duckdb.connect(sys.argv[1], read_only=True)
for _ in sys.stdin:
    print(session.execute("SELECT hotkey FROM blacklist").fetchall(), flush=True)
"""


def test_an_open_session_outlives_twenty_publications(generations):
    publish(generations, blacklist("5first"), info())
    command = [sys.executable, "-c", ANALYST, str(generations.stable_name)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as analyst:

        def ask():
            analyst.stdin.write("\n")
            analyst.stdin.flush()
            return analyst.stdout.readline()

        assert ask() == "[('5first',)]\n"
        for number in range(20):
            publish(generations, blacklist(f"5{number:05}"), info())
            assert ask() == "[('5first',)]\n"
            with open_generation(generations.current()) as connection:
                newest = connection.execute("SELECT hotkey FROM blacklist").fetchall()
            assert newest == [(f"5{number:05}",)]
        analyst.stdin.close()
    assert analyst.returncode == 0
    with duckdb.connect(str(generations.stable_name), read_only=True) as connection:
        assert connection.execute("SELECT hotkey FROM blacklist").fetchall() == [("500019",)]


def test_retention_keeps_the_newest_the_hourly_and_the_current(tmp_path):
    generations = Generations(settings(tmp_path, generations_kept=2, generations_hourly_days=0))
    published = [publish(generations, EMPTY, info()) for _ in range(5)]
    removed, named = generations.retain()
    assert (removed, named) == (3, set())
    assert generations.kept() == published[:2:-1]
    assert not list(generations.directory.glob(f"{published[0].snapshot_id}*"))
    hourly = Generations(settings(tmp_path, generations_kept=2, generations_hourly_days=1))
    # The newest of an hour long ago stays for a day, an older one of that hour goes.
    now_ms = time.time_ns() // 1_000_000
    for minutes in (5 * 60, 5 * 60 + 1, 48 * 60):
        stamp = time.gmtime((now_ms // 3_600_000 * 3600) - minutes * 60)
        name = time.strftime("%Y%m%dT%H%M%S000Z-00000000", stamp)
        (generations.directory / f"{name}.duckdb").write_bytes(b"")
    assert hourly.retain()[0] == 2 if minutes_share_an_hour(now_ms) else 1
    assert hourly.current() == published[-1]


def minutes_share_an_hour(now_ms):
    """5:00 and 5:01 before a full hour lie in two hours, each the newest of its own."""
    return (now_ms // 3_600_000 * 60 - 300) // 60 == (now_ms // 3_600_000 * 60 - 301) // 60


def parquet(path, table, **values):
    blank = {Kind.INT: 0, Kind.TEXT: "", Kind.BOOL: False}
    row = {column.name: blank[column.kind] for column in table.columns} | values
    pq.write_table(pa.Table.from_pylist([row], schema=arrow.schema(table)), path)
    return path


def test_the_archive_is_one_table_whatever_the_working_directory(generations, tmp_path):
    votes = parquet(tmp_path / "votes.parquet", ARCHIVED_VOTES, seq=1, task_key="7")
    texts = parquet(tmp_path / "texts.parquet", ARCHIVED_TEXTS, seq=1, prompt="a kite")
    publish(generations, EMPTY, info(), ArchiveFiles((votes,), (texts,)))
    with open_generation(generations.current()) as connection:
        rows = connection.execute("SELECT task_key, prompt FROM samples").fetchall()
        assert rows == [("7", "a kite")]
    assert generations.retain() == (0, {votes, texts})


def test_before_the_first_export_the_archive_is_empty_and_has_its_columns(generations):
    publish(generations, EMPTY, info())
    with open_generation(generations.current()) as connection:
        columns = [name for name, *_ in connection.execute("DESCRIBE samples").fetchall()]
        assert columns == [*ARCHIVED_VOTES.names, *ARCHIVED_TEXTS.names[1:]]
        assert connection.execute("FROM samples").fetchall() == []


def test_retention_keeps_what_any_kept_generation_names(generations, tmp_path):
    old = parquet(tmp_path / "old.parquet", ARCHIVED_VOTES, seq=1)
    new = parquet(tmp_path / "new.parquet", ARCHIVED_VOTES, seq=2)
    publish(generations, EMPTY, info(), ArchiveFiles((old,)))
    publish(generations, EMPTY, info(), ArchiveFiles((new,)))
    assert generations.retain() == (0, {old, new})
    with open_generation(generations.current()) as connection:
        assert connection.execute("SELECT seq FROM samples").fetchall() == [(2,)]


def test_the_archive_files_of_a_generation_are_found_where_the_warehouse_was_moved_to(
    generations, tmp_path
):
    archive = generations.settings.warehouse_path / "archive"
    (archive / "votes").mkdir(parents=True)
    votes = parquet(archive / "votes" / "v.parquet", ARCHIVED_VOTES, seq=1)
    elsewhere = parquet(tmp_path / "t.parquet", ARCHIVED_TEXTS, seq=1)
    published = publish(generations, EMPTY, info(), ArchiveFiles((votes,), (elsewhere,)))
    assert archived_files(published) == ArchiveFiles((votes,), (elsewhere,))
    moved = generations.settings.warehouse_path.rename(tmp_path / "moved")
    there = Generation(published.snapshot_id, moved / "generations" / published.path.name)
    assert archived_files(there).votes == (moved / "archive" / "votes" / "v.parquet",)


def test_a_list_of_archive_files_of_the_first_release_is_read(generations):
    published = publish(generations, EMPTY, info())
    names = ["/old/archive/votes/0/a.parquet", "/old/archive/texts/b.parquet"]
    published.path.with_suffix(".json").write_text(json.dumps(names))
    assert archived_files(published) == ArchiveFiles((Path(names[0]),), (Path(names[1]),))


def test_what_keeps_a_generation_from_becoming_current_leaves_nothing(generations):
    first = publish(generations, EMPTY, info())

    def refuse(generation):
        assert generation.path.exists()
        assert generations.current() == first
        raise GenerationError("not here")

    with pytest.raises(GenerationError, match="not here"):
        publish(generations, EMPTY, info(), before_current=refuse)
    assert generations.current() == first
    assert {path.stem for path in generations.directory.iterdir()} == {first.snapshot_id}


def test_a_generation_from_elsewhere_becomes_current_unless_ours_is_newer(generations, tmp_path):
    away = Generations(settings(tmp_path / "away"))
    older = publish(away, EMPTY, info(watermark=5))
    ours = publish(generations, EMPTY, info(watermark=6))
    newer = publish(away, EMPTY, info(watermark=7))

    def bring_from(source):
        def bring(generation):
            for suffix in (".duckdb", ".json"):
                content = source.path.with_suffix(suffix).read_bytes()
                generation.path.with_suffix(suffix).write_bytes(content)

        return bring

    made_from = {"watermark": 5, "metagraph_synced_at_ms": 0}
    assert not generations.adopt(older.snapshot_id, made_from, bring_from(older))
    assert generations.current() == ours
    # A watermark that went back never becomes current, however new the name is.
    assert not generations.adopt(newer.snapshot_id, made_from, bring_from(newer))
    made_from = {"watermark": 7, "metagraph_synced_at_ms": 10**15}
    assert generations.adopt(newer.snapshot_id, made_from, bring_from(newer))
    assert generations.current().snapshot_id == newer.snapshot_id
    assert generations.made_from() == (7, 10**15)
    with open_generation(generations.current()) as connection:
        assert connection.execute("SELECT watermark FROM generation").fetchall() == [(7,)]
    assert not generations.adopt(newer.snapshot_id, made_from, bring_from(newer))
