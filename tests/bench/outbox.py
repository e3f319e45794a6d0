"""Object storage: how fast one courier uploads what waits, beside bare boto3 on the same server."""

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from api.uploader import result_content, result_key
from cli.processes import Child, Processes
from tests.bench import history, report
from tests.bench.report import Figure
from tests.bench.servers import BenchError
from tests.object_storage import KEYS, ObjectServer
from warehouse.backends import open_outbox, open_read_log
from warehouse.log import Outbox
from warehouse.settings import WarehouseSettings

OBJECTS = 2_000
SECONDS_MAX = 240.0


def draining(logs: Path, environment: Mapping[str, str], scratch: Path) -> Figure:
    """Measure one `leoma courier` on the evaluation results of the history."""
    directory = scratch / "objects"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with ObjectServer(directory) as server:
        settings = server.settings(
            Path(environment["LEOMA_HOME"]), s3_samples_bucket=server.make_bucket()
        )
        bodies = _bodies(settings)
        key_id, secret, _ = KEYS["writer"]
        given = {
            **environment,
            "S3_ENDPOINT_URL": server.url,
            "S3_SAMPLES_BUCKET": settings.s3_samples_bucket,
            "S3_WRITE_ACCESS_KEY_ID": key_id,
            "S3_WRITE_SECRET_ACCESS_KEY": secret,
        }
        bare = _bare_puts_per_second(server, settings, bodies)
        with Processes(logs, given, 20) as processes:
            child = processes.start("courier", ["-m", "cli.main", "courier"])
            rate, cpu_seconds = _drained_per_second(settings, child)
    shutil.rmtree(directory)
    kilobytes = sum(map(len, bodies)) / len(bodies) / 1000
    return Figure(
        "Evaluation results uploaded",
        [rate],
        "objects/s",
        target=200,
        limit=bare,
        limit_name=f"boto3 in {settings.outbox_concurrency_max} threads ({report.number(bare)}/s)",
        note=f"{kilobytes:.0f} kB each, {cpu_seconds * 1000:.1f} ms CPU each",
    )


def _bodies(settings: WarehouseSettings) -> list[bytes]:
    """Return a few results as they are uploaded."""
    log = open_read_log(settings)
    try:
        first = log.oldest_waiting_submission() or 0
        # A record for each submission, and one for each of its samples.
        records = sum(1 + len(batch) for batch in history.batches(0, 1))
        found = [log.submitted(first + number * records) for number in range(20)]
    finally:
        log.close()
    return [result_content(one, one.samples[0].task_id or 0) for one in found if one is not None]


def _bare_puts_per_second(
    server: ObjectServer, settings: WarehouseSettings, bodies: list[bytes]
) -> float:
    client = server.client("writer")
    hotkey = history.hotkey("bare")

    def put(number: int) -> None:
        client.put_object(
            Bucket=settings.s3_samples_bucket,
            Key=result_key(number, hotkey),
            Body=bodies[number % len(bodies)],
            ContentType="application/json",
        )

    with ThreadPoolExecutor(settings.outbox_concurrency_max) as pool:
        list(pool.map(put, range(100)))
        begun = time.perf_counter()
        list(pool.map(put, range(100, 100 + OBJECTS)))
        rate = OBJECTS / (time.perf_counter() - begun)
    client.close()
    return rate


def _drained_per_second(settings: WarehouseSettings, child: Child) -> tuple[float, float]:
    """Return objects a second and CPU seconds an object, from the first that is gone on."""
    outbox = open_outbox(settings)
    process = psutil.Process(child.process.pid)
    try:
        begun_depth = _depth_below(outbox, outbox.status().depth)
        begun, begun_cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        depth = _depth_below(outbox, max(1, begun_depth - OBJECTS + 1))
        elapsed = time.perf_counter() - begun
        cpu_seconds = sum(process.cpu_times()[:2]) - begun_cpu
    finally:
        outbox.close()
    return (begun_depth - depth) / elapsed, cpu_seconds / (begun_depth - depth)


def _depth_below(outbox: Outbox, limit: int) -> int:
    deadline = time.monotonic() + SECONDS_MAX
    while (depth := outbox.status().depth) >= limit:
        if time.monotonic() > deadline:
            raise BenchError(f"the courier is not done: {outbox.status()}")
        time.sleep(0.02)
    return depth
