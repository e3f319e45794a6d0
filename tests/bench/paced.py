"""Load at a fixed rate, a process of its own: `python -m tests.bench.paced PLAN`.

PLAN is a JSON file: {"port", "connections", "begin_unix", "per_second"}, "has_ids" unless answers
without an id are fine, and "requests", a file of framed requests. Each is sent when its time has
come, however late the answers before it are, and its latency counts from that time. Prints one JSON
object: of each request, in order, the latency in milliseconds and the first id in its answer (null
if it failed), and the first failure.
"""

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from tests.bench.frames import OK, read_frames

ANSWER_SECONDS_MAX = 60.0
LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
FIRST_ID = re.compile(rb'"id":"?(\d+)')
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def exchanged(connection: Connection, request: bytes) -> tuple[bytes, bytes]:
    """Send a request; return its answer's head and body."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    return head, await reader.readexactly(int(length[1])) if length else b""


async def answered(connection: Connection, request: bytes, *, has_ids: bool) -> int | None:
    """Send a request; return the first id in its answer, which must have one if they `has_ids`."""
    head, body = await exchanged(connection, request)
    first_id = FIRST_ID.search(body)
    if not head.startswith(OK) or (has_ids and first_id is None):
        raise OSError(head.partition(b"\r\n")[0].decode())
    return int(first_id[1]) if first_id else None


class Paced:
    """Plays a plan. Connections go round, so that none is idle for long."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._requests = read_frames(Path(plan["requests"]))
        self._free: asyncio.Queue[Connection | None] = asyncio.Queue()
        self.latencies_ms = [0.0] * len(self._requests)
        self.first_ids: list[int | None] = [None] * len(self._requests)
        self.first_failure: str | None = None

    async def run(self) -> None:
        for _ in range(self._plan["connections"]):
            self._free.put_nowait(await self._connected())
        sent = []
        for number in range(len(self._requests)):
            due = self._plan["begin_unix"] + number / self._plan["per_second"]
            await asyncio.sleep(max(0.0, due - time.time()))
            sent.append(asyncio.create_task(self._send(number, due)))
        await asyncio.gather(*sent)

    async def _connected(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._plan["port"])

    async def _send(self, number: int, due: float) -> None:
        connection = await self._free.get()
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                connection = connection or await self._connected()
                self.first_ids[number] = await answered(
                    connection, self._requests[number], has_ids=self._plan.get("has_ids", True)
                )
        except (OSError, EOFError, TimeoutError) as error:
            self.first_failure = self.first_failure or f"{type(error).__name__}: {error}"
            if connection is not None:
                connection[1].close()
            # Connected anew by whoever takes its place.
            connection = None
        self.latencies_ms[number] = (time.time() - due) * 1000
        self._free.put_nowait(connection)


if __name__ == "__main__":
    played = Paced(json.loads(Path(sys.argv[1]).read_text()))
    uvloop.run(played.run())
    result = {
        "latencies_ms": played.latencies_ms,
        "first_ids": played.first_ids,
        "first_failure": played.first_failure,
    }
    print(json.dumps(result))  # noqa: T201
