"""Everything that must not get past authentication, one row an attack, on the running service.

After every row the log holds what it held before. The rows that are let in, `LEGITIMATE`, are made
of the same parts: they show that an attack is refused for what is wrong with it. Replays are in
`tests.test_attack_replays`.
"""

import gzip
import hashlib
import json
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apsw
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scalecodec.utils.ss58 import ss58_encode
from substrateinterface import Keypair, KeypairType

from tests.api.attacks import (
    FIELD_PRIME,
    GROUP_ORDER,
    SETTINGS,
    WEAK_KEYS,
    Answer,
    Attempt,
    address,
    chunked,
    forged,
    publish_attacked,
    resigned,
    send,
    sent_slowly,
    signed,
    stopped_clock,
    stored,
    vote,
    with_r,
    with_s,
)
from tests.api.servers import Server
from tests.builders import NONCE, hotkey, keypair
from warehouse.backends import open_read_log
from warehouse.hotkeys import hotkey_of, is_hotkey, public_key
from warehouse.log import LogReader
from warehouse.settings import WarehouseSettings

BIG, OLD = hotkey("big"), hotkey("old")
PUBLIC_KEY = keypair("big").public_key
SHUT_OUT = f"/blacklist/{hotkey('shut')}"  # what no attack may take off the blacklist
NO_SIGNATURE = "X-Signature does not verify"
NO_HEX = "X-Signature is not 64 bytes in hex"
NO_HOTKEY = "X-Validator-Hotkey: Invalid SS58 address format"
NO_VALIDATOR = "this hotkey is not a registered validator"
NO_ADMIN = "this hotkey is not an admin"
BLACKLISTED = "this hotkey is blacklisted"
NO_TIME = "X-Timestamp is not Unix seconds in decimal"
STALE = "X-Timestamp is stale"
NO_VERSION = "X-Signature-Version is neither 1 nor 2"
NO_NONCE = "X-Nonce is not 16 to 64 printable ASCII characters"
NO_HTTP = "Invalid HTTP request received."
USED_UP = ["BEGIN", "SELECT", "DELETE", "INSERT", "COMMIT"]
LATEST_EVENT = "SELECT coalesce(max(seq), 0) FROM events"


class Service(NamedTuple):
    """Two workers on one home, two that want scheme 2, and the log read past all of them.

    `statements` are those of all databases, as they are asked; whoever counts them clears them.
    """

    ports: dict[str, int]
    log: LogReader
    statements: list[str]


@pytest.fixture(scope="module")
def statements() -> Iterator[list[str]]:
    """What is asked of every SQLite database that is opened from now on."""
    seen: list[str] = []

    def trace(_cursor: apsw.Cursor, sql: str, _bindings: Any) -> bool:
        seen.append(sql)
        return True

    def hook(connection: apsw.Connection) -> None:
        connection.exec_trace = trace

    apsw.connection_hooks.append(hook)
    yield seen
    apsw.connection_hooks.remove(hook)


@pytest.fixture(scope="module")
def service(module_home: WarehouseSettings, statements: list[str]) -> Iterator[Service]:
    """A service that has taken votes, tasks, and two hotkeys onto its blacklist."""
    publish_attacked(module_home)
    for_admins = SETTINGS.model_copy(update={"require_signature_v2": "admin"})
    for_all = SETTINGS.model_copy(update={"require_signature_v2": "all"})
    log = open_read_log(module_home)
    with (
        Server(SETTINGS, module_home) as here,
        Server(SETTINGS, module_home) as beside,
        Server(for_admins, module_home) as scheme_2_for_admins,
        Server(for_all, module_home) as scheme_2_for_all,
    ):
        for name in ("shut", "fallen"):
            document = {"hotkey": hotkey(name)}
            assert here.signed("admin", "POST", "/blacklist", document).status_code == 200
        assert here.signed("admin", "POST", "/tasks", {"task_id": 1_000}).status_code == 200
        ports = {
            "here": here.port,
            "beside": beside.port,
            "scheme 2 for admins": scheme_2_for_admins.port,
            "scheme 2 for all": scheme_2_for_all.port,
        }
        for port in ports.values():
            # Each worker opens its connections when it first needs them.
            assert send(port, vote()).status == 200
            assert send(port, signed("big", "GET", "/samples/list")).status == 200
        yield Service(ports, log, statements)
    log.close()


class Attack(NamedTuple):
    """One row: how the request is made, and which refusal is expected, by which worker."""

    name: str
    make: Callable[[], Attempt]
    detail: str
    status: int | tuple[int, ...] = 401
    to: str = "here"


def changed(name: str, value: bytes | str | None, *, scheme: int = 1) -> Callable[[], Attempt]:
    """Make a vote with one header changed after it was signed."""
    return lambda: vote(scheme=scheme).with_header(name, value)


def now() -> int:
    return int(time.time())


# Digits to Unicode and to `int`, not to this service.
FULL_WIDTH = {ord("0") + digit: 0xFF10 + digit for digit in range(10)}


