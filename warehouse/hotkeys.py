"""Hotkeys and signatures: what counts as an address, and whether a message was signed by it.

Everything that reads an address from outside (a header, a body, a path, a metagraph) asks here, so
that one rule decides. Who may do what is not decided here but in `api.auth`.
"""

import hashlib
from functools import lru_cache

import sr25519
from scalecodec.utils.ss58 import ss58_decode, ss58_encode

SS58_PREFIX = 42
HOTKEY_LENGTH_MAX = 49
HOTKEYS_CACHED_MAX = 16_384
HASHED_AT_ONCE_BYTES = 2_047
SMALL_BODY_BYTES_MAX = 16_384

# The chain's default for an empty uid. It accepts one constant signature over ANY message, so
# whoever knew that could speak for it: it is nobody's address here.
ZERO_PUBLIC_KEY = bytes(32)
ZERO_HOTKEY = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"


class InvalidHotkeyError(ValueError):
    """The text is not an SS58 address of network prefix 42 that somebody can hold."""


@lru_cache(HOTKEYS_CACHED_MAX)
def public_key(hotkey: str) -> bytes:
    """Return the 32 bytes behind an SS58 address.

    Raises `InvalidHotkeyError` for anything but the one canonical text of an address with prefix
    42: other prefixes, account indices, hex, surrounding whitespace and the all-zero key included.
    """
    # Length and alphabet first: base58 decoding is quadratic (100,000 characters take 6 s).
    if not 0 < len(hotkey) <= HOTKEY_LENGTH_MAX or not hotkey.isascii():
        raise InvalidHotkeyError("Invalid SS58 address format")
    try:
        decoded = bytes.fromhex(ss58_decode(hotkey, valid_ss58_format=SS58_PREFIX))
        canonical = ss58_encode(decoded, ss58_format=SS58_PREFIX)
    except (ValueError, IndexError, TypeError) as error:
        raise InvalidHotkeyError("Invalid SS58 address format") from error
    # The decoder lets `0x…` and trailing newlines through; the round trip does not.
    if canonical != hotkey or len(decoded) != 32 or decoded == ZERO_PUBLIC_KEY:
        raise InvalidHotkeyError("Invalid SS58 address format")
    return decoded


def is_hotkey(text: str) -> bool:
    """Tell whether `text` is an address that this service accepts."""
    try:
        public_key(text)
    except InvalidHotkeyError:
        return False
    return True


def hotkey_of(key: bytes) -> str:
    """Return the SS58 address of a 32-byte public key."""
    return str(ss58_encode(key, ss58_format=SS58_PREFIX))


def parse_signature(text: str) -> bytes:
    """Return the 64 bytes of a hex signature, `0x` or not; raise `ValueError` otherwise."""
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    # bytes.fromhex skips whitespace, so two texts could stand for one signature: length decides.
    if len(digits) != 128 or not digits.isascii() or not digits.isalnum():
        raise ValueError("a signature is 64 bytes in hex")
    return bytes.fromhex(digits)


def verify(hotkey: str, signature: bytes, message: bytes) -> bool:
    """Tell whether `hotkey` signed `message`, plain or in `<Bytes>` as wallet extensions do.

    Never raises on garbage: an address, a key or a signature that does not parse signed nothing.
    """
    try:
        key = public_key(hotkey)
        return bool(
            sr25519.verify(signature, message, key)
            or sr25519.verify(signature, b"<Bytes>" + message + b"</Bytes>", key)
        )
    except (ValueError, TypeError, IndexError):
        return False


def signed_message(
    *, scheme: int, method: str, path: str, body: bytes, timestamp: str, nonce: str | None
) -> bytes:
    """Return what a request's signature covers. `path` includes the query.

    Scheme 1 binds body and time only; scheme 2 also the method, the path and a nonce.
    """
    digest = _sha256(body).hexdigest()
    if scheme == 1:
        return f"{digest}:{timestamp}".encode()
    return f"v2\n{method}\n{path}\n{digest}\n{timestamp}\n{nonce}".encode()


def _sha256(body: bytes) -> "hashlib._Hash":
    """Return the hash of a body.

    hashlib lets go of Python's lock for more than HASHED_AT_ONCE_BYTES. Where another thread takes
    it meanwhile, to have it back takes longer than to hash a small body.
    """
    if len(body) > SMALL_BODY_BYTES_MAX:
        return hashlib.sha256(body)
    digest = hashlib.sha256()
    for start in range(0, len(body), HASHED_AT_ONCE_BYTES):
        digest.update(body[start : start + HASHED_AT_ONCE_BYTES])
    return digest
