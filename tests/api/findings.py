"""What fuzzing, attacks and reviews found once, a named row each: it must not come back.

The raw rows are also the first examples of the fuzz in `test_raw_fuzz`. What needs more than one
request, a clock or another worker is in `test_attacks` and `tests.test_attack_replays`.
"""

import json
from typing import Any, NamedTuple

from tests.builders import hotkey, sample_body

BIG, OLD = hotkey("big"), hotkey("old")
SAMPLE = json.dumps(sample_body(task_id=4, miner_hotkey=OLD)).encode()


class Raw(NamedTuple):
    """Bytes on a socket, and the statuses of the answers until the server ends the connection."""

    sent: bytes
    statuses: tuple[int, ...]


class Signed(NamedTuple):
    """A request that its sender signed, and the status of its answer."""

    signer: str
    method: str
    path: str
    body: bytes
    status: int


class Reused(NamedTuple):
    """A scheme-1 request of an admin and its status; its signature on a write, and that status."""

    first: tuple[str, str, int]
    second: tuple[str, str, int]
    body: bytes = b""


def get(path: str, *headers: str) -> bytes:
    """Return a GET that ends its connection."""
    lines = [f"GET {path} HTTP/1.1", "Host: l", "Connection: close", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def changed(**fields: Any) -> bytes:
    """Return a sample with other fields."""
    return json.dumps(sample_body(**{"task_id": 4, "miner_hotkey": OLD, **fields})).encode()


RAW: dict[str, Raw] = {
    # 500 until 2026-11-27: it went to SQLite, whose integers have 63 bits.
    "a sample id of 255 digits in a query": Raw(
        get(f"/samples/task?validator_hotkey={BIG}&sample_id={'9' * 255}"), (400,)
    ),
    "a sample id of one more than 63 bits": Raw(
        get(f"/samples/task?validator_hotkey={BIG}&sample_id={2**63}"), (400,)
    ),
    "the last sample id that fits": Raw(
        get(f"/samples/task?validator_hotkey={BIG}&sample_id={2**63 - 1}"), (200,)
    ),
    # They counted, though nobody had judged them, nor any proxy before.
    "headers after a body in chunks": Raw(
        b"POST /samples HTTP/1.1\r\nHost: l\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Signature: "
        + b"ab" * 64
        + b"\r\nX-Validator-Hotkey: "
        + BIG.encode()
        + b"\r\n\r\n",
        (401,),
    ),
    # Each of them kept the connection for ever.
    "empty lines after an answer": Raw(
        b"GET /health/live HTTP/1.1\r\nHost: l\r\n\r\n" + b"\r\n" * 20, (200,)
    ),
    "half of a second head": Raw(b"GET /health/live HTTP/1.1\r\nHost: l\r\n\r\nGET /he", (200,)),
    # It was kept whole, of any size.
    "a header without an end": Raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, (431,)),
    # The refusal went out in the place of the first answer, which was then written to a connection
    # that was closed already: a traceback in the log, with all that the request had.
    "no request after one": Raw(b"GET /weights HTTP/1.1\r\nHost: l\r\n\r\n\0\r\n\r\n", (200, 400)),
    "no request after two": Raw(
        b"GET /samples/list HTTP/1.1\r\nHost: l\r\n\r\n" * 2 + b"\xff\r\n\r\n", (200, 200, 400)
    ),
    "too large a head after a request": Raw(
        b"GET /samples/list HTTP/1.1\r\nHost: l\r\n\r\nGET / HTTP/1.1\r\nX: " + b"x" * 20_000,
        (200, 431),
    ),
    "no chunk where one belongs": Raw(
        b"POST /samples HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (400,)
    ),
    # Two readers of the same request believed different ones.
    "two signatures on a read": Raw(
        get("/weights", "X-Signature: " + "ab" * 64, "X-Signature: " + "cd" * 64), (401,)
    ),
    "two lengths": Raw(
        b"POST /samples HTTP/1.1\r\nHost: l\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        (400,),
    ),
    "a length and chunks": Raw(
        b"POST /samples HTTP/1.1\r\nHost: l\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        (400,),
    ),
    # It was 422, where the contract has 400.
    "a task id of less than zero": Raw(get("/tasks/-1"), (400,)),
    "a task id of more than 63 bits": Raw(get(f"/tasks/{2**63}"), (400,)),
    "a path that is no address": Raw(get("/miners/x"), (400,)),
    "a limit out of range": Raw(get("/samples/list?limit=501"), (422,)),
    # It was a redirect to whatever host the client named.
    "a slash too many": Raw(
        b"GET /weights/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", (404,)
    ),
    # Base58 is quadratic.
    "an address of 3,000 characters": Raw(get("/miners/" + "5" * 3_000), (400,)),
    "an address with a newline": Raw(get(f"/miners/{OLD}%0a"), (400,)),
    "a NUL in a query": Raw(get(f"/samples/task?validator_hotkey={BIG}&sample_id=a%00b"), (200,)),
    "bytes that are no text in a query": Raw(
        get(f"/samples/task?validator_hotkey={BIG}&sample_id=%ff%fe"), (200,)
    ),
    "bytes that are no text in a path": Raw(get("/miners/%ff%fe"), (400,)),
    "a path that is not ASCII": Raw(get("/miners/\xff\xfe"), (400,)),
    # `datetime` has an end, which an offset can pass.
    "an instant at the end of time": Raw(
        get("/weights?at=9999-12-31T23:59:59.999999-23:59"), (200,)
    ),
    "an instant before the beginning": Raw(get("/weights?at=0001-01-01T00:00:00%2B23:59"), (404,)),
    "Unix seconds with everything": Raw(get("/weights?at=-999999999999.999999999"), (404,)),
    "digits of another script": Raw(get("/weights?at=%D9%A3%D9%A3"), (400,)),
    "an ETag that is none": Raw(get("/weights", 'If-None-Match: W/"\\", *x, ,'), (200,)),
    "nothing that is HTTP": Raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
    "the beginning of HTTP/2": Raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
}