# Signatures: the bytes.

ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "the marker bit flipped": lambda sig: sig[:63] + bytes([sig[63] ^ 0x80]),
    "s plus the group order": with_s(lambda s: s + GROUP_ORDER),
    "s plus the group order, unmarked": with_s(lambda s: s + GROUP_ORDER, is_marked=False),
    "s plus 7 times the group order": with_s(lambda s: s + 7 * GROUP_ORDER),
    "s negated": with_s(lambda s: -s % GROUP_ORDER),
    "s zero": with_s(lambda _: 0),
    "s one more": with_s(lambda s: s + 1),
    "the sign of R flipped": with_r(lambda r: r ^ (1 << 255)),
    "R negated": with_r(lambda r: FIELD_PRIME - r),
    "R plus the prime": with_r(lambda r: r + FIELD_PRIME),
    "R zero": with_r(lambda _: 0),
    "R of another signature": lambda sig: keypair("big").sign(b"another")[:32] + sig[32:],
    "s of another signature": lambda sig: sig[:32] + keypair("big").sign(b"another")[32:],
    "R and s exchanged": lambda sig: sig[32:] + sig[:32],
    "backwards": lambda sig: sig[::-1],
    "the first bit flipped": lambda sig: bytes([sig[0] ^ 1]) + sig[1:],
    "the lowest bit of s flipped": lambda sig: sig[:32] + bytes([sig[32] ^ 1]) + sig[33:],
    "all zero": lambda _: bytes(64),
    "all zero but the marker": lambda _: bytes(63) + b"\x80",
    "all bits": lambda _: b"\xff" * 64,
}
OF_ANOTHER_LENGTH: dict[str, Callable[[bytes], bytes]] = {
    "without its last byte": lambda sig: sig[:-1],
    "without its first byte": lambda sig: sig[1:],
    "half": lambda sig: sig[:32],
    "one byte": lambda sig: sig[:1],
    "a zero byte more": lambda sig: sig + b"\0",
    "a zero byte before": lambda sig: b"\0" + sig,
    "twice": lambda sig: sig + sig,
    "of 64 kB": lambda sig: sig * 512,
}
# The text that says 64 bytes in hex, or not quite.
MISSPELT: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "0x twice": (lambda text: "0x0x" + text[4:], NO_HEX),
    "x": (lambda text: "x" + text, NO_HEX),
    "0y": (lambda text: "0y" + text, NO_HEX),
    "a space in the middle": (lambda text: text[:64] + " " + text[64:], NO_HEX),
    "a tab in the middle": (lambda text: text[:64] + "\t" + text[64:], NO_HEX),
    "a space in the place of a digit": (lambda text: text[:64] + " " + text[65:], NO_HEX),
    "two spaces in the place of a byte": (lambda text: text[:64] + "  " + text[66:], NO_HEX),
    "an underscore": (lambda text: text[:64] + "_" + text[65:], NO_HEX),
    "a plus": (lambda text: "+" + text[1:], NO_HEX),
    "a g": (lambda text: text[:-1] + "g", NO_HEX),
    "quotes": (lambda text: f'"{text}"', NO_HEX),
    "a comma and itself": (lambda text: f"{text}, {text}", "X-Signature is malformed"),
    "base64": (lambda text: b64encode(bytes.fromhex(text)), NO_HEX),
    "its bytes": (lambda text: bytes(b | 0x80 for b in bytes.fromhex(text)), "is malformed"),
    "full-width digits": (lambda text: (text.translate(FULL_WIDTH)).encode(), "is malformed"),
    "a letter of latin-1": (lambda text: text[:-1].encode() + b"\xe9", "is malformed"),
    "a word": (lambda _: "null", NO_HEX),
    # No part of the value for HTTP, but the server leaves it there. No client sends it.
    "a space at its end": (lambda text: text + " ", NO_HEX),
}
SIGNATURES = [
    *(
        Attack(
            f"signature: {name}, scheme {scheme}",
            lambda change=change, scheme=scheme: forged(vote(scheme=scheme), change),
            detail,
            (401, 431),
        )
        for changes, detail in ((ALTERED, NO_SIGNATURE), (OF_ANOTHER_LENGTH, ""))
        for name, change in changes.items()
        for scheme in (1, 2)
    ),
    *(
        Attack(
            f"signature as text: {name}",
            lambda spell=spell: vote().with_header(
                "X-Signature", spell(vote().header("X-Signature").decode())
            ),
            detail,
        )
        for name, (spell, detail) in MISSPELT.items()
    ),
]


# Signatures: who signed what.

SEED = "0x" + "17" * 32
ED25519 = Keypair.create_from_seed(SEED, crypto_type=KeypairType.ED25519)
MESSAGES: dict[str, Callable[[bytes], bytes | str]] = {
    "as Python shows bytes": str,
    "in hex": lambda message: message.hex(),
    "in hex with 0x, as bytes": lambda message: b"0x" + message.hex().encode(),
    "as JSON": lambda message: json.dumps(message.decode()),
    "in <Bytes> twice": lambda message: b"<Bytes><Bytes>%b</Bytes></Bytes>" % message,
    "in <bytes>": lambda message: b"<bytes>%b</bytes>" % message,
    "in half of <Bytes>": lambda message: b"<Bytes>%b" % message,
    "in <Bytes> with a space": lambda message: b"<Bytes> %b</Bytes>" % message,
    "hashed": lambda message: hashlib.sha256(message).digest(),
    "hashed as the chain does": lambda message: hashlib.blake2b(message, digest_size=32).digest(),
    "with a newline": lambda message: message + b"\n",
    "with a NUL": lambda message: message + b"\0",
    "in capitals": bytes.upper,
    "of the digest alone": lambda message: message.partition(b":")[0],
    "of the time alone": lambda message: message.partition(b":")[2],
    "without the colon": lambda message: message.replace(b":", b""),
    "the other way round": lambda message: b":".join(message.split(b":")[::-1]),
    "of nothing": lambda _: b"",
    "of scheme 2": lambda message: b"v2\nPOST\n/samples\n%b\n%b\n%b" % (
        *message.split(b":"), NONCE.encode(),
    ),
}  # fmt: skip


def signed_by_ed25519() -> Attempt:
    """Return a vote under another curve's key, whose address is as good as any other."""
    return resigned(vote(), bytes, key=ED25519)


SIGNERS = [
    *(
        Attack(f"message: {name}", lambda change=change: resigned(vote(scheme=1), change),
               NO_SIGNATURE)
        for name, change in MESSAGES.items()
    ),
    *(
        Attack(
            f"signed by {name} for another, scheme {scheme}",
            lambda name=name, scheme=scheme: vote(name, scheme=scheme).with_header(
                "X-Validator-Hotkey", BIG
            ),
            NO_SIGNATURE,
        )
        for name in ("small", "admin", "stranger")
        for scheme in (1, 2)
    ),
    Attack("signed by a validator for an admin", lambda: signed(
        "big", "DELETE", SHUT_OUT).with_header("X-Validator-Hotkey", hotkey("admin")),
           NO_SIGNATURE),
    Attack("signed with ed25519", lambda: resigned(vote(scheme=1), bytes, key=ED25519),
           NO_SIGNATURE),
    Attack("signed with ed25519, under its own key", lambda: signed_by_ed25519().with_header(
        "X-Validator-Hotkey", ED25519.ss58_address), NO_VALIDATOR),
]  # fmt: skip


# Keys that anybody could sign for.

WEAK_SIGNATURES = {
    "zeros and the marker": bytes(63) + b"\x80",
    "zeros": bytes(64),
    "one and the marker": b"\x01" + bytes(62) + b"\x80",
    "the key as R": None,
}


def weak(key: bytes, signature: bytes | None, method: str, path: str) -> Attempt:
    given = signature or key + bytes(31) + b"\x80"
    attempt = vote(scheme=1)._replace(method=method, target=path)
    attempt = attempt.with_header("X-Validator-Hotkey", hotkey_of(key))
    return attempt.with_header("X-Signature", given.hex())


WEAK = [
    Attack(
        f"key {key_name}, signature {signature_name}, {method} {path}",
        lambda key=key, signature=signature, method=method, path=path: weak(
            key, signature, method, path
        ),
        NO_HOTKEY if not any(key) else NO_SIGNATURE,
    )
    for key_name, key in WEAK_KEYS.items()
    for signature_name, signature in WEAK_SIGNATURES.items()
    for method, path in (("POST", "/samples"), ("GET", "/miners/valid"))
]


# Addresses: other texts for a key that may.

