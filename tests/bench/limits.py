"""What the machine can do without the service: the figures that the service's stand beside."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import duckdb
import sr25519

from tests.bench import history

SECONDS = 2.0
# As many batches of 100 as fit the log's largest commit.
BATCHES_A_COMMIT = 30
SCANS = 5
SCAN = """
    SELECT validator_hotkey, miner_hotkey, count(*), count_if(is_passed), max(received_at_ms)
    FROM read_parquet(?) GROUP BY ALL
"""
BARE_TASKS = 20
BARE_TABLES = """
CREATE TABLE bare (
    seq INTEGER PRIMARY KEY, validator, task_id, miner, prompt, s3_bucket, s3_prefix, passed,
    confidence, reasoning, latency_ms, original_artifacts, generated_artifacts, presentation_order
);
CREATE INDEX bare_version ON bare (task_id, miner, validator);
CREATE INDEX bare_validator ON bare (validator);
CREATE INDEX bare_miner ON bare (miner);
CREATE INDEX bare_task ON bare (task_id);
"""
BARE_INSERT = f"INSERT INTO bare VALUES (NULL{', ?' * 13})"


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


def scan_seconds(home: Path) -> float:
    """Return how long DuckDB takes to count all archived votes by validator and miner."""
    files = str(home / "warehouse" / "archive" / "votes" / "**" / "*.parquet")
    seconds = []
    with duckdb.connect() as connection:
        for _ in range(SCANS):
            begun = time.perf_counter()
            connection.execute(SCAN, [files]).fetchall()
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def bare_inserts_per_second(directory: Path) -> float:
    """Return how many samples one bare connection makes durable in a second.

    Rows as wide as a history's into a table with four indexes, in commits as large as the log's:
    no HTTP, JSON, signatures, triggers or compression. Its tables are its own, so that it is the
    same limit whatever the log's look like.
    """
    path = directory / "bare.sqlite"
    connection = apsw.Connection(str(path))
    connection.pragma("page_size", 8192)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.execute(BARE_TABLES)
    batches = [
        [(validator, *entry.values()) for entry in entries]
        for task_id in range(BARE_TASKS)
        for validator in range(history.VALIDATORS)
        for entries in history.batches(validator, task_id)
    ]
    begun = time.perf_counter()
    for start in range(0, len(batches), BATCHES_A_COMMIT):
        connection.execute("BEGIN IMMEDIATE")
        for batch in batches[start : start + BATCHES_A_COMMIT]:
            connection.executemany(BARE_INSERT, batch)
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    connection.close()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        (directory / name).unlink(missing_ok=True)
    return sum(map(len, batches)) / elapsed
