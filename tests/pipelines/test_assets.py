"""The whole graph on real files: log and metagraph in, a generation out."""

import json
import random
import shutil
from decimal import Decimal

import dagster as dg
import polars as pl
import pytest
from dagster import build_sensor_context

from pipelines.chain_snapshots import ChainSnapshots
from pipelines.definitions import build_definitions
from pipelines.jobs import KEEP, MATERIALIZE, SYNC, TABLES
from pipelines.keeping import drop_archived
from pipelines.resources import Stores, stores_resource
from pipelines.run import MaterializationError, keep, materialize
from pipelines.settings import PipelineSettings
from pipelines.sources import chain_source
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse.archive import Archive, with_vote_parts
from warehouse.generation import Generations, open_generation
from warehouse.log import LogUnavailableError
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog
from warehouse.tables import COMPUTED_TABLES

VALIDATORS = {"v1": 6000, "v2": 9000, "poor": 4999}
MINERS = {"old": 100, "young": 200, "invalid": 50}
WINDOW = 5


class Subnet:
    """A home with a log and a metagraph file, and what a test does to them."""

    def __init__(self, home, warehouse=None):
        self.warehouse = warehouse or settings(home / "data")
        self.metagraph = home / "metagraph.json"
        self.settings = PipelineSettings(
            chain_source=str(self.metagraph), scorer_task_window=WINDOW
        )
        self.log = SqliteLog(self.warehouse)
        self.write_metagraph()

    def write_metagraph(self, validators=VALIDATORS, block=1000):
        document = {
            "netuid": 99,
            "block": block,
            "validators": [
                {"uid": uid, "hotkey": hotkey(name), "stake": stake}
                for uid, (name, stake) in enumerate(validators.items())
            ],
            "miners": [
                {
                    "uid": 10 + number,
                    "hotkey": hotkey(name),
                    "block": committed,
                    "is_valid": name != "invalid",
                    "invalid_reason": "chute_not_running" if name == "invalid" else None,
                }
                for number, (name, committed) in enumerate(MINERS.items())
            ],
        }
        self.metagraph.write_text(json.dumps(document))

    def vote(self, validator, miner, task, passed):
        append(self.log, sample(miner, task, passed=passed), signer=validator)

    def vote_all(self, miner, passed):
        for task in range(1, WINDOW + 1):
            self.vote("v1", miner, task, task <= passed)
            self.vote("v2", miner, task, task <= passed)

    def run(self):
        return materialize(self.settings, self.warehouse)

    def ask(self, sql):
        with open_generation(Generations(self.warehouse).current()) as connection:
            return connection.execute(sql).fetchall()

    def synced(self):
        return ChainSnapshots(self.warehouse).newest()

    def digest(self):
        return self.ask("SELECT tables_sha256 FROM generation")[0][0]


@pytest.fixture
def subnet(tmp_path):
    made = Subnet(tmp_path)
    yield made
    made.log.close()


def test_an_empty_log_burns_and_says_why(subnet):
    published = subnet.run()
    assert published.watermark == 0
    assert subnet.ask("SELECT winner_uid, winner_hotkey, burn_reason FROM generation") == [
        (0, None, "window_incomplete")
    ]
    registered = subnet.ask("SELECT hotkey, is_registered FROM validators ORDER BY uid")
    assert registered == [(hotkey("v1"), True), (hotkey("v2"), True), (hotkey("poor"), False)]


def test_from_samples_to_weights(subnet):
    subnet.vote_all("old", 2)
    subnet.vote_all("young", 4)
    subnet.vote_all("invalid", 5)
    published = subnet.run()
    assert published.watermark == subnet.log.head()
    assert subnet.ask("SELECT miner_hotkey, uid, weight FROM weights") == [
        (hotkey("young"), 11, 1.0),
        (hotkey("old"), 10, 0.0),
    ]
    assert subnet.ask("SELECT winner_uid, winner_hotkey, burn_reason FROM generation") == [
        (11, hotkey("young"), None)
    ]
    assert subnet.ask("SELECT total_samples FROM generation") == [(30,)]
    # Verdicts are also made for miners that are not valid: the dashboard shows their tasks.
    assert subnet.ask("SELECT count(*) FROM verdicts") == [(15,)]


def test_the_archive_is_one_table_for_analysts(subnet):
    subnet.vote_all("old", 3)
    subnet.run()
    # The texts follow when the weights are out, so the next generation shows them.
    subnet.run()
    rows = subnet.ask("SELECT count(*), count(prompt), count(DISTINCT task_id) FROM samples")
    assert rows == [(10, 10, WINDOW)]


def test_a_run_without_news_changes_no_table(subnet):
    subnet.vote_all("old", 3)
    first = subnet.run()
    digest = subnet.digest()
    second = subnet.run()
    assert second.snapshot_id != first.snapshot_id
    assert subnet.digest() == digest