CYRILLIC_A = "\u0430"
ADDRESSES: dict[str, str | bytes] = {
    **{
        f"of network {prefix}": ss58_encode(PUBLIC_KEY, ss58_format=prefix)
        for prefix in (0, 1, 2, 5, 41, 43, 63, 64, 255, 16_383)
    },
    # 42 in the form of two bytes, which is for prefixes from 64 on.
    "prefix 42 in two bytes": address(PUBLIC_KEY, bytes([42 >> 2 | 0x40, (42 & 3) << 6])),
    "checksum of one byte": address(PUBLIC_KEY, bytes([42]), checksum_bytes=1),
    "checksum of three bytes": address(PUBLIC_KEY, bytes([42]), checksum_bytes=3),
    "no checksum": address(PUBLIC_KEY, bytes([42]), checksum_bytes=0),
    "wrong checksum": BIG[:-1] + ("1" if BIG[-1] != "1" else "2"),
    "a digit exchanged": BIG[:20] + ("x" if BIG[20] != "x" else "y") + BIG[21:],
    "a 1 before": "1" + BIG,
    "its first character missing": BIG[1:],
    "its last character missing": BIG[:-1],
    "a character more": BIG + "1",
    "twice": BIG * 2,
    "lower case": BIG.lower(),
    "upper case": BIG.upper(),
    "swapped case": BIG.swapcase(),
    "hex": PUBLIC_KEY.hex(),
    "0x and hex": "0x" + PUBLIC_KEY.hex(),
    "0X and hex": "0X" + PUBLIC_KEY.hex(),
    "the key in base64": b64encode(PUBLIC_KEY).decode(),
    "a space inside": BIG[:20] + " " + BIG[20:],
    "a tab inside": BIG[:20] + "\t" + BIG[20:],
    "a zero, which base58 lacks": BIG[:20] + "0" + BIG[21:],
    "a comma and itself": f"{BIG},{BIG}",
    "quotes": f'"{BIG}"',
    "an account index": "F7Hs",
    "five": "5",
    "full-width digits": BIG.translate(FULL_WIDTH),
    "a Cyrillic letter": BIG[:20] + CYRILLIC_A + BIG[21:],
    "a letter of latin-1": BIG[:20].encode() + b"\xe5" + BIG[21:].encode(),
    "a soft hyphen": BIG[:20] + "\u00ad" + BIG[20:],
    "a zero-width space at its end": BIG + "\u200b",
    "a no-break space at its end": BIG.encode() + b"\xa0",
    "a next-line at its end": BIG.encode() + b"\x85",
    "100,000 characters": "5" * 100_000,
    "100,000 characters after itself": BIG + "1" * 100_000,
    "100,000 letters of UTF-8": CYRILLIC_A * 50_000,
}
# What no header can carry, or what HTTP takes off a header's ends.
ADDRESSES_IN_TEXT: dict[str, str] = {
    **{name: text for name, text in ADDRESSES.items() if isinstance(text, str)},
    "of the zero key": hotkey_of(bytes(32)),
    "a newline at its end": BIG + "\n",
    "a carriage return at its end": BIG + "\r",
    "a space at its end": BIG + " ",
    "a space before": " " + BIG,
    "a tab at its end": BIG + "\t",
    "a vertical tab at its end": BIG + "\x0b",
    "a form feed at its end": BIG + "\x0c",
    "a NUL at its end": BIG + "\0",
    "a NUL before": "\0" + BIG,
    "nothing": "",
}


def percent_encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


IN_HEADERS = [
    Attack(
        f"address: {name}, scheme {scheme}",
        lambda text=text, scheme=scheme: vote(scheme=scheme).with_header(
            "X-Validator-Hotkey", text
        ),
        "",
        # A head is larger than a server takes before authentication sees it.
        (401, 431) if len(text) > 1_000 else 401,
    )
    for scheme in (1, 2)
    for name, text in ADDRESSES.items()
]
IN_TEXT = [
    *(
        Attack(
            f"address in an admin's body: {name}",
            lambda text=text: signed(
                "admin", "POST", "/blacklist", json.dumps({"hotkey": text}).encode()
            ),
            "body",
            422,
        )
        for name, text in ADDRESSES_IN_TEXT.items()
    ),
    *(
        Attack(
            f"address in a vote: {name}",
            lambda text=text: vote(miner_hotkey=text),
            "miner_hotkey",
            422,
        )
        for name, text in ADDRESSES_IN_TEXT.items()
    ),
    *(
        Attack(
            f"address in {method} {path}: {name}",
            lambda text=text, method=method, path=path: signed(
                "admin", method, path + percent_encoded(text)
            ),
            "",
            # Where nothing is left of it another route is meant.
            (400, 404, 405, 431) if len(text) > 1_000 or not text else 400,
        )
        for name, text in ADDRESSES_IN_TEXT.items()
        for method, path in (("DELETE", "/blacklist/"), ("GET", "/samples/validator/"))
    ),
]


# Headers: how they are written.

