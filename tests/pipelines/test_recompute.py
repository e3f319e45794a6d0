"""A generation is checked against what it was made from, and a forged one is told."""

import json
import shutil

import duckdb
import pytest

from cli.main import run
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import MetagraphError
from pipelines.recompute import recompute
from pipelines.run import keep, materialize
from pipelines.settings import PipelineSettings
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse.generation import GenerationError, Generations
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

WINDOW = 3


class Home:
    """A home with three generations: before a resubmission, after it, and on another metagraph."""

    def __init__(self, home):
        self.warehouse = settings(home / "data")
        self.file = home / "metagraph.json"
        self.settings = PipelineSettings(chain_source=str(self.file), scorer_task_window=WINDOW)
        self.generations = Generations(self.warehouse)
        self.write(stakes=(6000, 9000))
        log = SqliteLog(self.warehouse)
        for task in range(1, WINDOW + 1):
            for miner, passes in (("old", task == 1), ("young", task > 1)):
                append(log, sample(miner, task, passed=passes), signer="v1")
                append(log, sample(miner, task, passed=passes), signer="v2")
        self.first = self.publish()
        append(log, sample("young", 2, passed=False), signer="v2")
        append(log, sample("young", 3, passed=False), signer="v2")
        self.second = self.publish()
        self.write(stakes=(20_000, 9000), block=1001)
        self.third = self.publish()
        log.close()

    def write(self, stakes, block=1000):
        validators = [
            {"uid": uid, "hotkey": hotkey(f"v{uid + 1}"), "stake": stake}
            for uid, stake in enumerate(stakes)
        ]
        miners = [
            {"uid": 10 + uid, "hotkey": hotkey(name), "block": 100 + uid, "is_valid": True}
            for uid, name in enumerate(("old", "young"))
        ]
        document = {"netuid": 99, "block": block, "validators": validators, "miners": miners}
        self.file.write_text(json.dumps(document))

    def publish(self):
        return self.generations.find(materialize(self.settings, self.warehouse).snapshot_id)

    def winner(self, generation):
        with duckdb.connect(str(generation.path), read_only=True) as connection:
            return connection.sql("SELECT winner_hotkey FROM generation").fetchall()[0][0]

    def check(self, generation, on_progress=lambda _done, _total: None):
        log = SqliteKeeper(self.warehouse)
        try:
            return recompute(generation, log, ChainSnapshots(self.warehouse), on_progress)
        finally:
            log.close()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("published"))


@pytest.fixture
def home(published, tmp_path):
    """A copy of its own, for a test that does harm."""
    shutil.copytree(published.warehouse.leoma_home, tmp_path / "data", symlinks=True)
    copy = object.__new__(Home)
    copy.warehouse = settings(tmp_path / "data")
    copy.settings, copy.generations = published.settings, Generations(copy.warehouse)
    copy.first, copy.second, copy.third = (
        copy.generations.find(one.snapshot_id)
        for one in (published.first, published.second, published.third)
    )
    return copy


def test_every_kept_generation_is_what_its_sources_lead_to(published):
    winners = [published.winner(one) for one in (published.first, published.second)]
    assert winners == [hotkey("young"), hotkey("old")]
    seen = []
    for generation in (published.first, published.second, published.third):
        found = published.check(generation, lambda done, total: seen.append((done, total)))
        assert found.differences == ()
        assert found.snapshot_id == generation.snapshot_id
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]


def test_it_needs_neither_archive_nor_the_other_generations(home):
    shutil.rmtree(home.warehouse.warehouse_path / "archive")
    home.second.path.unlink()
    assert home.check(home.first).differences == ()


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE weights SET weight = 1 - weight", "weights"),
        ("UPDATE verdicts SET is_passed = NOT is_passed WHERE task_id = 2", "verdicts"),
        ("UPDATE validators SET stake_rao = stake_rao + 1 WHERE uid = 0", "validators"),
        ("DELETE FROM scores WHERE total_passed = 1", "scores"),
    ],
)
def test_a_forged_table_is_told(home, statement, table):
    forged = home.first.path
    forged.chmod(0o644)
    with duckdb.connect(str(forged)) as connection:
        connection.execute(statement)
    found = home.check(home.first)
    assert found.differences == (f"the table {table} is not what follows from log and snapshot",)


def test_a_forged_winner_is_told(home):
    with duckdb.connect(str(home.first.path)) as connection:
        connection.execute("UPDATE generation SET winner_uid = 10")
    assert home.check(home.first).differences == (
        "winner_uid is 10, but 11 follows from log and snapshot",
    )


def test_an_act_of_an_admin_counts_from_its_place_in_the_log(home):
    log = SqliteLog(home.warehouse)
    log.add_to_blacklist(request("admin"), hotkey("young"), None).result(30)
    log.close()
    assert home.check(home.first).differences == ()


def test_what_cannot_be_computed_is_not_called_right(home):
    keep(home.settings, home.warehouse)
    log = SqliteKeeper(home.warehouse)
    log.drop_through(4)
    log.close()
    with pytest.raises(GenerationError, match="retention has dropped"):
        home.check(home.first)


def test_the_command_says_what_was_proven_or_not(home, monkeypatch, capsys):
    monkeypatch.setenv("LEOMA_HOME", str(home.warehouse.leoma_home))
    assert run(["recompute"]) == 0
    assert f"{home.third.snapshot_id}: every table is what the log" in capsys.readouterr().out
    assert run(["recompute", home.first.snapshot_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "snapshot_id": home.first.snapshot_id,
        "watermark": home.check(home.first).watermark,
        "block": 1000,
        "differences": [],
    }
    assert run(["recompute", "20200101T000000000Z-00000000"]) == 1
    assert "is not kept" in capsys.readouterr().err
    with duckdb.connect(str(home.first.path)) as connection:
        connection.execute("UPDATE weights SET weight = 1 - weight")
    assert run(["recompute", home.first.snapshot_id]) == 1
    told = capsys.readouterr()
    assert "the table weights is not what follows" in told.out
    assert "is not what its sources lead to" in told.err


def test_a_snapshot_that_is_gone_is_said(home):
    for path in ChainSnapshots(home.warehouse).directory.glob("*.parquet"):
        path.unlink()
    with pytest.raises(MetagraphError, match="chain snapshot"):
        home.check(home.first)


def test_another_log_is_said(home, tmp_path):
    log = SqliteKeeper(settings(tmp_path / "other"))
    try:
        with pytest.raises(GenerationError, match="it is another or an older log"):
            recompute(home.first, log, ChainSnapshots(home.warehouse))
    finally:
        log.close()
