"""The API, or a worker, is killed in mid-ingest: what was acknowledged is there, once, whole.

A few kills by default, a hundred of each kind where LEOMA_TORTURE=1.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.builders import hotkey, publish, sample_body, signed_headers
from tests.ledger import GIVE_UP_SECONDS, Audit, Crowd, Validator, tell
from tests.leoma_serve import LeomaServe, spawned_by
from warehouse.files import locked
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_schema import lock_path

# By default, and as torture.
API_KILLS = {False: 8, True: 100}
WORKER_KILLS = {False: 6, True: 100}
ANSWERS_AFTER = 20
VALIDATORS = ("v0", "v1", "v2", "v3")


@pytest.fixture
def api(warehouse_settings):
    publish(warehouse_settings, validators=[{"hotkey": hotkey(name)} for name in VALIDATORS])
    serving = LeomaServe(warehouse_settings.leoma_home)
    serving.start()
    try:
        yield serving
    finally:
        if serving.process.poll() is None:
            serving.kill()


@pytest.fixture
def audit(warehouse_settings, api):
    return Audit(warehouse_settings, [Validator(name, api.url) for name in VALIDATORS])


def test_kills_of_the_api_lose_nothing_double_nothing_tear_nothing(
    api, audit, moments, is_torture, record_property
):
    kills = API_KILLS[is_torture]
    with Crowd(audit.validators) as crowd:
        for _ in range(kills):
            # In the middle of ingest: after some answers of this life, others on the way.
            crowd.wait_for(moments.randrange(1, 25))
            time.sleep(moments.random() / 100)
            api.kill()
            api.start()
            # What was on its way is answered by the next life.
            with crowd.paused():
                audit.look(are_all_answered=True)
        crowd.wait_for(ANSWERS_AFTER)
    api.kill()
    audit.close()
    tell(record_property, kills=kills, **audit.figures())


def test_one_worker_after_the_other_is_killed_and_the_service_goes_on(
    api, audit, moments, is_torture, record_property
):
    kills = WORKER_KILLS[is_torture]
    api.wait_until_ready()
    with Crowd(audit.validators) as crowd:
        for _ in range(kills):
            crowd.wait_for(moments.randrange(1, 15))
            time.sleep(moments.random() / 100)
            deadline = time.monotonic() + GIVE_UP_SECONDS
            while not (workers := spawned_by(api.process.pid)):
                assert time.monotonic() < deadline, "no worker came back"
                time.sleep(0.02)
            moments.choice(workers).kill()
            with crowd.paused():
                audit.look(are_all_answered=True)
        crowd.wait_for(ANSWERS_AFTER)
        assert api.process.poll() is None
    api.kill()
    audit.close()
    tell(record_property, kills=kills, **audit.figures())


def test_sigterm_finishes_what_was_accepted(api, warehouse_settings):
    api.wait_until_ready()
    body = json.dumps({"samples": [sample_body()]}).encode()
    headers = signed_headers("v0", body, method="POST", path="/samples/batch", scheme=2)
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=api.url, trust_env=False, timeout=30) as http,
    ):
        with locked(lock_path(warehouse_settings.log_path), 30):
            answer = pool.submit(http.post, "/samples/batch", content=body, headers=headers)
            # It is under way once a worker has opened the lock that we hold.
            wait_until_another_waits(lock_path(warehouse_settings.log_path), api)
            api.process.terminate()
            time.sleep(0.2)  # the signal is there before the lock is free
        assert answer.result(30).status_code == 200
        (row,) = answer.result().json()
    assert api.process.wait(30) == 0
    log = SqliteKeeper(warehouse_settings)
    assert [seq for votes in log.votes_between(0, log.head()) for seq in votes.seq] == [row["id"]]
    assert log.check() == []
    log.close()


def wait_until_another_waits(path, api):
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not any(
        str(path) == one.path
        for worker in spawned_by(api.process.pid)
        for one in worker.open_files()
    ):
        assert time.monotonic() < deadline, "nobody waits for the lock"
        time.sleep(0.01)
