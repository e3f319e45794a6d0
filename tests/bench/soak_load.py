"""The load of a soak, processes of their own: `python -m tests.bench.soak_load sign|play ...`.

`sign PLAN` signs requests some seconds before they are due, and writes them to files in parts.
`play PLAN STREAM` sends one stream of them, each when its time has come, however late the answers
before it are; latencies count from that time. What was answered goes to two files, of which others
read while it grows: STREAM.answers and STREAM.ledger.

Clients come by way of a reverse proxy on loopback, as in production: each has an address of its own
in X-Forwarded-For, so all limits by address and by hotkey are in force.
"""

import asyncio
import json
import os
import pickle
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from substrateinterface import Keypair

from tests.bench import history
from tests.bench.paced import ANSWER_SECONDS_MAX, Connection, exchanged
from warehouse.evaluation import evaluation_entry, evaluation_payload
from warehouse.hotkeys import signed_message

# A task: each validator judges every miner once, most of them in batches.
BATCHES, BATCH_SAMPLES, SINGLES = 24, 10, 16
TASK_SAMPLES = history.VALIDATORS * history.MINERS
READ_PART_SECONDS = 5.0
READERS = 20
TASKS_UNDER_WAY = 10
# Signed so long before it is due that a signer that waits for a core delays nobody.
AHEAD_SECONDS = 20.0
SIGNER_NICE = 5
CONNECTIONS = {"writes": 32, "reads": 32}
FAILURES_TOLD = 20
MATERIALISED = ("/weights",) * 5 + ("/scores/rank",) * 4 + ("/scores", "/miners/list") * 3
OFTEN = ("list", "latest", "miner_task", "samples_of_task", "by_validator", "by_miner")
# A whole task is 2,000 samples: people look at one now and then.
LIVE = (*OFTEN * 3, "task")


@dataclass(frozen=True)
class Plan:
    """What is sent, where to, from when on. `first_task` is new; the one before it has samples."""

    directory: str
    port: int
    begin_unix: float
    seconds: float
    samples_per_second: float
    reads_per_second: float
    first_task: int

    @classmethod
    def read(cls, path: Path) -> "Plan":
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def part_seconds(self, stream: str) -> float:
        is_writes = stream == "writes"
        return TASK_SAMPLES / self.samples_per_second if is_writes else READ_PART_SECONDS

    def part_path(self, stream: str, number: int) -> Path:
        return Path(self.directory) / f"{stream}-{number}"


class Request(NamedTuple):
    """One request, and when it is to be sent, in seconds after the beginning."""

    due: float
    route: str
    content: bytes


def framed(
    address: str, method: str, path: str, body: bytes = b"", signed: dict[str, str] | None = None
) -> bytes:
    """Return a request as a proxy passes it on."""
    fields = {"Host": "soak", "X-Forwarded-For": address, **(signed or {})}
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def signature(key: Keypair, method: str, path: str, body: bytes, at_unix: float) -> dict[str, str]:
    """Return the headers with which a key signs a request of that time."""
    timestamp, nonce = str(int(at_unix)), random.randbytes(16).hex()
    message = signed_message(
        scheme=2, method=method, path=path, body=body, timestamp=timestamp, nonce=nonce
    )
    return {
        "X-Validator-Hotkey": str(key.ss58_address),
        "X-Signature": key.sign(message).hex(),
        "X-Timestamp": timestamp,
        "X-Signature-Version": "2",
        "X-Nonce": nonce,
    }


def validator_address(validator: int) -> str:
    return f"198.51.100.{1 + validator}"


def submission(validator: int, samples: list[dict[str, Any]], at_unix: float) -> tuple[str, bytes]:
    """Return the route and the request with which a validator submits samples of one task."""
    key = history.keypair("validator", validator)
    judged = key.sign(evaluation_payload([evaluation_entry(one) for one in samples])).hex()
    document: dict[str, Any] = {"signature": judged, "samples": samples}
    path = "/samples/batch"
    if len(samples) == 1:
        path, document = "/samples", {**samples[0], "evaluation_signature": judged}
    body = json.dumps(document).encode()
    signed = signature(key, "POST", path, body, at_unix)
    return f"POST {path}", framed(validator_address(validator), "POST", path, body, signed)


