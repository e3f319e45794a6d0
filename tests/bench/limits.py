"""What the machine can do without the service: the figures that the service's stand beside."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import sr25519
import zstandard

from tests.bench import history
from warehouse.records import Sample
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import INSERT_SAMPLE, INSERT_SUBMISSION, INSERT_TEXTS, ZSTD_LEVEL
from warehouse.sqlite_reads import HEAD
from warehouse.sqlite_schema import connect

SECONDS = 2.0
# As many batches of 100 as fit the log's largest commit.
BATCHES_A_COMMIT = 30
PROMPT = Sample._fields.index("prompt")


def per_second(act: Callable[[], object]) -> float:
    """Return how often `act` runs in a second."""
    count, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < SECONDS:
        act()
        count += 1
    return count / elapsed


def verifications_per_second() -> float:
    """Return how many sr25519 signatures one core verifies in a second."""
    key = history.keypair("validator")
    message = b"v2\nPOST\n/samples/batch\n" + b"0" * 64
    signature, public = key.sign(message), key.public_key
    return per_second(lambda: sr25519.verify(signature, message, public))


def fsyncs_per_second(directory: Path) -> float:
    """Return how many appended pages the disk makes durable in a second, one after the other."""
    path = directory / "fsync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    page = bytes(8192)

    def append() -> None:
        os.write(descriptor, page)
        os.fdatasync(descriptor)

    try:
        return per_second(append)
    finally:
        os.close(descriptor)
        path.unlink()


def bare_inserts_per_second(warehouse: WarehouseSettings, first_task: int, tasks: int) -> float:
    """Return how many samples one connection inserts in a second: the same rows into the same
    tables, in commits as large as the log's, without HTTP, JSON, signatures, replay or compression.
    Writes past the log's own code: only for a copy that is thrown away.
    """
    rows = [
        history.signed_batch(validator, task_id, 0)
        for task_id in range(first_task, first_task + tasks)
        for validator in range(history.VALIDATORS)
    ]
    packed = [zstandard.compress(request.body, ZSTD_LEVEL) for request, *_ in rows]
    connection = connect(warehouse.log_path, apsw.SQLITE_OPEN_READWRITE)
    (seq,) = next(connection.execute(HEAD))
    begun = time.perf_counter()
    for start in range(0, len(rows), BATCHES_A_COMMIT):
        connection.execute("BEGIN IMMEDIATE")
        for (request, samples, _), body in zip(
            rows[start : start + BATCHES_A_COMMIT],
            packed[start : start + BATCHES_A_COMMIT],
            strict=True,
        ):
            seq += 1
            connection.execute(
                INSERT_SUBMISSION,
                (
                    *(seq, 0, request.hotkey, 2, "0", request.nonce, "POST", request.path),
                    *(request.signature, body, len(samples), None, None),
                ),
            )
            connection.executemany(
                INSERT_SAMPLE,
                [
                    (
                        *(seq + at, seq, 0, request.hotkey, sample.miner_hotkey, sample.task_id),
                        *(sample.task_key, sample.passed, sample.confidence, sample.latency_ms),
                    )
                    for at, sample in enumerate(samples, 1)
                ],
            )
            connection.executemany(
                INSERT_TEXTS,
                [
                    (seq + at, sample.sample_id, *sample[PROMPT:])
                    for at, sample in enumerate(samples, 1)
                ],
            )
            seq += len(samples)
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    connection.close()
    return sum(len(samples) for _, samples, _ in rows) / elapsed
