"""Short forms for tests about storage: miners and signers by name, tasks by number or legacy id."""

import json

from tests.builders import hotkey, signed_request
from tests.builders import sample as sample_of
from warehouse.settings import WarehouseSettings

__all__ = ["append", "hotkey", "request", "sample", "settings"]


def settings(home, **values):
    return WarehouseSettings(leoma_home=home, **values)


def sample(miner="miner", task=1, **values):
    task_id = task if isinstance(task, int) else None
    key = str(task)
    ids = {"task_id": task_id, "task_key": key, "sample_id": key}
    return sample_of(miner_hotkey=hotkey(miner), **ids, **values)


def request(signer="validator", body=None):
    """A signed write. Equal bodies give different signatures, as sr25519 does."""
    return signed_request(signer, json.dumps(body).encode(), path="/samples/batch")


def append(log, *samples, signer="validator"):
    """Append one submission and wait until it is durable."""
    body = [one._asdict() for one in samples]
    return log.append_samples(request(signer, body), samples, None).result(30)