def test_everything_is_rebuilt_from_the_log_alone(subnet):
    for number in range(40):
        task, miner = number % 7, ("old", "young", "invalid")[number % 3]
        subnet.vote(("v1", "v2")[number % 2], miner, task, number % 4 < 2)
        if number % 11 == 0:
            subnet.run()
    subnet.log.add_to_blacklist(request("admin"), hotkey("old"), "copies").result(30)
    subnet.run()
    digest = subnet.digest()
    shutil.rmtree(subnet.warehouse.warehouse_path)
    subnet.run()
    assert subnet.digest() == digest


def test_order_and_duplication_of_submissions_change_no_score(tmp_path):
    votes = [
        (validator, miner, task, (task + len(miner)) % 3 != 0)
        for validator in ("v1", "v2")
        for miner in ("old", "young")
        for task in range(1, WINDOW + 3)
    ]
    answers = []
    for seed in range(3):
        shuffled = votes * (seed + 1)
        random.Random(seed).shuffle(shuffled)
        (tmp_path / str(seed)).mkdir()
        subnet = Subnet(tmp_path / str(seed))
        for vote in shuffled:
            subnet.vote(*vote)
        subnet.run()
        answers.append(
            [
                subnet.ask("SELECT miner_hotkey, task_id, is_passed FROM verdicts"),
                subnet.ask("SELECT * EXCLUDE updated_at_ms FROM scores"),
                *(subnet.ask(f"FROM {name}") for name in ("miner_scores", "ranks", "weights")),
            ]
        )
        subnet.log.close()
    assert answers[0] == answers[1] == answers[2]


def test_a_blacklisted_miner_drops_out_with_the_next_run(subnet):
    subnet.vote_all("old", 5)
    subnet.vote_all("young", 3)
    subnet.run()
    assert subnet.ask("SELECT winner_hotkey FROM generation") == [(hotkey("old"),)]
    subnet.log.add_to_blacklist(request("admin"), hotkey("old"), "copies").result(30)
    subnet.run()
    assert subnet.ask("SELECT miner_hotkey FROM weights") == [(hotkey("young"),)]
    assert subnet.ask("SELECT invalid_reason FROM miners WHERE hotkey = $$" + hotkey("old") + "$$")[
        0
    ] == ("blacklisted",)
    assert subnet.ask("SELECT hotkey, reason FROM blacklist") == [(hotkey("old"), "copies")]


def test_stake_that_moves_flips_a_verdict_without_any_sample(subnet):
    subnet.vote("v1", "old", 1, passed=True)
    subnet.vote("v2", "old", 1, passed=False)
    subnet.run()
    assert subnet.ask("SELECT is_passed FROM verdicts") == [(False,)]
    subnet.write_metagraph({"v1": 9001, "v2": 9000}, block=1001)
    subnet.run()
    assert subnet.ask("SELECT is_passed, stake_passed_rao FROM verdicts") == [(True, 9001 * 10**9)]
    assert subnet.ask("SELECT block FROM generation") == [(1001,)]


def test_a_task_above_the_announced_one_does_not_move_the_window(subnet):
    subnet.vote_all("old", 5)
    subnet.vote("v1", "old", 1_000_000_000, passed=True)
    subnet.log.announce_task(request("admin"), WINDOW).result(30)
    subnet.run()
    assert subnet.ask("SELECT window_first, window_last FROM generation") == [(1, WINDOW)]
    assert subnet.ask("SELECT winner_hotkey FROM generation") == [(hotkey("old"),)]


