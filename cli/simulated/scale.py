"""SCALE, as far as a simulated node writes it: numbers, lengths, vectors, options."""

from collections.abc import Iterable

from substrateinterface.utils.ss58 import ss58_decode


def unsigned(value: int, bits: int) -> bytes:
    """Return a number of fixed width, least byte first."""
    return value.to_bytes(bits // 8, "little")


def compact(value: int) -> bytes:
    """Return a number in as few bytes as it needs; the lowest two bits say how many."""
    for mode, bits in enumerate((6, 14, 30)):
        if value < 1 << bits:
            return unsigned(value << 2 | mode, 8 << mode)
    payload = value.to_bytes((value.bit_length() + 7) // 8, "little")
    return bytes([(len(payload) - 4) << 2 | 3]) + payload


def vector(items: Iterable[bytes]) -> bytes:
    """Return encoded items behind their number."""
    encoded = list(items)
    return compact(len(encoded)) + b"".join(encoded)


def blob(content: bytes) -> bytes:
    """Return bytes behind their number."""
    return compact(len(content)) + content


def text(content: str) -> bytes:
    """Return a text in UTF-8 behind the number of its bytes."""
    return blob(content.encode())


def option(content: bytes | None) -> bytes:
    """Return something, or that there is nothing."""
    return b"\x00" if content is None else b"\x01" + content


def flag(*, value: bool) -> bytes:
    """Return a truth value."""
    return b"\x01" if value else b"\x00"


def account(address: str) -> bytes:
    """Return the public key of an SS58 address."""
    return bytes.fromhex(ss58_decode(address))
