"""The API, or a worker, is killed in mid-ingest: what was acknowledged is there, once, whole."""

import contextlib
import itertools
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from tests.builders import hotkey, publish, sample_body, signed_headers
from tests.leoma_serve import LeomaServe
from warehouse.files import locked
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_schema import lock_path

KILLS = 20
WORKER_KILLS = 10
VALIDATORS = ("v0", "v1", "v2", "v3")
BATCH = 20
GIVE_UP_SECONDS = 120


class Validator(threading.Thread):
    """Submits batch after batch; resends the same signed bytes until they are acknowledged."""

    def __init__(self, name, url, acknowledged, stop):
        super().__init__()
        self.validator, self.url = name, url
        self.acknowledged, self.stop = acknowledged, stop
        self.ledger = {}

    def run(self):
        with httpx.Client(base_url=self.url, trust_env=False, timeout=10) as http:
            for task in itertools.count(1):
                if self.stop.is_set():
                    return
                samples = [
                    sample_body(task_id=task, miner_hotkey=hotkey(f"m{number}"), latency_ms=task)
                    for number in range(BATCH)
                ]
                body = json.dumps({"samples": samples}).encode()
                headers = signed_headers(
                    self.validator, body, method="POST", path="/samples/batch", scheme=2
                )
                answer = self.insist(http, body, headers)
                assert answer.status_code == 200, answer.text
                self.ledger |= {row["id"]: (task, row["miner_hotkey"]) for row in answer.json()}
                self.acknowledged.release()

    @staticmethod
    def insist(http, body, headers):
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                return http.post("/samples/batch", content=body, headers=headers)
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the API did not come back"
                time.sleep(0.02)


def stored_votes(settings):
    """All that a log holds; that it is whole is looked at as well."""
    log = SqliteKeeper(settings)
    try:
        assert log.check() == []
        return {
            row.seq: (row.validator_hotkey, row.task_id, row.miner_hotkey)
            for chunk in log.votes_between(0, log.head())
            for row in chunk
        }
    finally:
        log.close()


def promised(validators):
    """All that validators were told is stored."""
    return {
        seq: (hotkey(validator.validator), *sample)
        for validator in validators
        for seq, sample in validator.ledger.items()
    }


def test_twenty_kills_lose_nothing_double_nothing_tear_nothing(warehouse_settings):
    publish(warehouse_settings, validators=[{"hotkey": hotkey(name)} for name in VALIDATORS])
    api = LeomaServe(warehouse_settings.leoma_home)
    acknowledged, stop = threading.Semaphore(0), threading.Event()
    validators = [Validator(name, api.url, acknowledged, stop) for name in VALIDATORS]
    moments = random.Random(7)
    api.start()
    try:
        for validator in validators:
            validator.start()
        for _ in range(KILLS):
            # In the middle of ingest: after some acknowledgements of this life, others on the way.
            for _ in range(moments.randrange(1, 25)):
                assert acknowledged.acquire(timeout=GIVE_UP_SECONDS)
            time.sleep(moments.random() / 100)
            api.kill()
            api.start()
        for _ in range(20):
            assert acknowledged.acquire(timeout=GIVE_UP_SECONDS)
    finally:
        stop.set()
        for validator in validators:
            validator.join()
        api.kill()

    stored = stored_votes(warehouse_settings)
    # Every request was acknowledged in the end, so the log holds exactly these and none twice.
    assert stored == promised(validators)
    assert len(set(stored.values())) == len(stored) >= (KILLS + 20) * BATCH


def workers_of(api):
    """The processes that hold the log open: uvicorn's workers."""
    found = []
    for one in psutil.Process(api.process.pid).children(recursive=True):
        # One that was killed just now may not be buried yet.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_one_worker_after_the_other_is_killed_and_the_service_goes_on(warehouse_settings):
    publish(warehouse_settings, validators=[{"hotkey": hotkey(name)} for name in VALIDATORS])
    api = LeomaServe(warehouse_settings.leoma_home)
    acknowledged, stop = threading.Semaphore(0), threading.Event()
    validators = [Validator(name, api.url, acknowledged, stop) for name in VALIDATORS]
    moments = random.Random(11)
    api.start()
    try:
        api.wait_until_ready()
        for validator in validators:
            validator.start()
        for _ in range(WORKER_KILLS):
            for _ in range(moments.randrange(1, 15)):
                assert acknowledged.acquire(timeout=GIVE_UP_SECONDS)
            deadline = time.monotonic() + GIVE_UP_SECONDS
            while not (workers := workers_of(api)):
                assert time.monotonic() < deadline, "no worker came back"
                time.sleep(0.02)
            moments.choice(workers).kill()
        for _ in range(20):
            assert acknowledged.acquire(timeout=GIVE_UP_SECONDS)
        assert api.process.poll() is None
    finally:
        stop.set()
        for validator in validators:
            validator.join()
        api.kill()
    assert stored_votes(warehouse_settings) == promised(validators)


def test_sigterm_finishes_what_was_accepted(warehouse_settings):
    publish(warehouse_settings, validators=[{"hotkey": hotkey("v0")}])
    api = LeomaServe(warehouse_settings.leoma_home)
    api.start()
    try:
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
    finally:
        if api.process.poll() is None:
            api.kill()
    assert list(stored_votes(warehouse_settings)) == [row["id"]]


def wait_until_another_waits(path, api):
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not any(
        str(path) == one.path for worker in workers_of(api) for one in worker.open_files()
    ):
        assert time.monotonic() < deadline, "nobody waits for the lock"
        time.sleep(0.01)