def announcement(task_id: int, at_unix: float) -> tuple[str, bytes]:
    """Return the route and the request with which the admin announces a task."""
    body = json.dumps({"task_id": task_id}).encode()
    signed = signature(history.keypair("admin"), "POST", "/tasks", body, at_unix)
    return "POST /tasks", framed("198.51.100.250", "POST", "/tasks", body, signed)


def write_part(plan: Plan, number: int) -> Iterator[Request]:
    """Yield all that validators say about one task, and the news of the task after the next one."""
    task_id, chance = plan.first_task + number, random.Random(number)
    said = []
    for validator in range(history.VALIDATORS):
        batch = history.judgements(validator, task_id)
        sizes = [BATCH_SAMPLES] * BATCHES + [1] * SINGLES
        chance.shuffle(sizes)
        start = 0
        for size in sizes:
            said.append((validator, batch[start : start + size]))
            start += size
    chance.shuffle(said)
    seconds = plan.part_seconds("writes")
    begin = number * seconds
    yield Request(begin, *announcement(task_id + 2, plan.begin_unix + begin))
    for position, (validator, samples) in enumerate(said):
        due = begin + (position + 0.5) * seconds / len(said)
        yield Request(due, *submission(validator, samples, plan.begin_unix + due))


def read_part(plan: Plan, number: int) -> Iterator[Request]:
    """Yield what dashboards and validators ask for: three of four answers are materialised."""
    chance = random.Random(-1 - number)
    count = round(plan.reads_per_second * READ_PART_SECONDS)
    begin = number * READ_PART_SECONDS
    # Before its samples are there, a task is not found; a POST may be late, and that is told there.
    begun = int(begin / plan.part_seconds("writes"))
    whole_task = plan.first_task - 1 - TASKS_UNDER_WAY + begun
    for position in range(count):
        due = begin + (position + 0.5) * READ_PART_SECONDS / count
        address = f"203.0.113.{1 + chance.randrange(READERS)}"
        if chance.random() < 0.75:
            path = chance.choice(MATERIALISED)
            yield Request(due, f"GET {path}", framed(address, "GET", path))
        else:
            task_id = max(1, whole_task - chance.randrange(10))
            yield live_read(chance, task_id, due, plan.begin_unix + due, address)


def live_read(
    chance: random.Random, task_id: int, due: float, at_unix: float, address: str
) -> Request:
    """Return a question that the log answers."""
    asker = chance.randrange(history.VALIDATORS)
    validator = history.hotkey("validator", chance.randrange(history.VALIDATORS))
    miner = history.hotkey("miner", chance.randrange(history.MINERS))
    route, path = {
        "list": ("/samples/list", "/samples/list?limit=50"),
        "latest": ("/tasks/latest", "/tasks/latest"),
        "task": ("/tasks/{id}", f"/tasks/{task_id}"),
        "miner_task": ("/tasks/{id}/miner/{hotkey}", f"/tasks/{task_id}/miner/{miner}"),
        "samples_of_task": (
            "/samples/task", f"/samples/task?validator_hotkey={validator}&task_id={task_id}"
        ),
        "by_validator": ("/samples/validator/{hotkey}", f"/samples/validator/{validator}?limit=20"),
        "by_miner": ("/samples/miner/{hotkey}", f"/samples/miner/{miner}?limit=20"),
    }[chance.choice(LIVE)]  # fmt: skip
    if route in ("/samples/validator/{hotkey}", "/samples/miner/{hotkey}"):
        signed = signature(history.keypair("validator", asker), "GET", path, b"", at_unix)
        return Request(
            due, f"GET {route}", framed(validator_address(asker), "GET", path, b"", signed)
        )
    return Request(due, f"GET {route}", framed(address, "GET", path))


