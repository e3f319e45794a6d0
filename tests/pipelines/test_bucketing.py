"""Whole runs with a bucket as the warehouse, on a real S3 server."""

import json

import pytest

from pipelines.run import MaterializationError, keep
from tests.object_storage import Faults
from tests.pipelines.test_assets import Subnet
from warehouse.bucket import Pointer, follow, read_pointer
from warehouse.generation import Generations, open_generation
from warehouse.objects import ObjectStore


@pytest.fixture
def subnet(tmp_path, object_server, bucket):
    made = Subnet(
        tmp_path,
        object_server.settings(tmp_path / "data", warehouse_url=f"s3://{bucket}/leoma"),
    )
    yield made
    made.log.close()


@pytest.fixture
def store(subnet):
    return ObjectStore(subnet.warehouse, *subnet.warehouse.warehouse_bucket)


def pointed(store):
    return Pointer.from_json(read_pointer(store).content)


def test_a_run_is_published_whole_with_its_evidence(subnet, store, object_server, tmp_path):
    subnet.vote_all("old", 3)
    published = subnet.run()
    pointer = pointed(store)
    assert pointer.snapshot_id == published.snapshot_id
    assert pointer.watermark == subnet.log.head()
    manifest = json.loads(store.get(pointer.manifest.key).content)
    # Not only votes: texts and the signed submissions of this very run.
    for name in ("watermark", "texts_watermark", "submissions_watermark"):
        assert manifest[name] == subnet.log.head(), name
    name = pointer.chain["snapshot"]
    assert (
        store.get(f"snapshots/{name}").content
        == (subnet.warehouse.warehouse_path / "snapshots" / name).read_bytes()
    )
    elsewhere = object_server.settings(
        tmp_path / "elsewhere", warehouse_url=subnet.warehouse.warehouse_url
    )
    follow(store, Generations(elsewhere))
    with open_generation(Generations(elsewhere).current()) as connection:
        winners = connection.execute("SELECT winner_hotkey, burn_reason FROM generation").fetchall()
    assert winners == subnet.ask("SELECT winner_hotkey, burn_reason FROM generation")


def test_the_nightly_work_keeps_the_bucket_too(subnet, store):
    for passed in (1, 2, 3):
        subnet.vote_all("old", passed)
        subnet.run()
    subnet.warehouse = subnet.warehouse.model_copy(
        update={"generations_kept": 2, "generations_hourly_days": 0}
    )
    # Merged files get new names, so that the pointer has to follow.
    before = pointed(store)
    keep(subnet.settings, subnet.warehouse)
    after = pointed(store)
    assert after.snapshot_id == before.snapshot_id
    manifest = json.loads(store.get(after.manifest.key).content)
    assert len(manifest["submissions"]) == len(manifest["texts"]) == 1
    kept = [one.key for one in store.listed("generations/") if one.key.endswith(".duckdb")]
    assert len(kept) == 2
    assert after.generation.key in kept


def test_a_run_without_its_bucket_publishes_nothing_and_the_next_one_does(
    subnet, store, object_server
):
    subnet.vote_all("old", 3)
    first = subnet.run()
    subnet.vote_all("young", 4)
    whole = subnet.warehouse
    with Faults(object_server.port) as faults:
        faults.mode = "unavailable"
        subnet.warehouse = whole.model_copy(
            update={"s3_endpoint_url": faults.url, "s3_attempts_max": 1}
        )
        with pytest.raises(MaterializationError, match="SlowDown"):
            subnet.run()
    assert Generations(whole).current().snapshot_id == first.snapshot_id
    subnet.warehouse = whole
    second = subnet.run()
    assert pointed(store).snapshot_id == second.snapshot_id
