"""What retention took out of the log is still answered, from the archive."""

import pytest

from api.settings import ApiSettings
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.keeping import drop_archived
from pipelines.resources import Stores
from pipelines.run import keep, materialize
from pipelines.settings import PipelineSettings
from pipelines.sources import chain_source
from tests.api.servers import Server
from tests.builders import hotkey, sample, sample_body, signed_request, write_metagraph
from warehouse.archive import Archive
from warehouse.generation import Generations
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

READS = [
    "/samples/list?limit=500",
    "/samples/list?limit=3",
    f"/samples/task?validator_hotkey={hotkey('v1')}&task_id=2",
    f"/samples/task?validator_hotkey={hotkey('v1')}&sample_id=legacy",
    f"/samples/validator/{hotkey('v1')}?limit=500",
    f"/samples/validator/{hotkey('v2')}?limit=2",
    f"/samples/miner/{hotkey('b')}?limit=4",
    "/tasks/1",
    "/tasks/2",
    f"/tasks/3/miner/{hotkey('a')}",
]


@pytest.fixture
def settings(tmp_path):
    metagraph = write_metagraph(
        tmp_path / "metagraph.json",
        validators=[{"hotkey": hotkey("v1")}, {"hotkey": hotkey("v2"), "stake": 20_000}],
        miners=[{"hotkey": hotkey("a")}, {"hotkey": hotkey("b")}],
    )
    return PipelineSettings(chain_source=str(metagraph))


@pytest.fixture
def log(warehouse_settings):
    opened = SqliteLog(warehouse_settings)
    number = 0
    for validator in ("v1", "v2"):
        for task in (1, 2, 3):
            for miner in ("a", "b"):
                number += 1
                one = sample(
                    miner_hotkey=hotkey(miner), task_id=task, prompt=f"prompt {number}",
                    passed=validator == "v2",
                )  # fmt: skip
                body = str(number).encode()
                opened.append_samples(signed_request(validator, body), [one], None).result(30)
    legacy = sample(task_id=None, task_key="legacy", sample_id="legacy")
    opened.append_samples(signed_request("v1", b"legacy"), [legacy], None).result(30)
    yield opened
    opened.close()


def answers(server):
    found = {}
    for path in READS:
        answer = server.signed("v1", "GET", path)
        assert answer.status_code == 200, (path, answer.text)
        found[path] = answer.json()
    return found


def test_answers_are_the_same_before_and_after_the_log_forgot(settings, warehouse_settings, log):
    materialize(settings, warehouse_settings)
    materialize(settings, warehouse_settings)
    keep(settings, warehouse_settings)
    keeper = SqliteKeeper(warehouse_settings)
    with Server(ApiSettings(), warehouse_settings) as server:
        before = answers(server)
        # All but the last submissions: the answers come from both places then.
        assert keeper.drop_through(log.head() - 6) > 0
        assert answers(server) == before
        newer = sample_body(task_id=1, miner_hotkey=hotkey("a"), prompt="newer", passed=True)
        assert server.signed("v1", "POST", "/samples", newer).status_code == 200
        miners = server.get("/tasks/1").json()["miners"]
        assert [miner["validator_count"] for miner in miners] == [2, 2]
        listed = server.get("/samples/list?limit=500").json()
        assert len(listed) == len(before["/samples/list?limit=500"])
        assert listed[0]["prompt"] == "newer"
        keeper.drop_through(log.head())
        assert len(server.get(f"/tasks/3/miner/{hotkey('a')}").json()["validators"]) == 2
    keeper.close()


def test_the_log_keeps_what_readers_would_not_find_in_the_archive(
    settings, warehouse_settings, log
):
    keeper = SqliteKeeper(warehouse_settings)
    stores = Stores(
        settings,
        # Everything is older than the day after tomorrow.
        warehouse_settings.model_copy(update={"log_retention_days": -2}),
        chain_source(settings, ChainSnapshots(warehouse_settings)),
        ChainSnapshots(warehouse_settings),
        keeper,
        Archive(warehouse_settings),
        Generations(warehouse_settings),
    )
    assert drop_archived(stores) == 0
    materialize(settings, warehouse_settings)
    # Its texts were archived when the generation was out.
    assert drop_archived(stores) == 0
    keep(settings, warehouse_settings)
    materialize(settings, warehouse_settings)
    assert drop_archived(stores) == 2 * 13
    assert keeper.check() == []
    assert log.newest_samples(10) == []
    keeper.close()
