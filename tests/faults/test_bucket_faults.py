"""Every request of a publishing run to its bucket fails in turn, before it is applied or after: the
pointer names a whole publication, and whoever follows it has the old one or the new.

On a real S3 server. A short selection by default; all requests where LEOMA_TORTURE=1.
"""

import contextlib
import hashlib
import itertools
import json
import shutil
import time

import boto3
import pytest

from tests.api.test_uploader import SOON, Courier, is_drained, wait_for
from tests.faults.failing_storage import APPLIED, NOT_APPLIED, FailingStorage
from tests.warehouse.builders import append, sample, settings
from tests.warehouse.test_bucket import Publisher
from warehouse.archive import Manifest
from warehouse.bucket import POINTER, Pointer, follow
from warehouse.export import export_submitted
from warehouse.generation import GenerationError, Generations, open_generation
from warehouse.objects import ObjectStorageError, ObjectStore
from warehouse.publishing import WarehouseBucket
from warehouse.sqlite_log import SqliteLog

FEW = 9  # every so many requests in the short selection
KEPT = {"generations_kept": 2, "generations_hourly_days": 0}
AGED_SECONDS = 7_200


@pytest.fixture
def storage(object_server):
    with FailingStorage(object_server.port) as proxy:
        yield proxy


class Bucket:
    """A warehouse in a bucket, a machine that publishes there, and one that follows."""

    def __init__(self, object_server, storage, directory):
        self.server, self.storage, self.directory = object_server, storage, directory
        self.name, self.client = object_server.make_bucket(), object_server.client()
        self.home, self.base = directory / "home", directory / "base"
        self.before = self._prepare()

    def settings(self, prefix, **values):
        return self.server.settings(
            self.home,
            warehouse_url=f"s3://{self.name}/{prefix}",
            s3_endpoint_url=self.storage.url,
            s3_attempts_max=1,
            s3_concurrency_max=1,
            **values,
        )

    def _prepare(self):
        machine = Publisher(self.settings("base"))
        for task in range(3):
            machine.vote(task)
            before = machine.publish()
        machine.log.close()
        shutil.copytree(self.home, self.base, symlinks=True)
        follower = self.follower("base")
        follow(*follower)
        shutil.copytree(self.directory / "follower", self.directory / "follower-base")
        return before.snapshot_id

    def follower(self, prefix):
        there = self.server.settings(
            self.directory / "follower", warehouse_url=f"s3://{self.name}/{prefix}"
        )
        return ObjectStore(there, *there.warehouse_bucket), Generations(there)

    def reset(self, prefix):
        for name, base in (("home", "base"), ("follower", "follower-base")):
            shutil.rmtree(self.directory / name)
            shutil.copytree(self.directory / base, self.directory / name, symlinks=True)
        for key, content in self.objects("base").items():
            self.client.put_object(Bucket=self.name, Key=f"{prefix}/{key}", Body=content)

    def objects(self, prefix):
        listed = self.client.list_objects_v2(Bucket=self.name, Prefix=f"{prefix}/")
        return {
            one["Key"].removeprefix(f"{prefix}/"): self.client.get_object(
                Bucket=self.name, Key=one["Key"]
            )["Body"].read()
            for one in listed.get("Contents", ())
        }

    def run(self, prefix):
        """Publish a generation, then the archive, then remove what is past its time."""
        machine = Publisher(self.settings(prefix, **KEPT))
        bucket = None
        try:
            machine.vote(9)
            machine.publish()
            head = machine.log.head()
            export_submitted(machine.archive, machine.log, head, 99)
            machine.publish_archive()
            bucket = WarehouseBucket(machine.settings, machine.store(machine.settings))
            bucket.catch_up(machine.generations, 99)
            bucket.retain()
        finally:
            machine.log.close()
            if bucket is not None:
                bucket.close()

    def wrong(self, prefix):
        """Say what is not whole in the bucket, as somebody finds who has only the bucket."""
        objects = self.objects(prefix)
        pointer = Pointer.from_json(objects[POINTER])
        for one in (
            pointer.generation, pointer.archive_files, pointer.manifest, pointer.chain_snapshot
        ):  # fmt: skip
            content = objects.get(one.key, b"")
            if (len(content), hashlib.sha256(content).hexdigest()) != (one.size, one.sha256):
                return f"{one.key} is not what the pointer says"
        manifest = Manifest.from_json(objects[pointer.manifest.key])
        for part in manifest.parts():
            content = objects.get(f"archive/{part.file}", b"")
            if hashlib.sha256(content).hexdigest() != part.sha256:
                return f"{part.file} is not what the manifest says"
        for key in objects:
            if key.startswith("generations/") and key.endswith(".duckdb"):
                names = json.loads(objects[key.replace(".duckdb", ".json")])
                if missing := [n for n in names["votes"] if f"archive/{n}" not in objects]:
                    return f"{key} names {missing}, which is gone"
        return self._wrong_for_readers(prefix, pointer.snapshot_id)

    def _wrong_for_readers(self, prefix, current):
        follow(*self.follower(prefix))
        local = Generations(self.settings(prefix)).current()
        followed = Generations(settings(self.directory / "follower")).current()
        if followed.snapshot_id != current:
            return f"{followed} is followed, {current} is published"
        if local.snapshot_id not in {self.before, current} or self.before > current:
            return f"{local} is current here, {current} is published"
        for one in (local, followed):
            with open_generation(one) as connection:
                connection.execute("SELECT tables_sha256 FROM generation").fetchall()
        return None