ALL = ("X-Validator-Hotkey", "X-Signature", "X-Timestamp", "X-Signature-Version", "X-Nonce")
REQUIRED = ALL[:3]
OTHER_VALUES = {
    "X-Validator-Hotkey": hotkey("small"),
    "X-Signature": "ab" * 64,
    "X-Timestamp": "1",
    "X-Signature-Version": "1",
    "X-Nonce": "f" * 16,
}
HEADERS = [
    *(
        Attack(f"{name} missing", changed(name, None), f"Missing header: {name}")
        for name in REQUIRED
    ),
    *(Attack(f"{name} empty", changed(name, ""), f"Missing header: {name}") for name in REQUIRED),
    *(
        Attack(f"{name} of spaces alone", changed(name, "   "), f"Missing header: {name}")
        for name in REQUIRED
    ),
    *(
        Attack(
            f"{name} twice, {what}",
            lambda name=name, other=other, spelt=spelt: vote().with_more(
                spelt(name), OTHER_VALUES[name] if other else vote().header(name)
            ),
            f"{name} is given more than once",
        )
        for name in ALL
        for what, other, spelt in (
            ("alike", False, str),
            ("different", True, str),
            ("in another case", True, str.lower),
        )
    ),
    *(
        Attack(
            f"{name} twice, the first one empty",
            lambda name=name: Attempt(
                "POST", "/samples", ((name.encode(), b""), *(made := vote()).headers), made.body
            ),
            f"{name} is given more than once",
        )
        for name in ALL
    ),
    *(
        Attack(f"{name}, {what}", changed(name, value, scheme=2), detail, status)
        for name in ALL
        for what, value, detail, status in (
            ("131 characters", "5" * 131, f"{name} is malformed", 401),
            ("8,000 characters", "5" * 8_000, f"{name} is malformed", 401),
            ("100,000 characters", "5" * 100_000, "", (401, 431)),
            ("latin-1", b"\xe9\xff", f"{name} is malformed", 401),
            ("UTF-8", "ключ", f"{name} is malformed", 401),
            ("broken UTF-8", b"\xc3\x28\xed\xa0\x80", f"{name} is malformed", 401),
            ("a NUL", b"5\x005", NO_HTTP, 400),
            ("a vertical tab", b"5\x0b", NO_HTTP, 400),
            ("a DEL", b"5\x7f", NO_HTTP, 400),
            ("a lone newline", b"5\n5", NO_HTTP, 400),
            ("a lone carriage return", b"5\r5", NO_HTTP, 400),
        )
    ),
    *(
        Attack(
            f"{name} folded over two lines",
            lambda name=name: (made := vote()).with_header(
                name, made.header(name)[:8] + b"\r\n " + made.header(name)[8:]
            ),
            "",
            (400, 401),
        )
        for name in ALL
    ),
    *(
        Attack(
            f"{name} with a space before the colon",
            lambda name=name: (made := vote()).with_header(name, None).with_more(
                f"{name} ", made.header(name)
            ),
            "",
            (400, 401),
        )
        for name in REQUIRED
    ),
    *(
        Attack(
            f"{name} with underscores",
            lambda name=name: (made := vote()).with_header(name, None).with_more(
                name.replace("-", "_"), made.header(name)
            ),
            f"Missing header: {name}",
        )
        for name in REQUIRED
    ),
    Attack("all of them in the query", lambda: Attempt(
        "POST", "/samples?" + "&".join(f"{n.decode()}={v.decode()}" for n, v in vote().headers), (),
        vote().body), "Missing header"),
    Attack("as a bearer token", lambda: vote().with_header("X-Signature", None).with_header(
        "Authorization", b"Bearer " + vote().header("X-Signature")), "Missing header: X-Signature"),
    Attack("method overridden", lambda: signed("admin", "GET", SHUT_OUT).with_more(
        "X-HTTP-Method-Override", "DELETE")._replace(method="POST"), "", 405),
    Attack("path overridden", lambda: signed("admin", "DELETE", "/blacklist/x").with_more(
        "X-Original-URL", SHUT_OUT).with_more("X-Rewrite-URL", SHUT_OUT), "Invalid SS58", 400),
]  # fmt: skip


# Versions, nonces, and one scheme taken for the other.

VERSIONS = (
    "02", "2.0", "0x2", "2;q=1", "two", "-2", "+2", "2,2", "2 2", "1.0", "01", "0", "3", "", "v2",
    "1,2", "null", "10", "22",
)  # fmt: skip
SCHEMES = [
    *(
        Attack(
            f"version {version!r} on scheme {scheme}",
            changed("X-Signature-Version", version, scheme=scheme),
            NO_VERSION,
        )
        for version in VERSIONS
        for scheme in (1, 2)
    ),
    *(
        Attack(
            f"version {version!r}",
            changed("X-Signature-Version", version, scheme=2),
            "X-Signature-Version is malformed",
        )
        for version in ("\uff11", "\uff12", "\u00b2", "\u0662")
    ),
    *(
        Attack(f"nonce: {name}", lambda nonce=nonce: vote_with_nonce(nonce), detail)
        for name, nonce, detail in (
            ("15 characters", "n" * 15, NO_NONCE),
            ("65 characters", "n" * 65, NO_NONCE),
            ("131 characters", "n" * 131, "X-Nonce is malformed"),
            ("a tab inside", "n" * 16 + "\t" + "n", NO_NONCE),
            ("UTF-8", "ñ" * 16, "X-Nonce is malformed"),
            ("empty", "", "Missing header: X-Nonce"),
        )
    ),
    Attack("nonce missing", changed("X-Nonce", None, scheme=2), "Missing header: X-Nonce"),
    Attack("another nonce", changed("X-Nonce", "f" * 16, scheme=2), NO_SIGNATURE),
    Attack("a nonce with something after it", changed("X-Nonce", NONCE + "0", scheme=2),
           NO_SIGNATURE),
    Attack("a nonce in capitals", changed("X-Nonce", NONCE.upper(), scheme=2), NO_SIGNATURE),
    Attack("scheme 2 sent without the version", changed("X-Signature-Version", None, scheme=2),
           NO_SIGNATURE),
    Attack("scheme 2 sent as 1", changed("X-Signature-Version", "1", scheme=2), NO_SIGNATURE),
    Attack("scheme 2 sent as 1, without the nonce", lambda: vote().with_header(
        "X-Signature-Version", "1").with_header("X-Nonce", None), NO_SIGNATURE),
    Attack("scheme 1 sent as 2", lambda: vote(scheme=1).with_header(
        "X-Signature-Version", "2").with_header("X-Nonce", NONCE), NO_SIGNATURE),
    Attack("scheme 1 where all must be 2", lambda: vote(scheme=1),
           "X-Signature-Version: 2 is required here", to="scheme 2 for all"),
    Attack("scheme 1 said, where all must be 2", changed("X-Signature-Version", "1"),
           "X-Signature-Version: 2 is required here", to="scheme 2 for all"),
    Attack("scheme 2 sent as 1 where all must be 2", changed("X-Signature-Version", None, scheme=2),
           "X-Signature-Version: 2 is required here", to="scheme 2 for all"),
    Attack("scheme 1 sent as 2 where all must be 2", lambda: vote(scheme=1).with_header(
        "X-Signature-Version", "2").with_header("X-Nonce", NONCE), NO_SIGNATURE,
           to="scheme 2 for all"),
    Attack("read in scheme 1 where all must be 2", lambda: signed(
        "big", "GET", "/miners/valid", scheme=1), "2 is required here", to="scheme 2 for all"),
    *(
        Attack(f"{method} {path} in scheme 1 to {to}", lambda method=method, path=path: signed(
            "admin", method, path, b'{"task_id": 2000, "hotkey": "%b"}' % OLD.encode(), scheme=1),
            "X-Signature-Version: 2 is required here", to=to)
        for to in ("scheme 2 for admins", "scheme 2 for all")
        for method, path in (("POST", "/tasks"), ("POST", "/blacklist"), ("DELETE", SHUT_OUT))
    ),
]  # fmt: skip


def vote_with_nonce(nonce: str) -> Attempt:
    """Return a vote whose signature covers a nonce that is not acceptable."""
    made = vote()
    digest = hashlib.sha256(made.body).hexdigest()
    time_sent = made.header("X-Timestamp").decode()
    signature = keypair("big").sign(f"v2\nPOST\n/samples\n{digest}\n{time_sent}\n{nonce}".encode())
    return made.with_header("X-Nonce", nonce).with_header("X-Signature", signature.hex())


# Bodies.


def altered(change: Callable[[bytes], bytes], *, scheme: int = 2) -> Callable[[], Attempt]:
    """Make a vote whose body was changed after it was signed."""
    return lambda: (made := vote(scheme=scheme))._replace(body=change(made.body))