@pytest.mark.parametrize("harm", ["gone", "empty", "half", "other subnet"])
def test_a_failed_chain_read_publishes_nothing(subnet, harm):
    subnet.vote_all("old", 5)
    published = subnet.run()
    text = subnet.metagraph.read_text()
    if harm == "gone":
        subnet.metagraph.unlink()
    else:
        harmed = {"empty": "", "half": text[: len(text) // 2]}
        other = text.replace('"netuid": 99', '"netuid": 98')
        subnet.metagraph.write_text(harmed.get(harm, other))
    with pytest.raises(MaterializationError, match="metagraph"):
        subnet.run()
    assert Generations(subnet.warehouse).current().snapshot_id == published.snapshot_id


def test_no_chain_source_is_said(subnet):
    with pytest.raises(MaterializationError, match="CHAIN_SOURCE"):
        materialize(PipelineSettings(chain_source=""), subnet.warehouse)


def test_a_lost_archive_file_publishes_nothing(subnet):
    subnet.vote_all("old", 5)
    published = subnet.run()
    archive = Archive(subnet.warehouse)
    for part in archive.manifest().votes.values():
        (archive.directory / part.file).unlink()
    with pytest.raises(MaterializationError, match="cannot be read"):
        subnet.run()
    assert Generations(subnet.warehouse).current().snapshot_id == published.snapshot_id


@pytest.mark.parametrize("lie", ["doubled", "lost", "changed"])
def test_an_archive_that_lies_about_the_log_publishes_nothing(subnet, lie):
    subnet.vote_all("old", 5)
    published = subnet.run()
    archive = Archive(subnet.warehouse)
    manifest = archive.manifest()
    ((name, part),) = manifest.votes.items()
    rows = archive.read(part)
    harmed = {
        "doubled": pl.concat([rows, rows.tail(1)]),
        "lost": rows.head(-1),
        "changed": rows.with_columns(~pl.col("is_passed")),
    }[lie]
    part = archive.write(f"votes/{name}", "lie", harmed)
    with archive.changing():
        archive.replace_manifest(with_vote_parts(manifest, {name: part}, manifest.watermark))
    with pytest.raises(MaterializationError, match="log_and_tables_reconcile"):
        subnet.run()
    assert Generations(subnet.warehouse).current().snapshot_id == published.snapshot_id


def test_a_generation_names_the_chain_snapshot_and_the_parameters_it_came_from(subnet):
    subnet.run()
    ((snapshot, parameters),) = subnet.ask("SELECT metagraph_snapshot, parameters FROM generation")
    assert (subnet.warehouse.warehouse_path / snapshot).exists()
    assert json.loads(parameters)["task_window"] == WINDOW


def test_a_part_of_the_graph_is_not_published_on_its_own(subnet):
    definition = build_definitions(subnet.settings, subnet.warehouse).resolve_job_def(MATERIALIZE)
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(dg.DagsterInvariantViolationError, match="launch the whole job"),
    ):
        definition.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("ranks")])
    assert Generations(subnet.warehouse).current() is None


def evaluate(subnet, instance, cursor):
    definitions = build_definitions(subnet.settings, subnet.warehouse)
    sensor = definitions.resolve_sensor_def("log_growth")
    resources = {"stores": stores_resource(subnet.settings, subnet.warehouse)}
    with build_sensor_context(
        instance=instance, cursor=cursor, definitions=definitions, resources=resources
    ) as context:
        return sensor.evaluate_tick(context)


def test_before_the_first_sync_the_sensor_has_the_chain_read(subnet):
    with dg.DagsterInstance.ephemeral() as instance:
        first = evaluate(subnet, instance, None)
        assert [request.job_name for request in first.run_requests] == [SYNC]
        # If that fails it is not repeated at every look.
        assert evaluate(subnet, instance, first.cursor).run_requests == []


def test_the_sensor_asks_once_for_what_is_new(subnet):
    subnet.run()
    with dg.DagsterInstance.ephemeral() as instance:
        quiet = evaluate(subnet, instance, None)
        assert quiet.run_requests == []
        assert quiet.skip_message == "the current generation counts the log up to its end, 0"
        subnet.vote("v1", "old", 1, passed=True)
        grown = evaluate(subnet, instance, quiet.cursor)
        assert [request.job_name for request in grown.run_requests] == [TABLES]
        assert evaluate(subnet, instance, grown.cursor).run_requests == []
        subnet.log.announce_task(request("admin"), 5).result(30)
        assert len(evaluate(subnet, instance, grown.cursor).run_requests) == 1
        subnet.run()
        synced = subnet.synced()
        stores_snapshots = ChainSnapshots(subnet.warehouse)
        stores_snapshots.keep(synced.metagraph, synced.synced_at_ms + 1)
        # The same metagraph, read again: the weights are good for longer.
        assert len(evaluate(subnet, instance, grown.cursor).run_requests) == 1


def test_the_sensor_asks_again_when_a_run_came_to_nothing(subnet):
    subnet.run()
    subnet.vote("v1", "old", 1, passed=True)
    with dg.DagsterInstance.ephemeral() as instance:
        asked = json.loads(evaluate(subnet, instance, None).cursor)
        for seconds in (-100, 100):
            moved = {**asked, "asked_at_seconds": asked["asked_at_seconds"] + seconds}
            assert len(evaluate(subnet, instance, json.dumps(moved)).run_requests) == 1


@pytest.mark.parametrize("job", [TABLES, MATERIALIZE])
def test_the_sensor_waits_for_the_run_under_way(subnet, job):
    subnet.run()
    subnet.vote("v1", "old", 1, passed=True)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_run(dg.DagsterRun(job_name=job, status=dg.DagsterRunStatus.STARTED))
        waiting = evaluate(subnet, instance, None)
        assert waiting.run_requests == []
        assert waiting.skip_message == "1 runs are not finished"
        # What it did not ask for it asks for later.
        assert waiting.cursor is None


