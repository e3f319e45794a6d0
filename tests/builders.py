"""Valid inputs by default, so that a test names only what it is about.

Keys, signed headers in both schemes, sample bodies, metagraph files, and generations from rows.
"""

import fcntl
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from substrateinterface import Keypair

from warehouse import arrow
from warehouse.generation import Generation, Generations
from warehouse.hotkeys import signed_message
from warehouse.publication import publish as publish_tables
from warehouse.records import Sample, SignedRequest
from warehouse.settings import WarehouseSettings
from warehouse.tables import COMPUTED_TABLES

RAO = 1_000_000_000
NONCE = "0123456789abcdef"
WAIT_SECONDS_MAX = 60


@cache
def keypair(name: str) -> Keypair:
    """Return the sr25519 key of a name: always the same one, and a different one for each name."""
    return Keypair.create_from_uri(f"//{name}")


def hotkey(name: str) -> str:
    """Return the SS58 address of a name's key."""
    return keypair(name).ss58_address


def signed_headers(
    name: str,
    body: bytes = b"",
    *,
    method: str = "GET",
    path: str = "/",
    scheme: int = 1,
    timestamp: str | None = None,
    nonce: str = NONCE,
) -> dict[str, str]:
    """Return the headers with which `name` signs a request. Scheme 1 ignores method and path.

    sr25519 signatures are randomised: signing twice gives two different ones.
    """
    timestamp = timestamp or str(int(time.time()))
    message = signed_message(
        scheme=scheme, method=method, path=path, body=body, timestamp=timestamp, nonce=nonce
    )
    headers = {
        "X-Validator-Hotkey": hotkey(name),
        "X-Signature": keypair(name).sign(message).hex(),
        "X-Timestamp": timestamp,
    }
    if scheme == 2:
        headers |= {"X-Signature-Version": "2", "X-Nonce": nonce}
    return headers


def signed_request(
    name: str, body: bytes = b"{}", *, method: str = "POST", path: str = "/samples"
) -> SignedRequest:
    """Return a verified write as the API hands it to the log."""
    headers = signed_headers(name, body, method=method, path=path, scheme=2)
    return SignedRequest(
        hotkey=headers["X-Validator-Hotkey"],
        signature=bytes.fromhex(headers["X-Signature"]),
        scheme=2,
        timestamp=headers["X-Timestamp"],
        nonce=headers["X-Nonce"],
        method=method,
        path=path,
        body=body,
    )


def sample_body(**changes: Any) -> dict[str, Any]:
    """Return a SampleSubmission; a change to `...` leaves the field out."""
    body = {
        "task_id": 1,
        "miner_hotkey": hotkey("miner"),
        "prompt": "A red kite over a grey sea",
        "s3_bucket": "samples",
        "s3_prefix": "1",
        "passed": True,
        "confidence": 80,
        "reasoning": "The kite moves as in the clip.",
        "latency_ms": 1500,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not ...}


def sample(**changes: Any) -> Sample:
    """Return a sample as the log takes it; `task_key` and `sample_id` follow `task_id`."""
    fields = {
        "miner_hotkey": hotkey("miner"),
        "task_id": 1,
        "passed": True,
        "confidence": 80,
        "latency_ms": 1500,
        "prompt": "A red kite over a grey sea",
        "s3_bucket": "samples",
        "s3_prefix": "1",
        "reasoning": "The kite moves as in the clip.",
        "original_artifacts": None,
        "generated_artifacts": None,
        "presentation_order": None,
        "evaluation_signature": None,
        **changes,
    }
    task_key = str(fields["task_id"])
    return Sample(**{"task_key": task_key, "sample_id": task_key, **fields})