def framed(*framing: bytes) -> Callable[[], Attempt]:
    """Make a vote whose end is told in another way."""
    return lambda: vote()._replace(framing=framing)


BODIES: dict[str, Callable[[bytes], bytes]] = {
    "one byte": lambda body: body.replace(b"true", b"True"),
    "the verdict": lambda body: body.replace(b"true", b"false"),
    "one bit": lambda body: bytes([*body[:-3], body[-3] ^ 1, *body[-2:]]),
    "whitespace": lambda body: body.replace(b": ", b":"),
    "a newline at its end": lambda body: body + b"\n",
    "a space at its end": lambda body: body + b" ",
    "a space before": lambda body: b" " + body,
    "a byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "the order of keys": lambda body: json.dumps(json.loads(body), sort_keys=True).encode(),
    "a key more": lambda body: body[:-1] + b', "x": 1}',
    "empty": lambda _: b"",
    "its last byte missing": lambda body: body[:-1],
    "twice": lambda body: body + body,
    "compressed": gzip.compress,
    "in UTF-16": lambda body: body.decode().encode("utf-16"),
    "two megabytes": lambda body: body + b" " * (2 * 2**20 - len(body)),
}
AFTER_SIGNING = [
    *(
        Attack(f"body changed: {name}, scheme {scheme}", altered(change, scheme=scheme),
               NO_SIGNATURE)
        for name, change in BODIES.items()
        for scheme in (1, 2)
    ),
    Attack("a body for a DELETE that was signed without", lambda: signed(
        "admin", "DELETE", SHUT_OUT)._replace(body=b"{}"), NO_SIGNATURE),
    Attack("compressed, and said so", lambda: altered(gzip.compress)().with_more(
        "Content-Encoding", "gzip"), NO_SIGNATURE),
    Attack("signed compressed: what is in it is not looked at", lambda: signed(
        "big", "POST", "/samples", gzip.compress(vote().body)).with_more(
        "Content-Encoding", "gzip"), "JSON decode error", 422),
    Attack("in chunks, and changed", lambda: chunked(altered(BODIES["the verdict"])()),
           NO_SIGNATURE),
    Attack("in chunks, signed as it goes over the wire", lambda: (made := vote())._replace(
        headers=signed("big", "POST", "/samples", chunked(made).body).headers,
        body=chunked(made).body, framing=chunked(made).framing), NO_SIGNATURE),
    Attack("in chunks, the last one missing a byte", lambda: chunked(altered(
        BODIES["its last byte missing"])()), NO_SIGNATURE),
    Attack("signature after the chunks", lambda: with_trailer("X-Signature"),
           "Missing header: X-Signature"),
    Attack("length and chunks both", lambda: chunked(vote(), more=(b"Content-Length: 5",)),
           NO_HTTP, 400),
    Attack("chunks and length both", lambda: (made := chunked(vote()))._replace(
        framing=(b"Content-Length: 5", *made.framing)), NO_HTTP, 400),
    Attack("two lengths", framed(b"Content-Length: 5", b"Content-Length: 6"), NO_HTTP, 400),
    Attack("a negative length", framed(b"Content-Length: -1"), NO_HTTP, 400),
    Attack("a length with a plus", framed(b"Content-Length: +5"), NO_HTTP, 400),
    Attack("a length in hex", framed(b"Content-Length: 0x5"), NO_HTTP, 400),
    Attack("an enormous length", framed(b"Content-Length: " + b"9" * 400), "", (400, 413)),
    Attack("another transfer encoding", framed(b"Transfer-Encoding: gzip"), "", (400, 401)),
    Attack("chunks in another spelling", framed(b"Transfer-Encoding: xchunked"), "", (400, 401)),
    Attack("a length shorter than the body", framed(b"Content-Length: 5"), NO_SIGNATURE),
    Attack("no length", framed(), NO_SIGNATURE),
]  # fmt: skip


def with_trailer(name: str) -> Attempt:
    """Return a vote that tells one of its headers only after its body."""
    made = vote()
    trailer = b"%b: %b\r\n\r\n" % (name.encode(), made.header(name))
    without = chunked(made.with_header(name, None))
    return without._replace(body=without.body.removesuffix(b"\r\n") + trailer)


# Times that are no times. Each is signed as it is sent, so that nothing else is wrong.

TIMESTAMPS = {
    "negative": lambda: f"-{now()}",
    "minus zero": lambda: "-0",
    "with a plus": lambda: f"+{now()}",
    "a float": lambda: f"{now()}.0",
    "a float with a point at its end": lambda: f"{now()}.",
    "in scientific notation": lambda: f"{now() // 10}e1",
    "in hex": lambda: hex(now()),
    "with an underscore": lambda: f"{now() // 1000}_{now() % 1000:03}",
    "with a comma": lambda: f"{now() // 1000},{now() % 1000:03}",
    "with a space inside": lambda: f"{now() // 1000} {now() % 1000:03}",
    "with 16 digits": lambda: f"{now():016}",
    "10^15": lambda: str(10**15),
    "10^400": lambda: str(10**400),
    # More digits than Python turns into an integer.
    "10^5000": lambda: "1" + "0" * 5_000,
    "a NaN": lambda: "nan",
    "infinite": lambda: "inf",
    "ISO 8601": lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    "a word": lambda: "now",
}
STALE_TIMES = {
    "zero": lambda: "0",
    "zeros": lambda: "0" * 15,
    "one": lambda: "1",
    "in milliseconds": lambda: str(now() * 1_000),
    "the greatest one": lambda: "9" * 15,
    "a digit short": lambda: str(now())[:-1],
    "a digit more": lambda: f"{now()}0",
    "a day ago": lambda: str(now() - 86_400),
    "in a day": lambda: str(now() + 86_400),
}


def vote_at(timestamp: str, scheme: int) -> Attempt:
    return vote(scheme=scheme, timestamp=timestamp)


UNICODE_TIMES = {
    "full-width digits": FULL_WIDTH,
    "Arabic digits": {ord("0") + digit: 0x0660 + digit for digit in range(10)},
}
TIMES = [
    *(
        Attack(f"time: {name}, scheme {scheme}",
               lambda text=text, scheme=scheme: vote_at(text(), scheme), detail)
        for texts, detail in ((TIMESTAMPS, "X-Timestamp is "), (STALE_TIMES, STALE))
        for name, text in texts.items()
        for scheme in (1, 2)
    ),
    *(
        Attack(f"time: {name}", lambda digits=digits: vote_at(str(now()).translate(digits), 1),
               "X-Timestamp is malformed")
        for name, digits in UNICODE_TIMES.items()
    ),
    Attack("time: a zero before it, added after signing", lambda: (made := vote()).with_header(
        "X-Timestamp", b"0" + made.header("X-Timestamp")), NO_SIGNATURE),
    Attack("time: a second later than was signed", lambda: (made := vote()).with_header(
        "X-Timestamp", str(int(made.header("X-Timestamp")) + 1)), NO_SIGNATURE),
    Attack("time: a second earlier than was signed", lambda: (made := vote()).with_header(
        "X-Timestamp", str(int(made.header("X-Timestamp")) - 1)), NO_SIGNATURE),
]  # fmt: skip


