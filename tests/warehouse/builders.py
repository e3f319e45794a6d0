"""Signed requests and samples with valid defaults; a test names only what it is about."""

import hashlib
import json
import time
from functools import cache

from substrateinterface import Keypair

from warehouse.hotkeys import signed_message
from warehouse.records import Sample, SignedRequest
from warehouse.settings import WarehouseSettings


@cache
def key(name):
    return Keypair.create_from_uri(f"//{name}")


def hotkey(name):
    return key(name).ss58_address


def settings(home, **values):
    return WarehouseSettings(leoma_home=home, **values)


def sample(miner="miner", task=1, **values):
    task_id = task if isinstance(task, int) else None
    defaults = Sample(
        miner_hotkey=hotkey(miner),
        task_id=task_id,
        task_key=str(task),
        sample_id=str(task),
        passed=True,
        confidence=90,
        latency_ms=1200,
        prompt="a cat walks over a bridge",
        s3_bucket="leoma",
        s3_prefix=str(task),
        reasoning="smooth motion",
        original_artifacts=None,
        generated_artifacts=None,
        presentation_order=None,
        evaluation_signature=None,
    )
    return defaults._replace(**values)


def request(signer="validator", body=None, method="POST", path="/samples/batch"):
    """A request signed in scheme 2. Equal bodies give different signatures, as sr25519 does."""
    content = json.dumps({"body": body}).encode()
    timestamp = str(int(time.time()))
    nonce = hashlib.sha256(content + timestamp.encode()).hexdigest()[:32]
    message = signed_message(
        scheme=2, method=method, path=path, body=content, timestamp=timestamp, nonce=nonce
    )
    return SignedRequest(
        hotkey=hotkey(signer),
        signature=key(signer).sign(message),
        scheme=2,
        timestamp=timestamp,
        nonce=nonce,
        method=method,
        path=path,
        body=content,
    )


def append(log, *samples, signer="validator"):
    """Append one submission and wait until it is durable."""
    body = [one._asdict() for one in samples]
    return log.append_samples(request(signer, body), samples, None).result(30)
