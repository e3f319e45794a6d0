"""Verdicts of a generation: what has not changed is taken from the last one, and nothing else."""

import errno
import hashlib
import logging

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import tried
from tests.warehouse.builders import settings
from tests.warehouse.test_generation import EMPTY, info
from warehouse import arrow
from warehouse.generation import GenerationError, Generations, open_generation
from warehouse.generation_file import tables_sha256
from warehouse.publication import publish
from warehouse.tables import COMPUTED_TABLES, VERDICTS
from warehouse.verdicts import WholeTable, digest_of_tasks, task_digests

SIZE = 10  # tasks of a partition
ROWS = "SELECT task_id, miner_hotkey, is_passed, latency_ms FROM verdicts ORDER BY ALL"


def table(rows):
    """The table of {(task, miner): (passed, latency)}."""
    return pa.Table.from_pylist(
        [
            {
                "miner_hotkey": miner,
                "task_id": task,
                "is_passed": passed,
                "stake_passed_rao": 5 * passed,
                "stake_total_rao": 8,
                "validator_count": 2,
                "latency_ms": latency,
                "updated_at_ms": task,
            }
            for (task, miner), (passed, latency) in rows.items()
        ],
        schema=arrow.schema(VERDICTS),
    )


class Source:
    """Verdicts in partitions of ten tasks; remembers whose rows were asked for."""

    def __init__(self, rows):
        self.parts = {}
        for (task, miner), value in rows.items():
            self.parts.setdefault(str(task // SIZE), {})[task, miner] = value
        self.asked = []

    def made_from(self):
        return {
            name: hashlib.sha256(repr(sorted(rows.items())).encode()).hexdigest()
            for name, rows in self.parts.items()
        }

    def rows(self, partition):
        self.asked.append(partition)
        return table(self.parts[partition])

    def task_digests(self):
        return {
            task: digest
            for rows in self.parts.values()
            for task, digest in task_digests(table(rows)).items()
        }


FIRST = {(task, miner): (task % 2 == 0, task) for task in (1, 2, 15, 31) for miner in "mn"}


@pytest.fixture
def generations(tmp_path):
    return Generations(settings(tmp_path))


def publish_rows(generations, rows):
    """Publish these verdicts; return what was asked of them, having compared what is stored."""
    source = Source(rows)
    published = publish(generations, EMPTY, info(), verdicts=source)
    with open_generation(published) as connection:
        stored = connection.execute(ROWS).fetchall()
        digest = connection.execute("SELECT tables_sha256 FROM generation").fetchall()[0][0]
        whole = [
            (one, connection.table(one.name).to_arrow_table().cast(arrow.schema(one)))
            for one in COMPUTED_TABLES
        ]
    key = lambda row: (*row[:3], row[3] is None, row[3])  # noqa: E731
    expected = [(task, miner, *value) for (task, miner), value in rows.items()]
    assert sorted(stored, key=key) == sorted(expected, key=key)
    assert digest == tables_sha256(whole)
    return sorted(source.asked)


def test_only_what_changed_is_asked_for(generations):
    assert publish_rows(generations, FIRST) == ["0", "1", "3"]
    assert publish_rows(generations, FIRST) == []
    changed = {**FIRST, (15, "m"): (True, None), (16, "o"): (False, 1)}
    assert publish_rows(generations, changed) == ["1"]
    assert publish_rows(generations, FIRST) == ["1"]


def test_a_partition_that_is_gone_takes_its_rows_along(generations):
    publish_rows(generations, FIRST)
    left = {key: value for key, value in FIRST.items() if key[0] != 15}
    assert publish_rows(generations, left) == []
    assert publish_rows(generations, {}) == []
    assert publish_rows(generations, FIRST) == ["0", "1", "3"]


histories = st.dictionaries(
    st.tuples(st.integers(0, 59), st.sampled_from("mno")),
    st.tuples(st.booleans(), st.none() | st.integers(0, 9)),
    max_size=30,
)


@tried(15, 300)
@given(made=st.lists(histories, min_size=2, max_size=4))
def test_whatever_came_before_a_generation_holds_its_own_rows(tmp_path_factory, made):
    generations = Generations(settings(tmp_path_factory.mktemp("home")))
    for rows in made:
        publish_rows(generations, rows)
    assert publish_rows(generations, made[-1]) == []


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE verdicts SET is_passed = NOT is_passed WHERE task_id = 15 AND miner_hotkey = 'm'",
        "UPDATE verdicts SET miner_hotkey = 'o' WHERE task_id = 15 AND miner_hotkey = 'm'",
        "DELETE FROM verdicts WHERE task_id = 15 AND miner_hotkey = 'm'",
        "INSERT INTO verdicts FROM verdicts WHERE task_id = 15",
        "UPDATE verdict_partitions SET rows_sum = '7' WHERE name = '1'",
        "UPDATE verdict_partitions SET last_task = 16, first_task = 16 WHERE name = '0'",
        "DELETE FROM verdict_partitions WHERE name = '1'",
        "DROP TABLE verdict_partitions",
        "DROP TABLE verdicts",
        "ALTER TABLE verdicts DROP COLUMN latency_ms",
        "CREATE TABLE notes (text VARCHAR)",
        "CREATE VIEW mine AS SELECT 1",
    ],
)
def test_what_is_not_what_was_written_is_not_built_upon(generations, harm):
    publish_rows(generations, FIRST)
    with duckdb.connect(str(generations.current().path)) as connection:
        connection.execute(harm)
    changed = {**FIRST, (1, "m"): (True, 3)}
    assert set(publish_rows(generations, changed)) >= {"0", "1"}
    assert publish_rows(generations, changed) == []


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_not_built_upon(generations, caplog, left):
    publish_rows(generations, FIRST)
    path = generations.current().path
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with caplog.at_level(logging.WARNING):
        assert publish_rows(generations, FIRST) == ["0", "1", "3"]
    assert "is not built upon" in caplog.text or left == 0