# Whoever has a key, but may not.

VOTE = vote().body
ADMIN_ROUTES = (
    ("POST", "/tasks", b'{"task_id": 2000}'),
    ("POST", "/blacklist", b'{"hotkey": "%b"}' % OLD.encode()),
    ("DELETE", SHUT_OUT, b""),
)
WRITES = (
    ("POST", "/samples", VOTE),
    ("POST", "/samples/batch", b'{"samples": [%b]}' % VOTE),
    *ADMIN_ROUTES,
)
SIGNED_READS = tuple(
    ("GET", path, b"")
    for path in (
        "/miners/all",
        "/miners/valid",
        f"/samples/validator/{BIG}",
        f"/samples/miner/{OLD}?limit=5",
    )
)
STANDING = {
    "stranger": NO_VALIDATOR,
    "poor": NO_VALIDATOR,  # of the metagraph, with too little stake
    "old": NO_VALIDATOR,  # a miner
    "outcast": BLACKLISTED,  # a stranger that the published blacklist names
    "shut": BLACKLISTED,  # a validator that the log's blacklist names
    "fallen": BLACKLISTED,  # an admin that the log's blacklist names
}
STANDINGS = [
    *(
        Attack(
            f"{method} {path} by {name}, scheme {scheme}",
            lambda name=name, method=method, path=path, body=body, scheme=scheme: signed(
                name, method, path, body, scheme=scheme
            ),
            detail,
        )
        for name, detail in STANDING.items()
        for method, path, body in (*WRITES, *SIGNED_READS)
        for scheme in (1, 2)
    ),
    *(
        Attack(
            f"{method} {path} by a validator, scheme {scheme}",
            lambda method=method, path=path, body=body, scheme=scheme: signed(
                "big", method, path, body, scheme=scheme
            ),
            NO_ADMIN,
            403,
        )
        for method, path, body in ADMIN_ROUTES
        for scheme in (1, 2)
    ),
    *(
        Attack(
            f"{method} {path} by nobody",
            lambda method=method, path=path, body=body: Attempt(method, path, (), body),
            "Missing header: X-Validator-Hotkey",
        )
        for method, path, body in (*WRITES, *SIGNED_READS)
    ),
    # Whoever is refused learns nothing of what a route thinks of its path, query or body.
    Attack("a body that is no JSON by a stranger", lambda: signed(
        "stranger", "POST", "/samples", b"{"), NO_VALIDATOR),
    Attack("a bad path by a stranger", lambda: signed(
        "stranger", "DELETE", "/blacklist/x"), NO_VALIDATOR),
    Attack("a bad query by a stranger", lambda: signed(
        "stranger", "GET", f"/samples/miner/{OLD}?limit=0"), NO_VALIDATOR),
    Attack("a bad body by a validator on an admin's route", lambda: signed(
        "big", "POST", "/tasks", b"{"), NO_ADMIN, 403),
]  # fmt: skip


# Other targets for what scheme 2 binds.


def retargeted(
    target: str, method: str = "DELETE", signed_as: str = SHUT_OUT
) -> Callable[[], Attempt]:
    """Make an admin's request that was signed for one target and is sent to another."""
    return lambda: signed("admin", method, signed_as)._replace(target=target)


TARGETS = [
    Attack("a target percent-encoded after signing", retargeted(SHUT_OUT.replace("/b", "/%62")),
           NO_SIGNATURE),
    Attack("a target that was signed percent-encoded", retargeted(
        SHUT_OUT, signed_as=SHUT_OUT.replace("/b", "/%62")), NO_SIGNATURE),
    Attack("a query added", retargeted(SHUT_OUT + "?x"), NO_SIGNATURE),
    Attack("a query taken away", retargeted(SHUT_OUT, signed_as=SHUT_OUT + "?x=1"), NO_SIGNATURE),
    Attack("a newline at the end of the path", retargeted(SHUT_OUT + "%0A"), NO_SIGNATURE),
    Attack("a slash at the end", retargeted(SHUT_OUT + "/"), "", (401, 404, 405)),
    Attack("two slashes", retargeted("/" + SHUT_OUT), "", (401, 404, 405)),
    Attack("a dot", retargeted("/." + SHUT_OUT), "", (401, 404, 405)),
    Attack("two dots", retargeted("/tasks/.." + SHUT_OUT), "", (401, 404, 405)),
    Attack("two dots, encoded", retargeted("/tasks/%2e%2e" + SHUT_OUT), "", (401, 404, 405)),
    Attack("in capitals", retargeted(SHUT_OUT.replace("/b", "/B")), "", (401, 404, 405)),
    Attack("a path parameter", retargeted(SHUT_OUT + ";x"), NO_SIGNATURE),
    Attack("a target in the absolute form, of another path", retargeted(
        f"http://x{SHUT_OUT}", signed_as="/blacklist/x"), NO_SIGNATURE),
    Attack("a target signed in the absolute form", retargeted(
        SHUT_OUT, signed_as=f"http://x{SHUT_OUT}"), NO_SIGNATURE),
    Attack("another method", lambda: signed("admin", "GET", SHUT_OUT)._replace(method="DELETE"),
           NO_SIGNATURE),
    Attack("a method in lower case", lambda: signed("admin", "DELETE", SHUT_OUT)._replace(
        method="delete"), NO_HTTP, 400),
    Attack("a method signed in lower case", lambda: signed("admin", "delete", SHUT_OUT)._replace(
        method="DELETE"), NO_SIGNATURE),
    Attack("a raw byte above ASCII in the path", retargeted(SHUT_OUT + "é"), "", (400, 401)),
]  # fmt: skip

ATTACKS = [
    *SIGNATURES, *SIGNERS, *WEAK, *IN_HEADERS, *IN_TEXT, *HEADERS, *SCHEMES, *AFTER_SIGNING, *TIMES,
    *STANDINGS, *TARGETS,
]  # fmt: skip


def by_name(rows: list[Any]) -> Any:
    """Return the mark that runs a test once a row; a name stands for one row."""
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("row", rows, ids=names)


