"""Short forms for tests about storage: miners and signers by name, tasks by number or legacy id."""

import json

from tests.builders import hotkey, signed_request
from tests.builders import sample as sample_of
from warehouse.settings import WarehouseSettings

__all__ = ["append", "batch", "hotkey", "request", "sample", "settings"]


def settings(home, **values):
    return WarehouseSettings(leoma_home=home, **values)


def sample(miner="miner", task=1, **values):
    task_id = task if isinstance(task, int) else None
    key = str(task)
    ids = {"task_id": task_id, "task_key": key, "sample_id": key}
    return sample_of(miner_hotkey=hotkey(miner), **ids, **values)


def request(signer="validator", body=None, path="/samples/batch"):
    """A signed write. Equal bodies give different signatures, as sr25519 does."""
    return signed_request(signer, json.dumps(body).encode(), path=path)


def append(log, *samples, signer="validator"):
    """Append one submission and wait until it is durable."""
    return log.append_samples(request(signer, batch(*samples)), samples, None).result(30)


def batch(*samples):
    """The body that says what these samples are."""
    return {
        "samples": [
            {
                name: value
                for name, value in one._asdict().items()
                if value is not None and name != "task_key"
            }
            for one in samples
        ]
    }