def metagraph(
    validators: Sequence[Mapping[str, Any]] = (),
    miners: Sequence[Mapping[str, Any]] = (),
    *,
    netuid: int = 99,
    block: int = 4_500_000,
) -> dict[str, Any]:
    """Return the document of a metagraph file. Rows need no more than a `hotkey`."""
    return {
        "netuid": netuid,
        "block": block,
        "validators": [
            {"uid": uid, "stake": 10_000.0, **validator} for uid, validator in enumerate(validators)
        ],
        "miners": [
            {
                "uid": 100 + position,
                "block": 4_400_000 + position,
                "is_valid": True,
                "invalid_reason": None,
                "model_name": f"someone/leoma-{miner['hotkey']}",
                "model_revision": "0" * 40,
                "model_hash": f"{position:064x}",
                "chute_id": f"chute-{position}",
                "chute_slug": f"someone-leoma-{position}",
                **miner,
            }
            for position, miner in enumerate(miners)
        ],
    }


def write_metagraph(path: Path, **parts: Any) -> Path:
    """Write a metagraph file; the parts are those of `metagraph`."""
    path.write_text(json.dumps(metagraph(**parts)))
    return path


# What a row says where a test does not.
ROWS: dict[str, dict[str, Any]] = {
    "validators": {"uid": 0, "stake_rao": 10_000 * RAO, "is_registered": True},
    "miners": {
        "uid": 7, "block": 4_400_000, "is_valid": True, "invalid_reason": None,
        "model_name": "someone/leoma", "model_revision": "0" * 40, "model_hash": "1" * 64,
        "chute_id": "chute", "chute_slug": "someone-leoma",
        "last_validated_at_ms": 1_700_000_000_123,
    },
    "blacklist": {"reason": None, "added_by": hotkey("admin"), "created_at_ms": 1_700_000_000_000},
    "scores": {
        "total_samples": 2, "total_passed": 1, "score": 0.5, "updated_at_ms": 1_700_000_000_456,
    },
    "miner_scores": {
        "tasks_evaluated": 2, "passed_count": 1, "pass_rate": 0.5, "completeness": 0.02,
        "validator_count": 1, "is_eligible": False,
    },
    "verdicts": {
        "task_id": 1, "is_passed": True, "stake_passed_rao": 10_000 * RAO,
        "stake_total_rao": 10_000 * RAO, "validator_count": 1, "latency_ms": 1500,
        "updated_at_ms": 1_700_000_000_789,
    },
    "ranks": {
        "rank": 1, "uid": 7, "passed_count": 1, "tasks_evaluated": 2, "pass_rate": 0.5,
        "block": 4_400_000, "is_eligible": True,
    },
    "weights": {"uid": 7, "pass_rate": 0.5, "weight": 1.0},
}  # fmt: skip


def generation_tables(**rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Table]:
    """Return all computed tables from rows by table name; a row may leave columns to `ROWS`."""
    unknown = set(rows) - {table.name for table in COMPUTED_TABLES}
    assert not unknown, f"no such tables: {unknown}"
    return {
        table.name: pa.Table.from_pylist(
            [{**ROWS[table.name], **row} for row in rows.get(table.name, ())],
            schema=arrow.schema(table),
        )
        for table in COMPUTED_TABLES
    }


def generation_info(**changes: Any) -> dict[str, Any]:
    """Return the row of the table `generation`, without what publishing fills in."""
    now_ms = time.time_ns() // 1_000_000
    return {
        "valid_until_ms": now_ms + 3_600_000,
        "watermark": 0,
        "netuid": 99,
        "block": 4_500_000,
        "metagraph_snapshot": "chain/metagraph.json",
        "metagraph_synced_at_ms": now_ms,
        "latest_task_id": None,
        "window_first": None,
        "window_last": None,
        "winner_uid": 0,
        "winner_hotkey": None,
        "burn_reason": "no_rank",
        "total_samples": 0,
        "parameters": "{}",
        "code_version": "0",
        **changes,
    }


def publish(
    settings: WarehouseSettings,
    info: Mapping[str, Any] | None = None,
    **rows: Sequence[Mapping[str, Any]],
) -> Generation:
    """Publish a generation made of these rows, and make it the current one."""
    tables = generation_tables(**rows)
    return publish_tables(Generations(settings), tables, generation_info(**(info or {})))


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is so; fail where it never is."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock of a file."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