@pytest.fixture
def bucket_of_a_run(object_server, storage, tmp_path, monkeypatch):
    # A session reads what S3 is from files, which takes longer than all else here.
    session = boto3.session.Session()
    monkeypatch.setattr("warehouse.objects.boto3.session.Session", lambda: session)
    made = Bucket(object_server, storage, tmp_path)
    # Files that lost their name are old enough to go.
    now = time.time_ns
    monkeypatch.setattr("warehouse.publishing.time.time_ns", lambda: now() + AGED_SECONDS * 10**9)
    yield made
    made.client.close()


def is_of_pointer(line):
    return line.startswith("PUT") and POINTER in line


def requests_of(made):
    made.reset("undisturbed")
    made.storage.plan()
    made.run("undisturbed")
    assert made.wrong("undisturbed") is None
    requests = made.storage.requests
    kinds = {line.split()[0] for line in requests}
    assert kinds == {"GET", "PUT", "POST"}, kinds
    assert sum(map(is_of_pointer, requests)) == 2
    return requests


def wrong_with(made, nth, mode):
    prefix = f"{mode}-{nth}"
    made.reset(prefix)
    made.storage.plan(nth, mode)
    with contextlib.suppress(ObjectStorageError, GenerationError):
        made.run(prefix)
    if made.storage.hit is None:
        return "the fault was never met"
    try:
        if wrong := made.wrong(prefix):
            return f"{made.storage.hit}: {wrong}"
        made.storage.plan()
        made.run(prefix)
        wrong = made.wrong(prefix)
        local = Generations(made.settings(prefix)).current()
        pointer = Pointer.from_json(made.objects(prefix)[POINTER])
        if not wrong and local.snapshot_id != pointer.snapshot_id:
            wrong = f"{local.snapshot_id} is current here, {pointer.snapshot_id} is published"
    except Exception as error:  # noqa: BLE001  (the test tells it)
        wrong = f"{type(error).__name__}: {error}"
    return f"{made.storage.hit}, the next run: {wrong}" if wrong else None


def test_every_request_of_a_publishing_run_may_fail(bucket_of_a_run, is_torture, record_property):
    requests = requests_of(bucket_of_a_run)
    pointers = {number for number, line in enumerate(requests, 1) if is_of_pointer(line)}
    chosen = {*range(1, len(requests) + 1, 1 if is_torture else FEW), *pointers}
    cases = itertools.product(sorted(chosen), (NOT_APPLIED, APPLIED))
    found = [wrong_with(bucket_of_a_run, nth, mode) for nth, mode in cases]
    record_property("faults injected", len(found))
    assert not any(found), "\n".join(filter(None, found))
    assert len(requests) > 20


def test_every_upload_of_a_result_may_fail(object_server, storage, bucket, tmp_path):
    """Alone, before it is applied or after: all are there in the end, and the newest."""
    values = {**SOON, "s3_samples_bucket": bucket, "s3_endpoint_url": storage.url}
    here = object_server.settings(tmp_path / "home", **values, outbox_concurrency_max=1)
    log, client = SqliteLog(here), object_server.client()
    try:
        for nth, mode in itertools.product(range(1, 5), (NOT_APPLIED, APPLIED)):
            storage.plan(nth, mode)
            for task in range(4):
                append(log, sample(task=task, latency_ms=1))
            append(log, sample(task=0, latency_ms=nth))
            with Courier(here):
                wait_for(lambda: is_drained(log))
            found = {}
            for one in client.list_objects_v2(Bucket=bucket)["Contents"]:
                content = client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
                found[one["Key"]] = json.loads(content)["data"][0]["latency_ms"]
            assert [found[key] for key in sorted(found)] == [nth, 1, 1, 1], (nth, mode)
            assert storage.hit
            # One more than there are results.
            assert len(storage.requests) == 5
    finally:
        client.close()
        log.close()
