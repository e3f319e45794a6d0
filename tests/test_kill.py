"""kill -9 of the whole API in the middle of ingest: what was acknowledged is there, once, whole."""

import itertools
import json
import random
import threading
import time

import httpx

from tests.builders import hotkey, publish, sample_body, signed_headers
from tests.leoma_serve import LeomaServe
from warehouse.sqlite_keeper import SqliteKeeper

KILLS = 20
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

    log = SqliteKeeper(warehouse_settings)
    assert log.check() == []
    stored = {
        row.seq: (row.validator_hotkey, row.task_id, row.miner_hotkey)
        for chunk in log.votes_between(0, log.head())
        for row in chunk
    }
    log.close()
    promised = {
        seq: (hotkey(validator.validator), *sample)
        for validator in validators
        for seq, sample in validator.ledger.items()
    }
    # Every request was acknowledged in the end, so the log holds exactly these and none twice.
    assert stored == promised
    assert len(set(stored.values())) == len(stored) >= (KILLS + 20) * BATCH
