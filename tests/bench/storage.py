"""Object storage: what a bucket adds to a run, and what an outage of it does to submissions."""

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from substrateinterface import Keypair

from api.uploader import result_key
from cli.processes import Processes, free_port
from tests.bench import history
from tests.bench.frames import framed, write_frames
from tests.bench.report import Figure
from tests.bench.runs import NEW_SAMPLES, grow
from tests.bench.servers import Bench, BenchError, api_arguments, materialisations
from tests.object_storage import KEYS, Faults, ObjectServer
from warehouse.backends import open_outbox
from warehouse.evaluation import evaluation_entry, evaluation_payload
from warehouse.settings import WarehouseSettings

PUBLICATIONS = 7
# All other assets do the same, whatever WAREHOUSE_URL is.
PUBLISHING_ASSETS = ("generation", "bucket_archive")
OUTAGES, WARM_UP_SECONDS = 2, 5
# A second of load: 1,000 samples.
BATCHES, BATCH_SAMPLES, SINGLES = 90, 10, 100
REQUESTS_PER_SECOND = BATCHES + SINGLES
TASK_SECONDS, TASKS_AT_ONCE = 2, 3
CONNECTIONS = 64
DRAINED_SECONDS_MAX = 240.0
CLAIMS = 1_000
# Everything runs on the same cores. Where the S3 server took its share from the API, storage that
# is up would be what slows submissions down.
SERVER_NICE = 10


def storage(server: ObjectServer, url: str, bucket: str) -> dict[str, str]:
    """Return the settings of processes that use a bucket as warehouse and for results."""
    key_id, secret, _ = KEYS["writer"]
    return {
        "S3_ENDPOINT_URL": url,
        "S3_SAMPLES_BUCKET": bucket,
        "WAREHOUSE_URL": f"s3://{server.make_bucket()}/bench",
        "S3_READ_ACCESS_KEY_ID": key_id,
        "S3_READ_SECRET_ACCESS_KEY": secret,
        "S3_WRITE_ACCESS_KEY_ID": key_id,
        "S3_WRITE_SECRET_ACCESS_KEY": secret,
    }


@contextmanager
def running_server(scratch: Path) -> Iterator[ObjectServer]:
    """Run an empty S3 server; nothing of it is left."""
    directory = scratch / "storage"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        with ObjectServer(directory) as server:
            yield server
    finally:
        shutil.rmtree(directory)


def publishing(environment: Mapping[str, str], scratch: Path) -> list[Figure]:
    """Measure runs on one log with the warehouse in a directory and in a bucket, in turn.

    Each is a process of its own, as Dagster has it: making an S3 client counts.
    """
    home, other = Path(environment["LEOMA_HOME"]), scratch / "bucket-home"
    materialisations(environment, "all", 1)
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(home / "warehouse", other / "warehouse", symlinks=True)
    settings = WarehouseSettings(leoma_home=home)
    with running_server(scratch) as server:
        in_bucket = {
            **environment,
            **storage(server, server.url, server.make_bucket()),
            "LEOMA_HOME": str(other),
            "LOG_URL": f"sqlite:///{settings.log_path}",
        }
        first = _publishing_seconds(in_bucket)
        size = sum(path.stat().st_size for path in (other / "warehouse").rglob("*.parquet"))
        seconds: dict[str, list[float]] = {"directory": [], "bucket": []}
        places = [("directory", environment), ("bucket", in_bucket)]
        for _ in range(PUBLICATIONS):
            grow(settings)
            for name, given in places:
                seconds[name].append(_publishing_seconds(given))
            # What the first leaves in caches must not always help the same one.
            places.reverse()
    shutil.rmtree(other)
    added = [
        bucket - directory
        for bucket, directory in zip(seconds["bucket"], seconds["directory"], strict=True)
    ]
    medians = [f"{name} {statistics.median(values):.2f} s" for name, values in seconds.items()]
    return [
        Figure(
            "What a bucket adds to a run",
            added,
            "s",
            is_rate=False,
            target=1,
            note=f"after {NEW_SAMPLES:,} new samples; publishing: {', '.join(medians)}",
        ),
        Figure(
            "First publication to a bucket",
            [first],
            "s",
            is_rate=False,
            note=f"{size / 2**20:,.0f} MB of archive",
        ),
    ]


def _publishing_seconds(environment: Mapping[str, str]) -> float:
    (run,) = materialisations(environment, "again", 1)
    return sum(run["step_seconds"][name] for name in PUBLISHING_ASSETS)


