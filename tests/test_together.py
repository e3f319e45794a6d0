"""Two workers taking in and serving, runs publishing, an analyst reading: all at the same time."""

import itertools
import json
import subprocess
import sys
import threading

import httpx
import pytest

from pipelines.run import materialize
from pipelines.settings import PipelineSettings
from tests.builders import hotkey, sample_body, signed_headers, write_metagraph
from tests.leoma_serve import LeomaServe
from warehouse.generation import Generations, open_generation
from warehouse.sqlite_keeper import SqliteKeeper

PUBLICATIONS = 20
VALIDATORS = ("v0", "v1")
MINERS = ("m0", "m1")
READS = ("/weights", "/scores/rank", "/samples/list?limit=20", "/miners/list", "/scores")

ANALYST = """
import duckdb, sys
session = duckdb.connect(sys.argv[1], read_only=True)
for _ in sys.stdin:
    print(session.execute("SELECT snapshot_id, watermark FROM generation").fetchall(),
          session.execute("SELECT count(*), sum(seq) FROM samples").fetchall(), flush=True)
"""


class Loop(threading.Thread):
    """Does something again and again until told to stop; a failure ends it and is kept."""

    def __init__(self, stop, act):
        super().__init__()
        self.stop, self.act = stop, act
        self.count, self.failure = 0, None

    def run(self):
        try:
            for number in itertools.count():
                if self.stop.is_set():
                    return
                self.act(number)
                self.count += 1
        except Exception as error:  # noqa: BLE001  (the test tells it)
            self.failure = error


def submit(http, validator, number):
    # Tasks come round again, so that versions are superseded while runs are under way.
    samples = [
        sample_body(task_id=number % 40, miner_hotkey=hotkey(miner), passed=number % 3 > 0)
        for miner in MINERS
    ]
    body = json.dumps({"samples": samples}).encode()
    headers = signed_headers(validator, body, method="POST", path="/samples/batch", scheme=2)
    answer = http.post("/samples/batch", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    # The next read shows it, whichever worker answers.
    newest = http.get(f"/tasks/{number % 40}/miner/{hotkey('m0')}").json()["validators"]
    own = next(one for one in newest if one["validator_hotkey"] == hotkey(validator))
    assert own["passed"] == (number % 3 > 0)


def read(http, number):
    answer = http.get(READS[number % len(READS)])
    assert answer.status_code == 200, answer.text


@pytest.fixture
def settings(tmp_path):
    metagraph = write_metagraph(
        tmp_path / "metagraph.json",
        validators=[{"hotkey": hotkey(name)} for name in VALIDATORS],
        miners=[{"hotkey": hotkey(name)} for name in MINERS],
    )
    return PipelineSettings(chain_source=str(metagraph), scorer_task_window=5)


def test_ingest_reads_runs_and_an_analyst_do_not_disturb_each_other(settings, warehouse_settings):
    materialize(settings, warehouse_settings)
    generations = Generations(warehouse_settings)
    api = LeomaServe(warehouse_settings.leoma_home)
    stop = threading.Event()
    clients = [
        httpx.Client(base_url=api.url, trust_env=False, timeout=30)
        for _ in range(len(VALIDATORS) + 1)
    ]
    loops = [
        *(
            Loop(stop, lambda number, who=name, http=http: submit(http, who, number))
            for name, http in zip(VALIDATORS, clients[1:], strict=True)
        ),
        Loop(stop, lambda number: read(clients[0], number)),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", ANALYST, str(generations.stable_name)]
    api.start()
    try:
        api.wait_until_ready()
        with subprocess.Popen(command, **pipes) as analyst:

            def ask():
                analyst.stdin.write("\n")
                analyst.stdin.flush()
                return analyst.stdout.readline()

            opened = ask()
            assert generations.current().snapshot_id in opened
            for loop in loops:
                loop.start()
            for _ in range(PUBLICATIONS):
                materialize(settings, warehouse_settings)
                assert ask() == opened
            analyst.stdin.close()
        assert analyst.returncode == 0
    finally:
        stop.set()
        for loop in loops:
            if loop.ident:
                loop.join()
        api.kill()
        for http in clients:
            http.close()

    assert [loop.failure for loop in loops] == [None] * len(loops)
    assert all(loop.count > PUBLICATIONS for loop in loops)
    published = materialize(settings, warehouse_settings)
    log = SqliteKeeper(warehouse_settings)
    assert published.watermark == log.head() > 0
    assert log.check() == []
    log.close()
    with open_generation(generations.current()) as connection:
        rows = connection.execute("SELECT count(*) FROM archived_votes").fetchall()
    assert rows == [(len(VALIDATORS) * len(MINERS) * 40,)]