def sign(plan: Plan) -> None:
    """Write all parts, each some seconds before it is due."""
    os.nice(SIGNER_NICE)
    makers = {"writes": write_part, "reads": read_part}
    parts = [
        (number * plan.part_seconds(stream), stream, number)
        for stream in makers
        for number in range(1 + int(plan.seconds / plan.part_seconds(stream)))
    ]
    for due, stream, number in sorted(parts):
        time.sleep(max(0.0, plan.begin_unix + due - AHEAD_SECONDS - time.time()))
        requests = [one for one in makers[stream](plan, number) if one.due < plan.seconds]
        path = plan.part_path(stream, number)
        temporary = path.with_suffix(".part")
        temporary.write_bytes(pickle.dumps(requests))
        temporary.replace(path)


class Player:
    """Sends one stream. Connections go round, so that none is idle for long."""

    def __init__(self, plan: Plan, stream: str) -> None:
        self._plan = plan
        self._stream = stream
        self._free: asyncio.Queue[Connection | None] = asyncio.Queue()
        directory = Path(plan.directory)
        # Line by line, for who watches.
        self._answers = (directory / f"{stream}.answers").open("w", buffering=1)
        self._ledger = (directory / f"{stream}.ledger").open("w")
        self._told = 0

    async def run(self) -> None:
        for _ in range(CONNECTIONS[self._stream]):
            self._free.put_nowait(await self._connected())
        under_way: set[asyncio.Task[None]] = set()
        for number in range(1 + int(self._plan.seconds / self._plan.part_seconds(self._stream))):
            for request in await self._part(number):
                due = self._plan.begin_unix + request.due
                await asyncio.sleep(max(0.0, due - time.time()))
                task = asyncio.create_task(self._send(request, due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        self._answers.close()
        self._ledger.close()

    async def _part(self, number: int) -> list[Request]:
        """Return the next requests. That they are not there yet is no fault of the service."""
        path = self._plan.part_path(self._stream, number)
        due = self._plan.begin_unix + number * self._plan.part_seconds(self._stream)
        while not path.exists():
            if time.time() > due:
                raise SystemExit(f"{path.name} is not signed in time")
            await asyncio.sleep(0.05)
        requests: list[Request] = await asyncio.to_thread(_taken, path)
        return requests

    async def _connected(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._plan.port)

    async def _send(self, request: Request, due: float) -> None:
        connection = await self._free.get()
        status, body = 0, b""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                connection = connection or await self._connected()
                head, body = await exchanged(connection, request.content)
            status = int(head.split(b" ", 2)[1])
        except (OSError, EOFError, TimeoutError) as error:
            body = f"{type(error).__name__}: {error}".encode()
            if connection is not None:
                connection[1].close()
            # Connected anew by whoever takes its place.
            connection = None
        latency_ms = (time.time() - due) * 1000
        self._free.put_nowait(connection)
        self._answers.write(f"{request.due:.3f} {latency_ms:.3f} {status} {request.route}\n")
        if not 200 <= status < 300:
            self._tell(request, status, body)
        elif request.route.startswith("POST /samples"):
            self._acknowledge(json.loads(body))

    def _acknowledge(self, answer: Any) -> None:
        for one in answer if isinstance(answer, list) else [answer]:
            fields = ledger_fields(
                one["id"], one["validator_hotkey"], one["miner_hotkey"], one["task_id"],
                one["passed"], one["confidence"], one["latency_ms"],
            )  # fmt: skip
            self._ledger.write("\t".join(fields) + "\n")

    def _tell(self, request: Request, status: int, body: bytes) -> None:
        self._told += 1
        if self._told <= FAILURES_TOLD:
            line = f"{request.due:.3f} {request.route}: {status} {body[:300]!r}\n"
            sys.stderr.write(line)


@lru_cache(maxsize=4096)
def _text(value: object) -> str:
    return str(value)


def ledger_fields(seq: int, *said: object) -> list[str]:
    """Return a line of the ledger: what a sample's acknowledgement says, or what the log has."""
    return [str(seq), *(_text(int(one) if isinstance(one, bool) else one) for one in said)]


def _taken(path: Path) -> list[Request]:
    requests: list[Request] = pickle.loads(path.read_bytes())
    path.unlink()
    return requests


if __name__ == "__main__":
    read = Plan.read(Path(sys.argv[2]))
    if sys.argv[1] == "sign":
        sign(read)
    else:
        uvloop.run(Player(read, sys.argv[3]).run())
