"""Who sent a request: the headers, the clock, the registration, the signature, the blacklist.

Checked in that order, cheap before dear, and nothing of the log is read for whoever has not signed.
A stranger costs no curve operation either. What a signature covers is
`warehouse.hotkeys.signed_message`; what an accepted hotkey may do is up to the routes.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from api.errors import INVALID_HOTKEY, BodyTooLargeError
from api.settings import ApiSettings
from api.snapshot import Snapshots
from warehouse.hotkeys import is_hotkey, parse_signature, signed_message, verify
from warehouse.log import LogReader
from warehouse.records import SignedRequest

HOTKEY = b"x-validator-hotkey"
SIGNATURE = b"x-signature"
TIMESTAMP = b"x-timestamp"
VERSION = b"x-signature-version"
NONCE = b"x-nonce"
NAMES = {
    HOTKEY: "X-Validator-Hotkey",
    SIGNATURE: "X-Signature",
    TIMESTAMP: "X-Timestamp",
    VERSION: "X-Signature-Version",
    NONCE: "X-Nonce",
}
# 64 bytes in hex with 0x are 130 characters; nothing that is well-formed is longer.
VALUE_LENGTH_MAX = 130
UNIX_TIME = re.compile(r"[0-9]{1,15}", re.ASCII)
NONCE_FORM = re.compile(r"[\x20-\x7e]{16,64}", re.ASCII)


class Credentials(NamedTuple):
    """Well-formed authentication headers; nothing about them is verified."""

    hotkey: str
    signature: bytes
    timestamp: str
    scheme: int
    nonce: str | None


class UnauthorizedError(HTTPException):
    """A 401. `reason` is one word of a few, for counting; `detail` is for the client."""

    def __init__(self, reason: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(401, detail, headers)
        self.reason = reason
        # What had been read of the request by then.
        self.body: bytes | None = None


def credentials(headers: Iterable[tuple[bytes, bytes]]) -> Credentials:
    """Return the authentication headers; raise the 401 that says which is missing or malformed."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name not in NAMES:
            continue
        # Two of one kind: this service and whatever stands before it may believe different ones.
        if name in found:
            raise UnauthorizedError("doubled", f"{NAMES[name]} is given more than once")
        if len(value) > VALUE_LENGTH_MAX or not value.isascii():
            raise UnauthorizedError("malformed", f"{NAMES[name]} is malformed")
        found[name] = value.decode("ascii")
    for name in (HOTKEY, SIGNATURE, TIMESTAMP):
        if not found.get(name):
            raise UnauthorizedError("missing", f"Missing header: {NAMES[name]}")
    if not is_hotkey(found[HOTKEY]):
        raise UnauthorizedError("malformed", f"X-Validator-Hotkey: {INVALID_HOTKEY}")
    try:
        signature = parse_signature(found[SIGNATURE])
    except ValueError:
        raise UnauthorizedError("malformed", "X-Signature is not 64 bytes in hex") from None
    if not UNIX_TIME.fullmatch(found[TIMESTAMP]):
        raise UnauthorizedError("malformed", "X-Timestamp is not Unix seconds in decimal")
    scheme, nonce = _scheme(found)
    return Credentials(found[HOTKEY], signature, found[TIMESTAMP], scheme, nonce)


def credentials_of(request: Request) -> Credentials:
    """Return a request's credentials, read once for all layers; raise as `credentials` does."""
    state: dict[str, Any] = request.scope["state"]
    found: Credentials | None = state.get("credentials")
    if found is None:
        found = state["credentials"] = credentials(request.scope["headers"])
    return found


def _scheme(found: dict[bytes, str]) -> tuple[int, str | None]:
    version = found.get(VERSION, "1")
    if version == "1":
        return 1, None
    if version != "2":
        raise UnauthorizedError("malformed", "X-Signature-Version is neither 1 nor 2")
    nonce = found.get(NONCE)
    if not nonce:
        raise UnauthorizedError("missing", "Missing header: X-Nonce")
    if not NONCE_FORM.fullmatch(nonce):
        raise UnauthorizedError("malformed", "X-Nonce is not 16 to 64 printable ASCII characters")
    return 2, nonce


def check_freshness(timestamp: str, now_unix: int, expiry_seconds: int) -> None:
    """Raise the 401 that lets a client with a wrong clock correct itself."""
    difference = int(timestamp) - now_unix
    if abs(difference) > expiry_seconds:
        raise UnauthorizedError(
            "early" if difference > 0 else "stale",
            f"X-Timestamp is stale: server time is {now_unix}, "
            f"the difference is {difference} seconds, {expiry_seconds} are allowed",
            {"X-Server-Time": str(now_unix)},
        )


def check_registration(hotkey: str, settings: ApiSettings, snapshots: Snapshots) -> None:
    """Raise the 401 for a hotkey that is neither an admin nor registered. From memory.

    Raises `NotReadyError` when only a generation could tell and there is none.
    """
    if hotkey in settings.admin_hotkeys:
        return
    snapshot = snapshots.current()
    if snapshot.is_registered(hotkey):
        return
    # The published blacklist will do for a stranger, who is refused either way.
    if hotkey in snapshot.blacklisted:
        raise blacklisted()
    raise UnauthorizedError("unregistered", "this hotkey is not a registered validator")


