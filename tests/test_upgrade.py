"""A home that an earlier version made, taken over by this one: nothing lost, nothing answered anew.

`homes/2026-11-22.tar.xz` was made by the commit of that day (b9a7ce2), whose log had version 1 and
whose chain snapshots were JSON, `homes/2026-11-28.tar.xz` by f1e663c, whose log had version 2:
`SCORER_TASK_WINDOW=10 leoma demo --once --tasks 10 --home /srv/leoma`, then `leoma serve`, and what
its routes answered is answers.json. Their keys were thrown away.
"""

import hashlib
import itertools
import json
import sqlite3
import tarfile
from pathlib import Path

import pytest

from api.settings import ApiSettings
from cli.main import run
from cli.orchestration import SUPERSEDED, dagster_home
from pipelines.run import keep, materialize
from pipelines.settings import PipelineSettings
from tests.api.servers import Server
from tests.warehouse.builders import append, sample
from warehouse.backends import open_kept_log
from warehouse.generation import Generations
from warehouse.records import SignedRequest
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

ARCHIVES = sorted((Path(__file__).parent / "homes").glob("*.tar.xz"))
MADE_AT = "/srv/leoma"


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def old(request, tmp_path, monkeypatch):
    """The old home, as if it had been made where it is now."""
    home = tmp_path / "data"
    with tarfile.open(request.param) as archive:
        # Python before 3.11.4 has no filter, and ignores this.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(home)
    for path in (home / "warehouse" / "generations").glob("*.json"):
        path.write_text(path.read_text().replace(MADE_AT, str(home)))
    monkeypatch.setenv("LEOMA_HOME", str(home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return WarehouseSettings(leoma_home=home)


@pytest.fixture
def answers(old):
    return json.loads((old.leoma_home / "answers.json").read_bytes())


@pytest.fixture
def pipeline(old):
    chain = old.leoma_home / "demo" / "metagraph.json"
    return PipelineSettings(chain_source=str(chain), scorer_task_window=10)


def said_again(old, new):
    """Whether `new` says all that `old` said; it may say more."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(
            name in new and said_again(value, new[name]) for name, value in old.items()
        )
    if isinstance(old, list):
        return len(old) == len(new) and all(map(said_again, old, new))
    return old == new


def test_what_was_answered_is_answered(old, answers):
    with Server(ApiSettings(), old) as server:
        for path, before in answers.items():
            assert said_again(before, server.get(path).json()), path


def test_the_log_goes_on_where_it_was(old):
    keeper = open_kept_log(old)
    (used, *_) = itertools.chain.from_iterable(keeper.submissions_between(0, keeper.head()))
    log = SqliteLog(old)
    head = log.head()
    again = SignedRequest(used.hotkey, used.signature, 1, used.timestamp, None, "POST", "/", b"{}")
    earlier = log.append_samples(again, [sample(task=10)], None).result(30)
    assert (earlier.is_replay, earlier.submission_seq) == (True, used.seq)
    assert append(log, sample("late", task=10)).submission_seq == head + 1
    log.close()
    assert keeper.check() == []
    keeper.close()


def test_tables_are_made_again_and_say_the_same(old, answers, pipeline):
    before = Generations(old).current()
    materialize(pipeline, old)
    keep(pipeline, old)
    assert Generations(old).current().snapshot_id > before.snapshot_id
    # Of another run, and of another instant.
    of_the_run = ("snapshot_id", "computed_at", "valid_until", "updated_at")
    with Server(ApiSettings(), old) as server:
        for path, was in answers.items():
            lasting = was
            if path in ("/weights", "/scores"):
                lasting = {name: value for name, value in was.items() if name not in of_the_run}
            assert said_again(lasting, server.get(path).json()), path


def test_it_can_be_verified_from_the_first_run_on(old, pipeline, capsys):
    materialize(pipeline, old)
    assert run(["fsck"]) == 0, capsys.readouterr().out


def test_results_that_waited_wait_on(old):
    with sqlite3.connect(old.log_path) as connection:
        (waiting,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    log = SqliteLog(old)
    assert log.backlog(10_000).depth == waiting > 0
    log.close()


def test_dagster_s_old_settings_are_replaced_unless_they_were_changed(old):
    path = old.leoma_home / "dagster" / "dagster.yaml"
    ours = Path("pipelines/dagster.yaml").read_bytes()
    before = path.read_bytes()
    assert hashlib.sha256(ours).hexdigest() not in SUPERSEDED
    dagster_home()
    assert path.read_bytes() == ours
    changed = before.replace(b"dequeue_interval_seconds: 1", b"dequeue_interval_seconds: 2")
    path.write_bytes(changed)
    dagster_home()
    assert path.read_bytes() == changed
