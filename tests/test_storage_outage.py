"""Object storage goes away under the whole service: no submission notices, every result arrives."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.builders import hotkey, keypair, publish, sample_body, signed_headers, wait_for
from tests.leoma_serve import LeomaServe
from tests.object_storage import KEYS, Faults
from warehouse.backends import open_outbox

VALIDATORS = ("v0", "v1", "v2", "v3")
MINERS = ("m0", "m1", "m2")
TASKS = range(1, 6)
SECONDS_MAX = 60


@pytest.fixture
def faults(object_server):
    with Faults(object_server.port) as proxy:
        yield proxy


@pytest.fixture
def api(warehouse_settings, object_server, bucket, faults):
    """Two workers and a courier, with storage behind the proxy: videos and warehouse."""
    publish(warehouse_settings, validators=[{"hotkey": hotkey(name)} for name in VALIDATORS])
    key_id, secret, _ = KEYS["writer"]
    serving = LeomaServe(
        warehouse_settings.leoma_home,
        S3_ENDPOINT_URL=faults.url,
        S3_SAMPLES_BUCKET=bucket,
        WAREHOUSE_URL=f"s3://{object_server.make_bucket()}/main",
        S3_READ_ACCESS_KEY_ID=key_id,
        S3_READ_SECRET_ACCESS_KEY=secret,
        S3_WRITE_ACCESS_KEY_ID=key_id,
        S3_WRITE_SECRET_ACCESS_KEY=secret,
        S3_TIMEOUT_SECONDS="1",
        OUTBOX_POLL_SECONDS="0.05",
        OUTBOX_RETRY_SECONDS_MAX="0.2",
        OUTBOX_PROBE_SECONDS_MAX="0.2",
    )
    serving.start()
    try:
        serving.wait_until_ready()
        yield serving
    finally:
        serving.kill()


@pytest.fixture
def outbox(warehouse_settings):
    opened = open_outbox(warehouse_settings)
    yield opened
    opened.close()


def entry(miner, version):
    """What an object says about a miner."""
    return {
        "hotkey": hotkey(miner),
        "passed": True,
        "status": "passed",
        "confidence": 80,
        "reasoning": "The kite moves as in the clip.",
        "latency_ms": version,
        "original_artifacts": None,
        "generated_artifacts": None,
        "presentation_order": None,
    }


def posted(url, validator, version):
    """Submit a validator's verdicts on all tasks; return the objects that they give."""
    objects = {}
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        for task in TASKS:
            data = [entry(miner, version) for miner in MINERS]
            digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()
            signature = keypair(validator).sign(digest).hex()
            samples = [
                sample_body(task_id=task, miner_hotkey=hotkey(miner), latency_ms=version)
                for miner in MINERS
            ]
            body = json.dumps({"signature": signature, "samples": samples}).encode()
            headers = signed_headers(
                validator, body, method="POST", path="/samples/batch", scheme=2
            )
            answer = http.post("/samples/batch", content=body, headers=headers)
            assert answer.status_code == 200, answer.text
            key = f"{task}/evaluation_results/{hotkey(validator)}.json"
            objects[key] = json.dumps({"signature": signature, "data": data}).encode()
    return objects


def all_posted(url, version):
    with ThreadPoolExecutor(len(VALIDATORS)) as pool:
        said = pool.map(lambda validator: posted(url, validator, version), VALIDATORS)
        return {key: content for objects in said for key, content in objects.items()}


def stored(object_server, bucket):
    client = object_server.client()
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
    found = {
        one["Key"]: client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
        for one in listed
    }
    client.close()
    return found


def is_signed(key, content):
    """As anybody looks who has an object and its name."""
    document = json.loads(content)
    digest = hashlib.sha256(json.dumps(document["data"], sort_keys=True).encode()).digest()
    validator = next(name for name in VALIDATORS if hotkey(name) in key)
    return keypair(validator).verify(digest, "0x" + document["signature"])


def test_an_outage_of_storage_fails_no_submission_and_loses_no_result(
    api, faults, outbox, object_server, bucket
):
    first = all_posted(api.url, 1)
    wait_for(lambda: outbox.status().depth == 0)
    assert stored(object_server, bucket) == first
    for version, mode in enumerate(("refuse", "stall"), 2):
        faults.mode = mode
        tried = faults.connections
        newest = all_posted(api.url, version)
        wait_for(lambda: faults.connections > tried)  # noqa: B023
        # Nothing gets through, and each object waits once, however often it was replaced.
        assert outbox.status().depth == len(newest) == len(VALIDATORS) * len(TASKS)
        assert stored(object_server, bucket) == first
    faults.mode = "pass"
    wait_for(lambda: outbox.status().depth == 0)
    found = stored(object_server, bucket)
    assert found == newest
    assert all(is_signed(key, content) for key, content in found.items())