@by_name(ATTACKS)
def test_attack_is_refused_and_stores_nothing(service: Service, row: Attack):
    before = stored(service.log)
    service.statements.clear()
    attempt = row.make()
    answer = send(service.ports[row.to], attempt)
    asked = service.statements.copy()
    allowed = (row.status,) if isinstance(row.status, int) else row.status
    assert answer.status in allowed, answer
    assert row.detail in answer.detail
    assert stored(service.log) == before
    if answer.status in (401, 403) and not is_an_admins_read(attempt):
        questions = [LATEST_EVENT] * questions_of(row, answer)
        assert asked[: len(questions)] == questions
        # A write that its sender really signed, and that would be good at another time, is used up.
        writes = [sql.split()[0] for sql in asked[len(questions) :]]
        assert writes == (USED_UP if is_good_later(row, attempt, answer) else [])


def is_good_later(row: Attack, attempt: Attempt, answer: Answer) -> bool:
    """Tell whether a known hotkey signed a write that is refused only for now."""
    is_early = "is stale" in answer.detail and "difference is -" not in answer.detail
    is_shut_out = answer.detail == BLACKLISTED and "outcast" not in row.name
    return (
        attempt.method in {"POST", "DELETE"}
        and (is_early or is_shut_out)
        and (row in TIMES or row in STANDINGS)
    )


def is_an_admins_read(attempt: Attempt) -> bool:
    """Tell whether it is remembered that an admin signed this, though it is refused."""
    given_hotkey = dict(attempt.headers).get(b"X-Validator-Hotkey", b"").decode("latin-1")
    return attempt.method == "GET" and given_hotkey in SETTINGS.admin_hotkeys


def questions_of(row: Attack, answer: Answer) -> int:
    """Return how often a refusal may ask the log: once, and only for who signed the request.

    The only question is whether the blacklist has changed.
    """
    if answer.detail == NO_ADMIN:
        return 1
    # Of strangers the published blacklist is enough to tell.
    return 1 if answer.detail == BLACKLISTED and "outcast" not in row.name else 0


class Legitimate(NamedTuple):
    """One row: a request that is let in, and how many records that makes in the log."""

    name: str
    make: Callable[[], Attempt]
    records: int = 1
    to: str = "here"


def respelt(spell: Callable[[str], str]) -> Callable[[], Attempt]:
    return lambda: (made := vote()).with_header(
        "X-Signature", spell(made.header("X-Signature").decode())
    )


LEGITIMATE = [
    *(
        Legitimate(f"a vote in scheme {scheme} to {to}", lambda scheme=scheme: vote(scheme=scheme),
                   to=to)
        for scheme in (1, 2)
        for to in ("here", "beside", "scheme 2 for admins", "scheme 2 for all")
        if (scheme, to) != (1, "scheme 2 for all")
    ),
    *(
        Legitimate(f"{method} {path} by {name} in scheme {scheme}",
                   lambda name=name, method=method, path=path, body=body, scheme=scheme: signed(
                       name, method, path, body, scheme=scheme), records)
        for scheme in (1, 2)
        for name, method, path, body, records in (
            ("big", "POST", "/samples/batch", b'{"samples": [%b, %b]}' % (VOTE, VOTE), 2),
            ("admin", "POST", "/samples", VOTE, 1),
            ("admin", "POST", "/tasks", b'{"task_id": 1000}', 1),
            ("admin", "POST", "/blacklist", b'{"hotkey": "%b"}' % hotkey("shut").encode(), 1),
            *(("big", *read, 0) for read in SIGNED_READS),
        )
    ),
    Legitimate("a signature with 0x", respelt(lambda text: "0x" + text)),
    Legitimate("a signature with 0X", respelt(lambda text: "0X" + text)),
    Legitimate("a signature in capitals", respelt(str.upper)),
    Legitimate("a signature in both cases", respelt(lambda text: text[:64] + text[64:].upper())),
    Legitimate("whitespace before a header's value, which is not part of it",
               respelt(lambda text: f" \t {text}")),
    Legitimate("headers in odd case", lambda: (made := vote())._replace(
        headers=tuple((name.swapcase(), value) for name, value in made.headers))),
    Legitimate("a wallet's <Bytes>", lambda: resigned(
        vote(scheme=1), lambda message: b"<Bytes>%b</Bytes>" % message)),
    Legitimate("the message signed as a text", lambda: resigned(vote(scheme=1), bytes.decode)),
    # What is sent as text beginning with 0x is taken for hex by the signer alone.
    Legitimate("the message signed as 0x and hex", lambda: resigned(
        vote(scheme=1), lambda message: "0x" + message.hex())),
    Legitimate("a zero before the time, signed as sent", lambda: vote(timestamp=f"0{now()}")),
    Legitimate("a nonce of 16 characters", lambda: signed(
        "big", "POST", "/samples", VOTE, nonce="n" * 16)),
    Legitimate("a nonce of 64 characters", lambda: signed(
        "big", "POST", "/samples", VOTE, nonce="~ " * 31 + "~~")),
    Legitimate("a version of 1 and a nonce that means nothing", lambda: vote(
        scheme=1).with_header("X-Signature-Version", "1").with_header("X-Nonce", "")),
    Legitimate("a body in chunks", lambda: chunked(vote())),
    Legitimate("a query that was signed", lambda: signed("big", "POST", "/samples?x=%41", VOTE)),
    # The empty query and the fragment say nothing; the signature covers what is left without them.
    Legitimate("an empty query after signing", lambda: vote()._replace(target="/samples?")),
    Legitimate("a fragment after signing", lambda: vote()._replace(target="/samples#x")),
    Legitimate("a target in the absolute form", lambda: vote()._replace(
        target="http://elsewhere.example/samples")),
]  # fmt: skip


@by_name(LEGITIMATE)
def test_legitimate_request_is_let_in(service: Service, row: Legitimate):
    head = service.log.head()
    answer = send(service.ports[row.to], row.make())
    assert answer.status == 200, answer
    # The submission takes a seq of its own.
    assert service.log.head() - head == (row.records + 1 if row.records else 0)


# The clock.


@pytest.fixture
def clock() -> Iterator[Callable[[int], None]]:
    """A clock that stands still."""
    with stopped_clock() as move:
        yield move


@pytest.mark.parametrize("scheme", [1, 2])
@pytest.mark.parametrize(
    ("offset", "is_fresh"),
    [(0, True), (299, True), (300, True), (301, False), (302, False), (600, False), (10**6, False)],
)
@pytest.mark.parametrize("sign", [-1, 1], ids=["past", "future"])
@pytest.mark.usefixtures("clock")
def test_window_is_exact(service: Service, *, scheme, offset, is_fresh, sign):
    before = stored(service.log)
    answer = send(service.ports["here"], vote_at(str(now() + sign * offset), scheme))
    if is_fresh:
        assert answer.status == 200
        assert service.log.head() == before.head + 2
    else:
        assert answer.status == 401
        said = f"server time is {now()}, the difference is {sign * offset} seconds"
        assert said in answer.detail
        assert stored(service.log) == before


# Blacklisted between two requests.


