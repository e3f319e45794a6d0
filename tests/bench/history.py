"""The history that is measured on: validators, miners, tasks, and samples of realistic length.

It goes through the log's own code, signed, into a directory that later runs copy instead of making
it anew. Everything follows from the numbers in `Shape`.
"""

import hashlib
import json
import random
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
from substrateinterface import Keypair

from warehouse.evaluation import evaluation_entry, evaluation_payload
from warehouse.hotkeys import signed_message
from warehouse.records import Appended, Evaluation, Sample, SignedRequest
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_schema import schema_statements

VALIDATORS, MINERS = 20, 256
# Samples of a submission; the last one about a task has what remains.
BATCH = 100
# Submissions on their way to the disk at a time; a few groups, so that the writer never waits.
IN_FLIGHT = 80
TEXT_POOL_BYTES = 2**20
# Announced so that whatever is measured may be about new tasks.
LATEST_TASK = 10**9
WORDS = (
    "camera dolly harbour dawn gull boat light amber cobblestone child kite pier roof bay train "
    "viaduct motion smooth finger shadow sun reflection texture plank frame consistent identity "
    "prompt adherence flicker artifact sharp blurred morph hand face background parallax zoom "
    "overall better worse than original because while before after slightly clearly not never"
)


@dataclass(frozen=True)
class Shape:
    """How large a history is: `tasks` tasks, each judged by all validators for all miners."""

    tasks: int

    @classmethod
    def of(cls, samples: int) -> "Shape":
        return cls(max(1, samples // (VALIDATORS * MINERS)))

    @property
    def samples(self) -> int:
        return self.tasks * VALIDATORS * MINERS


@cache
def keypair(kind: str, number: int = 0) -> Keypair:
    return Keypair.create_from_uri(f"//Leoma//bench//{kind}//{number}")


@cache
def hotkey(kind: str, number: int = 0) -> str:
    return str(keypair(kind, number).ss58_address)


def metagraph() -> dict[str, Any]:
    """Return the subnet as a metagraph file."""
    return {
        "netuid": 99,
        "block": 4_500_000,
        "validators": [
            {"uid": uid, "hotkey": hotkey("validator", uid), "stake": 5000 + 20_000 * uid}
            for uid in range(VALIDATORS)
        ],
        "miners": [
            {
                "uid": VALIDATORS + number,
                "hotkey": hotkey("miner", number),
                "block": 4_400_000 + number,
                "is_valid": True,
                "invalid_reason": None,
            }
            for number in range(MINERS)
        ],
    }


@cache
def _pool() -> str:
    chance = random.Random("texts")
    return " ".join(chance.choices(WORDS.split(), k=TEXT_POOL_BYTES // 6))


def judgements(validator: int, task_id: int) -> list[dict[str, Any]]:
    """Return what one validator says about all miners on one task: about 2 kB of text each."""
    chance = random.Random(f"{validator}/{task_id}")
    pool, pool_bytes = _pool(), len(_pool()) - 4096

    def text(characters: int) -> str:
        start = chance.randrange(pool_bytes)
        return pool[start : start + characters]

    prompt_at = random.Random(task_id).randrange(pool_bytes)
    return [
        {
            "task_id": task_id,
            "miner_hotkey": hotkey("miner", miner),
            "prompt": pool[prompt_at : prompt_at + 380],
            "s3_bucket": "leoma-samples",
            "s3_prefix": str(task_id),
            # From 0.2 to 0.8: some miners clearly better than others.
            "passed": chance.random() < 0.2 + 0.6 * miner / MINERS,
            "confidence": chance.randrange(101),
            "reasoning": text(900),
            "latency_ms": chance.randrange(9_000, 48_000),
            "original_artifacts": text(260),
            "generated_artifacts": f'{{"overall_score": 71, "notes": "{text(320)}"}}',
            "presentation_order": "original,generated",
        }
        for miner in range(MINERS)
    ]


def batches(validator: int, task_id: int) -> list[list[dict[str, Any]]]:
    """Return the same in the parts that are sent."""
    said = judgements(validator, task_id)
    return [said[start : start + BATCH] for start in range(0, MINERS, BATCH)]


def signed_batches(
    validator: int, task_id: int, now_unix: int
) -> Iterator[tuple[SignedRequest, list[Sample], Evaluation]]:
    """Yield these batches as the API hands them to the log, their signatures real."""
    for entries in batches(validator, task_id):
        yield submitted(validator, entries, now_unix)


def submitted(
    validator: int, entries: list[dict[str, Any]], now_unix: int
) -> tuple[SignedRequest, list[Sample], Evaluation]:
    """Return one batch as the API hands it to the log, its signatures real."""
    key = keypair("validator", validator)
    digest = evaluation_payload([evaluation_entry(entry) for entry in entries])
    judged = Evaluation(key.sign(digest).hex(), is_verified=True)
    body = json.dumps({"signature": judged.signature, "samples": entries}).encode()
    request = signed(key, "POST", "/samples/batch", body, now_unix)
    return request, [_sample(entry) for entry in entries], judged


def headers(request: SignedRequest) -> dict[str, str]:
    """Return the headers with which a request is sent."""
    return {
        "X-Validator-Hotkey": request.hotkey,
        "X-Signature": request.signature.hex(),
        "X-Timestamp": request.timestamp,
        "X-Signature-Version": "2",
        "X-Nonce": request.nonce or "",
    }


def signed(key: Keypair, method: str, path: str, body: bytes, now_unix: int) -> SignedRequest:
    """Return a request as somebody signs it."""
    timestamp, nonce = str(now_unix), random.randbytes(16).hex()
    message = signed_message(
        scheme=2, method=method, path=path, body=body, timestamp=timestamp, nonce=nonce
    )
    signature = key.sign(message)
    return SignedRequest(key.ss58_address, signature, 2, timestamp, nonce, method, path, body)


def _sample(entry: dict[str, Any]) -> Sample:
    key = str(entry["task_id"])
    return Sample(task_key=key, sample_id=key, evaluation_signature=None, **entry)


def announce(log: SqliteLog, task_id: int, now_unix: int) -> None:
    """Announce a task as the admin."""
    body = json.dumps({"task_id": task_id}).encode()
    request = signed(keypair("admin"), "POST", "/tasks", body, now_unix)
    log.announce_task(request, task_id).result(60)


def append_tasks(log: SqliteLog, tasks: range, now_unix: int) -> Iterator[int]:
    """Append all batches of these tasks; yield after each how many samples it had."""
    waiting: deque[Future[Appended]] = deque()
    for task_id in tasks:
        for validator in range(VALIDATORS):
            for request, samples, judged in signed_batches(validator, task_id, now_unix):
                waiting.append(log.append_samples(request, samples, judged))
                if len(waiting) > IN_FLIGHT:
                    waiting.popleft().result(60)
                yield len(samples)
    for future in waiting:
        future.result(60)


def append_old_miner(log: SqliteLog, tasks: range, now_unix: int) -> str:
    """Append what one validator said about one miner in each of these tasks; return its hotkey.

    The tasks have been announced.
    """
    miner = hotkey("old miner")
    said = judgements(0, 1)
    for start in tasks[::BATCH]:
        entries = [
            {**entry, "task_id": task_id, "s3_prefix": str(task_id), "miner_hotkey": miner}
            for entry, task_id in zip(
                said, range(start, min(start + BATCH, tasks.stop)), strict=False
            )
        ]
        log.append_samples(*submitted(0, entries, now_unix)).result(60)
    return miner


def made_history(root: Path, shape: Shape, now_unix: int) -> Path:
    """Return the home of a finished history under `root`, made now if it is not there."""
    # A log of another schema cannot be read any more.
    schema = hashlib.sha256(schema_statements().encode()).hexdigest()[:8]
    home = root / f"history-{shape.samples}-of-{MINERS}-{schema}"
    finished = home / "finished"
    if finished.exists():
        return home
    shutil.rmtree(home, ignore_errors=True)
    log = SqliteLog(
        WarehouseSettings(leoma_home=home, log_queue_bytes_max=256 * 2**20)
    )  # fmt: skip
    label = f"Making a history of {shape.samples:,} samples"
    try:
        announce(log, shape.tasks, now_unix)
        with click.progressbar(length=shape.samples, label=label) as bar:
            for count in append_tasks(log, range(1, shape.tasks + 1), now_unix):
                bar.update(count)
    finally:
        log.close()
    (home / "metagraph.json").write_text(json.dumps(metagraph()))
    finished.touch()
    return home


def working_copy(history: Path, root: Path) -> Path:
    """Copy a history, so that measuring does not change it."""
    home = root / "home"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(history, home)
    return home
