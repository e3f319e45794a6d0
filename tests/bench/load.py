"""The load generator, a process of its own: `python -m tests.bench.load PLAN`.

PLAN is a JSON file: {"port", "connections", "begin_unix", "seconds"} and one of "get" (a path, with
"headers"), "requests" (a file of framed requests, each sent once) and "cycle" (such a file, over
and over). Sockets are kept alive, one request is under way on each. Prints one JSON object:
requests, failures, begun and ended (Unix), latencies.
"""

import asyncio
import json
import struct
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from itertools import cycle, repeat
from pathlib import Path
from typing import Any, cast

import uvloop

OK, NOT_MODIFIED = b"HTTP/1.1 200", b"HTTP/1.1 304"
FRAME = struct.Struct("<I")


def framed(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request as it goes over the wire."""
    if body:
        headers = {
            **headers, "Content-Type": "application/json", "Content-Length": str(len(body))
        }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{head}\r\n".encode() + body


def write_frames(path: Path, requests: list[bytes]) -> None:
    """Write requests so that `read_frames` finds them again."""
    with path.open("wb") as file:
        for request in requests:
            file.write(FRAME.pack(len(request)))
            file.write(request)


def read_frames(path: Path) -> list[bytes]:
    content = path.read_bytes()
    found, at = [], 0
    while at < len(content):
        (length,) = FRAME.unpack_from(content, at)
        found.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return found


class Connection(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered."""

    def __init__(self, requests: Iterator[bytes], latencies: "array[int]", deadline: float) -> None:
        self._requests = requests
        self._latencies = latencies
        self._deadline = deadline
        self._missing = 0
        self._received = bytearray()
        self.failures: list[str] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def send_next(self) -> None:
        request = next(self._requests, None) if time.time() < self._deadline else None
        if request is None:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._received += data
            head, end, body = bytes(self._received).partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith((OK, NOT_MODIFIED)):
                self.failures.append((head.partition(b"\r\n")[0] + b" " + body[:200]).decode())
            self._missing = -len(body)
            if not head.startswith(NOT_MODIFIED):
                at = head.lower().index(b"content-length:") + 15
                self._missing += int(head[at:].partition(b"\r\n")[0])
            self._received.clear()
        if self._missing == 0:
            self._latencies.append(time.perf_counter_ns() - self._sent_ns)
            self.send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.failures.append(f"the connection was lost: {error}")
            self.done.set_result(None)


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Play a plan; return what it measured."""
    requests: Iterator[bytes]
    if "get" in plan:
        requests = repeat(framed("GET", plan["get"], plan.get("headers", {})))
    elif "cycle" in plan:
        requests = cycle(read_frames(Path(plan["cycle"])))
    else:
        requests = iter(read_frames(Path(plan["requests"])))
    loop = asyncio.get_running_loop()
    latencies: array[int] = array("Q")
    deadline = plan["begin_unix"] + plan["seconds"]
    connections = [
        (
            await loop.create_connection(
                lambda: Connection(requests, latencies, deadline), "127.0.0.1", plan["port"]
            )
        )[1]
        for _ in range(plan["connections"])
    ]
    await asyncio.sleep(max(0.0, plan["begin_unix"] - time.time()))
    begun = time.time()
    for connection in connections:
        connection.send_next()
    await asyncio.gather(*(connection.done for connection in connections))
    ended = time.time()
    failures = [failure for connection in connections for failure in connection.failures]
    ordered = sorted(latencies)
    return {
        "requests": len(ordered),
        "failures": len(failures),
        "first_failure": failures[0] if failures else None,
        "unsent": sum(1 for _ in requests) if "requests" in plan else 0,
        "begun": begun,
        "ended": ended,
        "p50_ms": ordered[len(ordered) // 2] / 1e6 if ordered else None,
        "p99_ms": ordered[len(ordered) * 99 // 100] / 1e6 if ordered else None,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(Path(sys.argv[1]).read_text())))))  # noqa: T201