class Said(NamedTuple):
    """A signed request ready to be sent, and the object that it gives if it is the newest."""

    key: str
    content: bytes
    request: bytes


class Played(NamedTuple):
    """What came of a load: the 99th percentile of latencies, and failed requests."""

    p99_ms: float
    failures: int


def said(chance: random.Random, number: int, size: int, task_id: int) -> Said:
    """Return a validator's verdicts on some miners, signed: a single sample or a batch."""
    validator = chance.randrange(history.VALIDATORS)
    key = history.keypair("validator", validator)
    start = chance.randrange(history.MINERS // BATCH_SAMPLES) * BATCH_SAMPLES
    # The number tells versions apart that are about the same miners.
    samples = [
        {**one, "latency_ms": number} for one in _batch(validator, task_id)[start : start + size]
    ]
    entries = [evaluation_entry(one) for one in samples]
    signature = key.sign(evaluation_payload(entries)).hex()
    if size == 1:
        path, document = "/samples", {**samples[0], "evaluation_signature": signature}
    else:
        path, document = "/samples/batch", {"signature": signature, "samples": samples}
    body = json.dumps(document).encode()
    signed = history.signed(key, "POST", path, body, int(time.time()))
    request = framed("POST", path, history.headers(signed), body)
    content = json.dumps({"signature": signature, "data": entries}).encode()
    return Said(result_key(task_id, key.ss58_address), content, request)


@lru_cache(maxsize=history.VALIDATORS * (TASKS_AT_ONCE + 1))
def _batch(validator: int, task_id: int) -> list[dict[str, Any]]:
    return history.judgements(validator, task_id)


def all_said(first_task: int, seconds: int) -> list[Said]:
    """Return what validators say in so many seconds: a few tasks at a time, each many times."""
    chance = random.Random(first_task)
    found = []
    for second in range(seconds):
        sizes = [BATCH_SAMPLES] * BATCHES + [1] * SINGLES
        chance.shuffle(sizes)
        for size in sizes:
            task_id = first_task + second // TASK_SECONDS + chance.randrange(TASKS_AT_ONCE)
            found.append(said(chance, len(found), size, task_id))
    return found


class Outage:
    """A server under load, storage that comes and goes, and the objects that must be there."""

    def __init__(
        self, settings: WarehouseSettings, faults: Faults, scratch: Path, first_task: int
    ) -> None:
        self._settings = settings
        self._faults = faults
        self._scratch = scratch
        self._next_task = first_task
        self._port = free_port(0)
        # By key: the id of the newest submission's first sample, and its object.
        self._newest: dict[str, tuple[int, bytes]] = {}

    @contextmanager
    def serving(self, logs: Path, environment: Mapping[str, str], *flags: str) -> Iterator[None]:
        """Run `leoma serve` with two workers that have answered before."""
        with Processes(logs, environment, 20) as processes:
            arguments = [*api_arguments(self._port, 2), *flags]
            Bench(processes, self._scratch).serve(arguments, self._port, "/health/ready")
            self.play(WARM_UP_SECONDS, "pass")
            yield

    def play(self, seconds: int, *modes: str) -> Played:
        """Send `seconds` of load about new tasks, an equal part of it in each mode of storage."""
        load = all_said(self._next_task, seconds)
        self._next_task += seconds // TASK_SECONDS + TASKS_AT_ONCE
        requests = self._scratch / "paced-requests"
        write_frames(requests, [one.request for one in load])
        plan = {
            "port": self._port,
            "connections": CONNECTIONS,
            "begin_unix": time.time() + 4.0,  # by then it has read its requests
            "per_second": REQUESTS_PER_SECOND,
            "requests": str(requests),
        }
        path = self._scratch / "paced.json"
        path.write_text(json.dumps(plan))
        command = [sys.executable, "-m", "tests.bench.paced", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as loader:
            for part, mode in enumerate(modes):
                begin = plan["begin_unix"] + part * seconds / len(modes)
                time.sleep(max(0.0, begin - time.time()))
                self._faults.mode = mode
            result = json.loads(loader.communicate()[0] or "{}")
        requests.unlink()
        if not result:
            raise BenchError("the load failed")
        for one, first_id in zip(load, result["first_ids"], strict=True):
            if first_id is not None and first_id > self._newest.get(one.key, (0, b""))[0]:
                self._newest[one.key] = first_id, one.content
        ordered = sorted(result["latencies_ms"])
        failures = result["first_ids"].count(None)
        if failures:
            sys.stderr.write(f"{failures} POSTs failed, the first: {result['first_failure']}\n")
        return Played(ordered[len(ordered) * 99 // 100], failures)

    def drained_seconds(self) -> float:
        """Have storage back; return how long it takes until nothing waits."""
        self._faults.mode = "pass"
        begun = time.monotonic()
        outbox = open_outbox(self._settings)
        try:
            while (status := outbox.status()).depth:
                if time.monotonic() - begun > DRAINED_SECONDS_MAX:
                    raise BenchError(f"the outbox is not empty: {status}")
                time.sleep(0.05)
        finally:
            outbox.close()
        return time.monotonic() - begun

    def bad_objects(self, server: ObjectServer) -> tuple[int, int]:
        """Return how many objects must be there, and how many are not as they must be."""
        client = server.client()
        bucket = self._settings.s3_samples_bucket
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        there = {one["Key"] for page in pages for one in page.get("Contents", ())}
        bad = there ^ self._newest.keys()
        for key in there & self._newest.keys():
            content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            if content != self._newest[key][1] or not is_signed(key, content):
                bad.add(key)
        client.close()
        return len(self._newest), len(bad)


def is_signed(key: str, content: bytes) -> bool:
    """Say whether an object verifies with the hotkey in its name, as anybody would look."""
    document = json.loads(content)
    digest = hashlib.sha256(json.dumps(document["data"], sort_keys=True).encode()).digest()
    validator = Keypair(ss58_address=key.rpartition("/")[2].removesuffix(".json"))
    return bool(validator.verify(digest, "0x" + document["signature"]))


def outages(
    logs: Path, environment: Mapping[str, str], scratch: Path, first_task: int, seconds: int
) -> list[Figure]:
    """Measure two workers and a courier under 1,000 samples/s, with storage up and then down.

    Storage that is up takes its share of the machine, so the same load is also put on workers
    without a courier.
    """
    alone, up, down, drains = [], [], [], []
    with running_server(scratch) as server, Faults(server.port) as faults:
        be_nice(server)
        given = {**environment, **storage(server, faults.url, server.make_bucket())}
        materialisations(given, "again", 1)
        settings = WarehouseSettings(
            leoma_home=Path(given["LEOMA_HOME"]), s3_samples_bucket=given["S3_SAMPLES_BUCKET"]
        )
        forget_results(settings)
        outage = Outage(settings, faults, scratch, first_task)
        for _ in range(OUTAGES):
            with outage.serving(logs, given, "--no-courier"):
                alone.append(outage.play(seconds, "pass"))
            with outage.serving(logs, given):
                outage.drained_seconds()
                up.append(outage.play(seconds, "pass"))
                outage.drained_seconds()
                down.append(outage.play(seconds, "refuse", "stall"))
                drains.append(outage.drained_seconds())
        objects, bad = outage.bad_objects(server)
    played = [*alone, *up, *down]
    failures, requests = sum(one.failures for one in played), len(played) * seconds
    return [
        _milliseconds("POST p99, no courier", alone),
        _milliseconds("POST p99, storage up", up),
        _milliseconds("POST p99, storage down", down),
        _ratio("POST p99, down to up", down, up, target=1.3),
        _ratio("POST p99, down to no courier", down, alone),
        _count("POSTs that failed", failures, requests * REQUESTS_PER_SECOND),
        _count("Results missing, wrong or unsigned", bad, objects),
        Figure("Outbox empty after an outage", drains, "s", is_rate=False, note=f"of {seconds} s"),
    ]


def _milliseconds(name: str, played: list[Played]) -> Figure:
    return Figure(name, [one.p99_ms for one in played], "ms", is_rate=False)


def _ratio(
    name: str, played: list[Played], others: list[Played], target: float | None = None
) -> Figure:
    ratios = [one.p99_ms / other.p99_ms for one, other in zip(played, others, strict=True)]
    return Figure(name, ratios, "", is_rate=False, target=target)


def _count(name: str, count: int, of: int) -> Figure:
    return Figure(name, [count], "", is_rate=False, target=0, note=f"of {of:,}")


def be_nice(server: ObjectServer) -> None:
    """Have the S3 server give way to everything else on the machine."""
    for thread in Path(f"/proc/{server._process.pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), SERVER_NICE)


def forget_results(settings: WarehouseSettings) -> None:
    """Empty the outbox: the history's results are no part of this."""
    outbox = open_outbox(settings)
    try:
        while claims := outbox.claim(CLAIMS):
            outbox.done(claims)
    finally:
        outbox.close()