def blacklist(service: Service, name: str) -> None:
    document = json.dumps({"hotkey": hotkey(name)}).encode()
    added = send(service.ports["here"], signed("admin", "POST", "/blacklist", document))
    assert added.status == 200


@pytest.mark.parametrize("scheme", [1, 2])
def test_blacklisted_between_two_requests(service: Service, scheme):
    name, workers = f"late{scheme}", ("here", "beside")
    used = [vote(name, scheme=scheme) for _ in workers]
    for worker, attempt in zip(workers, used, strict=True):
        assert send(service.ports[worker], attempt).status == 200
    signed_before = vote(name, scheme=scheme)
    blacklist(service, name)
    before = stored(service.log)
    for worker in workers:
        for attempt in (
            signed_before,
            vote(name, scheme=scheme),
            *used,
            *(signed(name, *read, scheme=scheme) for read in SIGNED_READS),
        ):
            answer = send(service.ports[worker], attempt)
            assert (answer.status, answer.detail) == (401, BLACKLISTED)
    assert stored(service.log) == before


@pytest.mark.parametrize(
    ("name", "method", "path", "body", "to"),
    [
        ("slow1", "POST", "/samples", VOTE, "here"),
        ("slow2", "POST", "/samples/batch", b'{"samples": [%b]}' % VOTE, "beside"),
        ("ousted", "POST", "/blacklist", b'{"hotkey": "%b"}' % OLD.encode(), "beside"),
    ],
)
def test_blacklisted_while_the_body_is_on_its_way(
    service: Service, *, name, method, path, body, to
):
    with sent_slowly(service.ports[to], signed(name, method, path, body)) as finish:
        assert finish().status == 200
    with sent_slowly(service.ports[to], signed(name, method, path, body)) as finish:
        blacklist(service, name)
        before = stored(service.log)
        answer = finish()
    assert (answer.status, answer.detail) == (401, BLACKLISTED)
    assert stored(service.log) == before


# What a refusal costs, beside the questions that the table counts.


@pytest.mark.parametrize("path", ["/weights", "/samples/list", "/miners/valid", "/nothing"])
def test_forged_read_of_an_admin_costs_no_write(service: Service, path):
    """Reads of admins are remembered; whoever only says that it is one must not make us write."""
    before = stored(service.log)
    attempt = signed("big", "GET", path, scheme=1).with_header(
        "X-Validator-Hotkey", hotkey("admin")
    )
    service.statements.clear()
    send(service.ports["here"], attempt)
    asked = service.statements.copy()
    assert [sql for sql in asked if not sql.lstrip().upper().startswith("SELECT")] == []
    assert stored(service.log) == before


@pytest.mark.parametrize(
    ("text", "decodings"),
    [(BIG, 1), (BIG + "1", 1), ("5" * 49, 1), ("5" * 50, 0), ("5" * 100_000, 0), ("é" * 40, 0)],
    ids=["valid", "a character more", "longest", "too long", "100,000", "not ASCII"],
)
def test_long_address_is_not_decoded(text, decodings):
    """Decoding is quadratic: counted, not timed."""
    calls = []

    def note(frame: Any, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "ss58_decode":
            calls.append(event)

    public_key.cache_clear()
    sys.setprofile(note)
    try:
        is_hotkey(text)
    finally:
        sys.setprofile(None)
    assert len(calls) == decodings


# Any one byte.

REMOVED = hotkey_of(b"\x77" * 32)  # on the blacklist while requests to remove it are tried
BINDING = {
    "POST /samples": lambda: signed("big", "POST", "/samples", VOTE),
    "POST /samples/batch": lambda: signed(
        "big", "POST", "/samples/batch?x=%41", b'{"samples": [%b]}' % VOTE
    ),
    "POST /tasks": lambda: signed("admin", "POST", "/tasks", b'{"task_id": 1000}'),
    "POST /blacklist": lambda: signed(
        "admin", "POST", "/blacklist", b'{"hotkey": "%b"}' % REMOVED.encode()
    ),
    "DELETE /blacklist": lambda: signed("admin", "DELETE", f"/blacklist/{REMOVED}"),
    "GET /samples/miner": lambda: signed("big", "GET", f"/samples/miner/{OLD}?limit=5"),
}
PARTS = ("method", "target", *ALL, "body")


def with_part(attempt: Attempt, part: str, value: bytes) -> Attempt:
    if part in ALL:
        kept = [(name, value if name == part.encode() else old) for name, old in attempt.headers]
        return attempt._replace(headers=tuple(kept))
    if part == "body":
        return attempt._replace(body=value)
    return attempt._replace(**{part: value.decode("utf-8", "surrogateescape")})


def part_of(attempt: Attempt, part: str) -> bytes:
    if part in ALL:
        return attempt.header(part)
    return attempt.body if part == "body" else str(getattr(attempt, part)).encode()


def is_same(part: str, changed_value: bytes, value: bytes) -> bool:
    """Tell whether HTTP, or hexadecimal, says that nothing was changed."""
    if part == "body":
        return changed_value == value
    if part == "X-Signature":
        changed_value = changed_value.lower()
    if part == "target":
        changed_value = changed_value.removesuffix(b"?").removesuffix(b"#")
    return changed_value.strip(b" \t\r\n") == value


@st.composite
def one_byte_changed(draw: st.DrawFn, attempt: Attempt) -> Attempt:
    """Return the request with one byte replaced, inserted or removed."""
    part = draw(st.sampled_from(PARTS))
    value = part_of(attempt, part)
    position = draw(st.integers(0, len(value)))
    removed = draw(st.integers(0, 1)) if position < len(value) else 0
    # The bytes that mean something to somebody on the way, and all others.
    meaning = st.sampled_from(b"\0\t\n\r %&+,/:;?#.0189aAfFgx\x7f\x80\xff")
    inserted = draw(
        st.one_of(st.just(b""), (meaning | st.integers(0, 255)).map(lambda b: bytes([b])))
    )
    result = value[:position] + inserted + value[position + removed :]
    assume(not is_same(part, result, value))
    return with_part(attempt, part, result)


@pytest.mark.parametrize("make", BINDING.values(), ids=BINDING)
def test_any_one_byte_changed_is_refused(service: Service, make):
    port = service.ports["here"]
    if make is not BINDING["POST /blacklist"]:
        assert send(port, BINDING["POST /blacklist"]()).status == 200
    attempt = make()
    before = stored(service.log)

    @settings(
        max_examples=100, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(one_byte_changed(attempt))
    def is_refused(mutated: Attempt) -> None:
        answer = send(port, mutated)
        assert 400 <= answer.status < 500, answer
        assert service.log.head() == before.head

    is_refused()
    assert stored(service.log) == before
    # Nothing was wrong with it but that byte, and no attempt used its signature up.
    assert send(port, attempt).status == 200