SIGNED: dict[str, Signed] = {
    "numbers that are no JSON": Signed(
        "big", "POST", "/samples", SAMPLE.replace(b"1500", b"NaN"), 422
    ),
    "a number of 6,000 digits": Signed(
        "big", "POST", "/samples", SAMPLE.replace(b"1500", b"9" * 6_000), 422
    ),
    "a number that is infinite": Signed(
        "big", "POST", "/samples", SAMPLE.replace(b"1500", b"1e999"), 422
    ),
    "half of a surrogate pair": Signed("big", "POST", "/samples", changed(prompt="\ud800"), 422),
    "a NUL in a text": Signed("big", "POST", "/samples", changed(prompt="a\0b"), 422),
    "nesting without an end": Signed("big", "POST", "/samples", b"[" * 100_000, 422),
    "nesting in a field that nobody knows": Signed(
        "big", "POST", "/samples", SAMPLE[:-1] + b',"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}", 422
    ),
    "a key twice": Signed("big", "POST", "/samples", SAMPLE[:-1] + b',"passed":false}', 422),
    "another encoding": Signed("big", "POST", "/samples", SAMPLE.decode().encode("utf-16"), 422),
    "a mark of the byte order": Signed("big", "POST", "/samples", b"\xef\xbb\xbf" + SAMPLE, 422),
    "a sample id that does not fit": Signed(
        "big", "POST", "/samples", changed(task_id=..., sample_id="9" * 255), 422
    ),
    "a sample id of a digit that is none": Signed(
        "big", "POST", "/samples", changed(task_id=..., sample_id="\u00b2"), 200
    ),
    "true for a task": Signed("big", "POST", "/samples", changed(task_id=True), 422),
    "more samples than a batch has, none of them one": Signed(
        "big", "POST", "/samples/batch", b'{"samples": [' + b"0," * 100 + b"0]}", 400
    ),
    "artifacts that nest without an end": Signed(
        "big", "POST", "/samples", changed(generated_artifacts="[" * 8_000), 200
    ),
    "a task of more than 63 bits": Signed("admin", "POST", "/tasks", b'{"task_id": 1e30}', 422),
    "a blacklisted nobody": Signed("admin", "DELETE", "/blacklist/" + "5" * 48, b"", 400),
    "a submission by nobody of the metagraph": Signed("stranger", "POST", "/samples", SAMPLE, 401),
}

# Of scheme 1, which binds neither method nor path, what an admin once sent was good for more.
REUSED: dict[str, Reused] = {
    "a read": Reused(("GET", "/weights", 200), ("DELETE", f"/blacklist/{OLD}", 409)),
    "a preflight": Reused(("OPTIONS", "/weights", 405), ("DELETE", f"/blacklist/{OLD}", 409)),
    "a path that is not there": Reused(
        ("GET", "/nothing", 404), ("DELETE", f"/blacklist/{OLD}", 409)
    ),
    "a submission that was refused": Reused(
        ("POST", "/samples", 422), ("POST", "/tasks", 409), b'{"task_id": 9}'
    ),
    "a removal that found nothing": Reused(
        ("DELETE", f"/blacklist/{OLD}", 404), ("DELETE", f"/blacklist/{BIG}", 409)
    ),
    "a removal of what is no address": Reused(
        ("DELETE", "/blacklist/x", 400), ("DELETE", f"/blacklist/{OLD}", 409)
    ),
}