def run_job(subnet, name):
    definition = build_definitions(subnet.settings, subnet.warehouse).resolve_job_def(name)
    with dg.DagsterInstance.ephemeral() as instance:
        return definition.execute_in_process(instance=instance, raise_on_error=False)


def test_tables_follow_the_log_while_the_chain_cannot_be_read(subnet):
    subnet.run()
    before = subnet.synced()
    subnet.metagraph.unlink()
    subnet.vote_all("old", 5)

    assert not run_job(subnet, SYNC).success
    assert run_job(subnet, TABLES).success

    assert subnet.ask("SELECT winner_hotkey, metagraph_synced_at_ms FROM generation") == [
        (hotkey("old"), before.synced_at_ms)
    ]
    assert subnet.synced().name == before.name


def test_a_metagraph_that_changed_reaches_the_tables_through_both_jobs(subnet):
    subnet.run()
    subnet.write_metagraph({"v1": 6000}, block=1001)
    assert run_job(subnet, SYNC).success
    assert subnet.ask("SELECT block FROM generation") == [(1000,)]
    assert run_job(subnet, TABLES).success
    assert subnet.ask("SELECT block, metagraph_snapshot FROM generation") == [
        (1001, f"snapshots/{subnet.synced().name}")
    ]
    assert subnet.ask("SELECT hotkey FROM validators") == [(hotkey("v1"),)]


def test_without_any_sync_no_table_is_made(subnet):
    assert not run_job(subnet, TABLES).success
    assert Generations(subnet.warehouse).current() is None


def test_schedules_run_without_an_operator(subnet):
    definitions = build_definitions(subnet.settings, subnet.warehouse)
    for name in ("chain_sync", "nightly_keeping"):
        schedule = definitions.resolve_schedule_def(name)
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert definitions.resolve_schedule_def("chain_sync").cron_schedule == "*/5 * * * *"


def test_the_nightly_work_lets_go_only_of_what_is_old_and_archived(subnet):
    subnet.vote_all("old", 5)
    subnet.run()
    keep(subnet.settings, subnet.warehouse)
    assert subnet.log.dropped_through() == 0
    assert Archive(subnet.warehouse).manifest().submissions_watermark == subnet.log.head()
    log = SqliteKeeper(subnet.warehouse)
    stores = Stores(
        subnet.settings,
        subnet.warehouse.model_copy(update={"log_retention_days": 1}),
        chain_source(subnet.settings, ChainSnapshots(subnet.warehouse)),
        ChainSnapshots(subnet.warehouse),
        log,
        Archive(subnet.warehouse),
        Generations(subnet.warehouse),
    )
    assert drop_archived(stores) == 0
    # Dropping by hand what the night would drop a day later changes no table.
    digest = subnet.digest()
    log.drop_through(log.head())
    assert log.newest_samples(10) == []
    subnet.run()
    assert subnet.digest() == digest
    assert subnet.ask("SELECT count(prompt) FROM samples") == [(10,)]
    log.close()


def test_the_nightly_work_forgets_old_runs(subnet):
    kept = subnet.settings.model_copy(update={"dagster_runs_kept": 3})
    definition = build_definitions(kept, subnet.warehouse).resolve_job_def(KEEP)
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(8):
            instance.add_run(dg.DagsterRun(job_name=KEEP, status=dg.DagsterRunStatus.SUCCESS))
        instance.add_run(dg.DagsterRun(job_name=KEEP, status=dg.DagsterRunStatus.STARTED))
        assert definition.execute_in_process(instance=instance).success
        # Three finished ones, the unfinished one, and the run that did this.
        assert instance.get_runs_count() == 3 + 1 + 1


def test_minimum_stake_is_a_setting(subnet):
    subnet.settings = subnet.settings.model_copy(update={"min_validator_stake": Decimal(4999)})
    subnet.run()
    assert subnet.ask("SELECT bool_and(is_registered) FROM validators") == [(True,)]


def test_a_log_that_does_not_answer_fails_the_run(subnet, tmp_path):
    warehouse = settings(tmp_path / "broken")
    warehouse.log_path.mkdir(parents=True)
    with pytest.raises((MaterializationError, LogUnavailableError)):
        materialize(subnet.settings, warehouse)


def test_every_computed_table_is_an_asset_with_a_blocking_check(subnet):
    definitions = build_definitions(subnet.settings, subnet.warehouse)
    graph = definitions.resolve_asset_graph()
    checked = {key.asset_key.to_user_string() for key in graph.asset_check_keys}
    assert {table.name for table in COMPUTED_TABLES} <= checked
    assert all(graph.get(key).blocking for key in graph.asset_check_keys)