def test_a_file_that_cannot_be_read_is_not_built_upon(generations, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "input/output error")

    publish_rows(generations, FIRST)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", fail)
        assert publish_rows(generations, FIRST) == ["0", "1", "3"]
    assert publish_rows(generations, FIRST) == []


def test_a_damaged_file_is_not_built_upon(generations):
    """Wherever it is damaged: all verdicts are read, and the blocks have checksums."""
    many = {(task, f"miner {number}"): (True, task) for task in range(60) for number in range(300)}
    publish_rows(generations, many)
    path = generations.current().path
    content = path.read_bytes()
    for start in range(3 * 4096, len(content), len(content) // 12):
        path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
        rebuilt = Generations(generations.settings)
        publish_rows(rebuilt, many)
        rebuilt.current().path.unlink()
        rebuilt.pointer.write_bytes(b'{"snapshot_id": "%s", "watermark": 0}' % path.stem.encode())


def test_a_file_does_not_grow_with_the_generations_built_upon_it(generations):
    history = {
        (task, f"miner {number}"): (True, task) for task in range(60) for number in range(300)
    }
    publish_rows(generations, history)
    first = generations.current().path.stat().st_size
    for latency in range(25):
        history |= {(59, f"miner {number}"): (False, latency) for number in range(300)}
        publish_rows(generations, history)
    assert generations.current().path.stat().st_size < 2 * first


def test_partitions_that_share_tasks_are_refused(generations):
    source = Source(FIRST)
    source.parts["9"] = {(2, "o"): (True, 1)}
    with pytest.raises(GenerationError, match="overlap"):
        publish(generations, EMPTY, info(), verdicts=source)
    assert generations.current() is None


def test_the_digest_of_a_table_is_that_of_its_partitions():
    whole, source = WholeTable(table(FIRST)), Source(FIRST)
    assert digest_of_tasks(whole.task_digests()) == digest_of_tasks(source.task_digests())
    backwards = WholeTable(table(dict(reversed(FIRST.items()))))
    assert backwards.task_digests() == whole.task_digests()
    other = WholeTable(table({**FIRST, (2, "m"): (False, 2)}))
    assert other.task_digests() != whole.task_digests()
