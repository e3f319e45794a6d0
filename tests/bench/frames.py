"""Requests as they go over the wire, in files: each after its length, four bytes, least first."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

OK = b"HTTP/1.1 200"
FRAME = struct.Struct("<I")


def framed(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request as it goes over the wire."""
    if body:
        headers = {
            **headers, "Content-Type": "application/json", "Content-Length": str(len(body))
        }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{head}\r\n".encode() + body


def write_frames(path: Path, requests: Iterable[bytes]) -> None:
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
