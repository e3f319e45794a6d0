"""Requests out of a seed: mostly of the right form, but for what somebody careless or hostile does.

They get past authentication: what is sent is signed after it was spoilt, in either scheme. The same
seed and number give the same request but for its time, nonce and signature.
"""

import gzip
import json
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.builders import hotkey, sample_body, signed_headers

HOTKEYS = [hotkey(name) for name in ("big", "middle", "poor", "old", "young", "broken", "x")]
INTEGERS = [
    0, 1, 3, 4, 7, 8, 99, 200, 500, 501, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**30, 10**400,
]  # fmt: skip
TEXTS = [
    "", "a", "7", "007", "-0", "1e3", "\0", "a\0b", "\u00e9", "\u0663", "\u00b2", "\U0001f600",
    "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "x" * 64, "x" * 300, "x" * 9_000, "9" * 255,
    "9" * 5_000, "null", "NaN", "true", "'; DROP TABLE samples; --", "../../etc/passwd", "..",
    "%s%n%d", "{0.__class__}", "${jndi:ldap://x}", "a\r\nX-Evil: 1", "<script>", "\\", '"', "/",
    "2026-11-22T10:00:00Z", "2026-11-22T10:00:00+23:59", "0001-01-01", "9999-12-31T23:59:59.999999",
    "20261122T100000000Z-00000000", "1700000000", "-99999999999", "999999999999.999999999",
]  # fmt: skip
OTHER_VALUES: list[Any] = [
    None, True, False, 0.5, -0.0, 1e308, [], {}, [[]], [None], {"a": {"b": [1]}}, {"": ""},
    {"samples": []}, [1, "a", None, True],
]  # fmt: skip
TOKENS = [
    b"NaN", b"-Infinity", b"1e999", b"-", b"01", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\\u",
    b'"\\ud800"', b"\xef\xbb\xbf", b"{", b"}", b"]", b",", b'"', b"//", b"\x1f\x8b", b"[" * 2_000,
    b'{"a":' * 1_500, b" " * 5_000, b"9" * 6_000,
]  # fmt: skip
SIGNERS = (
    None, "forged", "poor", *["big"] * 6, *["middle"] * 2, *["admin"] * 5,
)  # fmt: skip
OTHER_METHODS = ("HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "DELETE", "POST", "GET")
SPOILT_HEADERS = {
    "X-Timestamp": ["", "0", "-1", "1e9", "9" * 15, "9" * 16, "17000000000000", " ", "\u0663"],
    "X-Nonce": ["", "short", "x" * 65, "\x7f" * 20, "\t" * 20],
    "X-Signature": ["", "0x", "00" * 64, "zz" * 64, "ab" * 63, "AB" * 65],
    "X-Validator-Hotkey": ["", "5", "x" * 5_000, HOTKEYS[0] + " x", "1" * 48],
    "X-Signature-Version": ["", "0", "3", "2 2", "two"],
}
MORE_HEADERS = {
    "If-None-Match": ["*", '"x"', "W/", '"', "," * 100, '"\\"'],
    "Origin": ["null", "https://evil.example", ""],
    "X-Forwarded-For": ["1.2.3.4", "::1", "x" * 300, ",,,", "1.2.3.4, 999", "fe80::1%eth0"],
    "X-Forwarded-Proto": ["https", "gopher", ""],
    "X-Request-ID": ["a b", "x" * 1_000, "{}", "\x7f"],
    "Content-Type": [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/json; charset=x",
    ],
    "Content-Encoding": ["gzip"],
    "Access-Control-Request-Method": ["POST", "X"],
    "Access-Control-Request-Headers": ["x-signature", "," * 50],
    "Accept": ["text/html", "*/*;q=0"],
    "Range": ["bytes=0-0"],
    "Cookie": ["a=b; " * 50],
    "Upgrade": ["websocket", "h2c"],
    "Host": ["", "evil.example:99999", "[::1"],
}


class Made(NamedTuple):
    """A request. `operation`: the method and the route of the document that it means.

    `is_plain`: it is of the form that the document speaks about, so that its answer must be, too.
    """

    operation: tuple[str, str]
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_plain: bool
    is_in_chunks: bool

    def raw(self) -> bytes:
        """Return the bytes that are sent."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Connection: keep-alive"]
        if not any(name == "Host" for name, _ in self.headers):
            lines.append("Host: l")
        lines += [f"{name}: {value}" for name, value in self.headers]
        body = self.body
        if self.is_in_chunks:
            lines.append("Transfer-Encoding: chunked")
            pieces = [body[start : start + 500] for start in range(0, len(body), 500)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
        elif body or self.method not in {"GET", "HEAD"}:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


class Maker:
    """Makes requests for the routes of an OpenAPI document."""

    def __init__(self, document: dict[str, Any], snapshot_ids: tuple[str, ...] = ()) -> None:
        self._snapshot_ids = snapshot_ids
        self._operations = [
            (method.upper(), path, described)
            for path, methods in document["paths"].items()
            for method, described in methods.items()
        ]
        # What changes something has more to be wrong.
        self._weights = [4 if "requestBody" in one else 1 for *_, one in self._operations]

    def made(self, seed: int, number: int) -> Made:
        """Return a request."""
        dice = random.Random(f"{seed}:{number}")
        ((method, path, described),) = dice.choices(self._operations, self._weights)
        operation = (method, path)
        target, is_plain = self._target(dice, path, described)
        body = b""
        if "requestBody" in described:
            body = spoilt_body(dice, valid_body(dice, path))
        elif dice.random() < 0.05:
            body = dice.choice([b"{}", b"x", b"\0" * 1_000])
        if dice.random() < 0.01:
            body += b" " * dice.choice([190_000, 250_000])
        # The document speaks of no body where none is wanted.
        is_plain = is_plain and ("requestBody" in described or not body)
        if dice.random() < 0.05:
            method = dice.choice(OTHER_METHODS)
        signer = dice.choice(SIGNERS)
        if method == "DELETE" or path in {"/tasks", "/blacklist"}:
            signer = dice.choice([signer, "admin"])
        headers = _headers(dice, signer, method, target, body)
        if dice.random() < 0.1:
            name = dice.choice([*SPOILT_HEADERS])
            kept = [one for one in headers if one[0] != name or dice.random() < 0.2]
            headers = [*kept, (name, dice.choice(SPOILT_HEADERS[name]))]
            is_plain = False
        for _ in range(dice.choice([0, 0, 0, 1, 2])):
            name = dice.choice([*MORE_HEADERS])
            headers.append((name, dice.choice(MORE_HEADERS[name])))
            is_plain = is_plain and name in {"If-None-Match", "Accept", "Range", "Cookie"}
        is_plain = is_plain and method == operation[0]
        return Made(operation, method, target, tuple(headers), body, is_plain, dice.random() < 0.1)

    def _target(self, dice: random.Random, path: str, described: Any) -> tuple[str, bool]:
        """Return a path with its query, and whether its parts are what the route takes them for."""
        is_plain = True
        query = []
        for parameter in described.get("parameters", ()):
            name, value = parameter["name"], self._value(dice, parameter["name"])
            if parameter["in"] == "path":
                safe = dice.choice(["", "", "", "%/:;,"])
                # An empty part, one with a slash, and what a route of its own means are others.
                is_plain = (
                    is_plain and bool(value) and "/" not in value and value[0] in "0123456789"
                )
                quoted = quote(value.encode("utf-8", "surrogatepass"), safe=safe)
                path = path.replace(f"{{{name}}}", quoted)
            elif parameter.get("required") or dice.random() < 0.6:
                if dice.random() < 0.05:
                    continue
                query += [(name, value)] * dice.choice([1, 1, 1, 2])
        if dice.random() < 0.05:
            query.append((dice.choice(["x", "limit", "at", ""]), dice.choice(TEXTS)))
        text = "&".join(
            f"{quote(name)}={quote(value.encode('utf-8', 'surrogatepass'))}"
            for name, value in query
        )
        if dice.random() < 0.03:
            text += dice.choice(["&", "&&=", "%", "%zz", ";", "=", "+", "?"])
        return (f"{path}?{text}" if text else path), is_plain

    def _value(self, dice: random.Random, name: str) -> str:
        if dice.random() < 0.2:
            return dice.choice(TEXTS)
        if "hotkey" in name:
            return dice.choice(HOTKEYS)
        if name == "at" and dice.random() < 0.5:
            return dice.choice([*self._snapshot_ids, str(int(time.time())), "2099-01-01T00:00:00Z"])
        return str(dice.choice(INTEGERS[:14]))


def valid_body(dice: random.Random, path: str) -> Any:
    """Return a document that the route takes."""
    if path == "/tasks":
        return {"task_id": dice.randrange(5, 2**40)}
    if path == "/blacklist":
        return {"hotkey": hotkey(f"shut {dice.randrange(20)}"), "reason": dice.choice(["", "a"])}
    samples = [
        sample_body(
            task_id=dice.randrange(5),
            miner_hotkey=dice.choice(HOTKEYS),
            passed=dice.random() < 0.5,
            sample_id=dice.choice([..., ..., None, "legacy", "12"]),
            generated_artifacts=dice.choice([..., '{"overall_score": 7}', "{", "[" * 3_000]),
        )
        for _ in range(dice.choice([1, 1, 2, 5, 101]) if path.endswith("/batch") else 1)
    ]
    return {"samples": samples} if path.endswith("/batch") else samples[0]


def spoilt_body(dice: random.Random, document: Any) -> bytes:
    """Return a document as text, changed in some places or in none."""
    for _ in range(dice.choice([0, 0, 0, 1, 1, 2, 3])):
        document = _changed(dice, document)
    is_ascii = dice.random() < 0.5
    text = json.dumps(document, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    if dice.random() < 0.2:
        at = dice.randrange(len(text) + 1)
        changes: list[Callable[[], bytes]] = [
            lambda: text[:at] + dice.choice(TOKENS) + text[at:],
            lambda: text[:at] + dice.choice(TOKENS) + text[at + 3 :],
            lambda: text[:at],
            lambda: text[at:],
            lambda: text + text,
            lambda: text[:-1] + b',"passed":true}',
            lambda: gzip.compress(text, mtime=0),
            lambda: text.decode("utf-8", "replace").encode("utf-16"),
            lambda: dice.randbytes(at),
        ]
        return dice.choice(changes)()
    return text


def _changed(dice: random.Random, document: Any) -> Any:
    """Return a document with one value replaced, removed or added, at any depth."""
    if isinstance(document, dict) and document and dice.random() < 0.95:
        name = dice.choice([*document])
        if dice.random() < 0.15:
            return {one: value for one, value in document.items() if one != name}
        if dice.random() < 0.1:
            return {**document, dice.choice(TEXTS): dice.choice(TEXTS)}
        return {**document, name: _changed(dice, document[name])}
    if isinstance(document, list) and document and dice.random() < 0.9:
        at = dice.randrange(len(document))
        return [*document[:at], _changed(dice, document[at]), *document[at + 1 :]]
    return dice.choice(dice.choice([INTEGERS, TEXTS, OTHER_VALUES, HOTKEYS]))


def _headers(
    dice: random.Random, signer: str | None, method: str, target: str, body: bytes
) -> list[tuple[str, str]]:
    if signer is None:
        return []
    path = target if target.isascii() else "/"
    headers = signed_headers(
        "big" if signer == "forged" else signer,
        body if signer != "forged" else b"another",
        method=method,
        path=path,
        scheme=dice.choice([1, 2, 2]),
        timestamp=str(int(time.time()) + dice.choice([0, 0, 0, 0, -5, 5, -400, 400])),
        nonce=f"{dice.getrandbits(64):016x}",
    )
    return list(headers.items())