def blacklisted() -> UnauthorizedError:
    """Return the 401 for a hotkey that is on the blacklist."""
    return UnauthorizedError("blacklisted", "this hotkey is blacklisted")


def check_blacklist(hotkey: str, log: LogReader, *, is_append: bool) -> None:
    """Raise the 401 for a hotkey that is on the blacklist now.

    An append passes by what was known before: it is judged again when it is committed. Raises
    `LogError` when the blacklist cannot be read: nobody is let in on a guess.
    """
    if is_append and hotkey not in log.known_admin_state().blacklist:
        return
    if hotkey in log.admin_state().blacklist:
        raise blacklisted()


def method_of(request: Request) -> str:
    """Return the method as sent: a HEAD is routed as a GET."""
    sent: str = request.scope.get("leoma.method", request.method)
    return sent


def path_of(request: Request) -> str:
    """Return the path and query as sent, percent-encoding and all."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    return (raw + b"?" + query if query else raw).decode("ascii", "backslashreplace")


def check_declared_length(request: Request, body_bytes_max: int) -> None:
    """Raise `BodyTooLargeError` for a Content-Length above the limit, before anything is read."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > body_bytes_max:
        raise BodyTooLargeError(body_bytes_max)


async def read_body(request: Request, body_bytes_max: int) -> bytes:
    """Return the body; raise `BodyTooLargeError` as soon as more than the limit has arrived."""
    check_declared_length(request, body_bytes_max)
    return await _arrived(request.receive, body_bytes_max)


async def _arrived(receive: Receive, body_bytes_max: int) -> bytes:
    # In one array: as objects, pieces of a byte would take fifty times what is counted of them.
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        if len(body) + len(piece) > body_bytes_max:
            raise BodyTooLargeError(body_bytes_max)
        is_last = not message.get("more_body", False)
        if is_last and not body:
            return piece
        body += piece
        if is_last:
            return bytes(body)


def is_signed(signed: Credentials, method: str, path: str, body: bytes) -> bool:
    """Tell whether the hotkey signed this request."""
    message = signed_message(
        scheme=signed.scheme,
        method=method,
        path=path,
        body=body,
        timestamp=signed.timestamp,
        nonce=signed.nonce,
    )
    return verify(signed.hotkey, signed.signature, message)


def check_signature(signed: Credentials, method: str, path: str, body: bytes) -> None:
    """Raise the 401 where the hotkey did not sign this request."""
    if not is_signed(signed, method, path, body):
        raise UnauthorizedError("signature", "X-Signature does not verify")


def may_be_good_later(
    error: UnauthorizedError, given: Credentials, settings: ApiSettings, snapshots: Snapshots
) -> bool:
    """Tell whether a refused write would be accepted at another time, when it is sent again.

    Its sender may have changed its mind by then. Of strangers nothing is kept.
    """
    is_known = given.hotkey in settings.admin_hotkeys or (
        snapshots.latest is not None and snapshots.latest.is_registered(given.hotkey)
    )
    return is_known and error.reason in {"early", "blacklisted"}


async def authenticated(
    request: Request,
    settings: ApiSettings,
    snapshots: Snapshots,
    log: LogReader,
    *,
    now_unix: Callable[[], int],
    is_admin_route: bool,
    is_append: bool,
) -> SignedRequest:
    """Return the request as signed by an accepted hotkey, its body read.

    Raises 401, or 403 for a valid signature of a non-admin on an admin route, `BodyTooLargeError`,
    `NotReadyError` or `LogError`.
    """
    check_declared_length(request, settings.max_body_size)
    given = credentials_of(request)
    required = settings.require_signature_v2
    if given.scheme == 1 and (required == "all" or (required == "admin" and is_admin_route)):
        raise UnauthorizedError("version", "X-Signature-Version: 2 is required here")
    check_freshness(given.timestamp, now_unix(), settings.signature_expiry_seconds)
    check_registration(given.hotkey, settings, snapshots)
    body = await _arrived(request.receive, settings.max_body_size)
    method, path = method_of(request), path_of(request)
    # The sender decides how long its body takes: who left in the meantime, or whose signature
    # expired, must not get in through a connection that was let in before.
    try:
        check_freshness(given.timestamp, now_unix(), settings.signature_expiry_seconds)
        check_registration(given.hotkey, settings, snapshots)
        check_signature(given, method, path, body)
        check_blacklist(given.hotkey, log, is_append=is_append)
    except UnauthorizedError as error:
        error.body = body
        raise
    if is_admin_route and given.hotkey not in settings.admin_hotkeys:
        raise HTTPException(403, "this hotkey is not an admin")
    return SignedRequest(
        hotkey=given.hotkey,
        signature=given.signature,
        scheme=given.scheme,
        timestamp=given.timestamp,
        nonce=given.nonce,
        method=method,
        path=path,
        body=body,
    )
