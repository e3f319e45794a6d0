"""What a simulated node says of itself: storage items and types, as metadata V14.

Items and types are the real chain's, as far as anybody here reads them. The form follows the
runtime: newer ones wrap the netuid in a type of its own.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from cli.simulated.scale import blob, compact, flag, option, text, unsigned, vector

NEWTYPES_SINCE = 300
PRIMITIVES = ("bool", "char", "str", "u8", "u16", "u32", "u64", "u128")
ACCOUNT = ("newtype", "sp_core::crypto::AccountId32", ("array", 32, "u8"))
NETUID = ("newtype", "subtensor_runtime_common::NetUid", "u16")
BALANCE = ("newtype", "subtensor_runtime_common::currency::TaoBalance", "u64")

Type = Any
IDENTITY, TWOX, BLAKE = 6, 5, 2


def twox(content: bytes, rounds: int) -> bytes:
    """Return the xxHash of `content`, 8 bytes a round."""
    return b"".join(
        struct.pack("<Q", xxhash.xxh64_intdigest(content, seed)) for seed in range(rounds)
    )


def hashed(hasher: int, key: bytes) -> bytes:
    """Return a key as its hasher stores it."""
    if hasher == TWOX:
        return twox(key, 1) + key
    if hasher == BLAKE:
        return hashlib.blake2b(key, digest_size=16).digest() + key
    return key


@dataclass(frozen=True)
class Item:
    """A storage item: hashers and types of its keys, type of its value, default (None: absent)."""

    value: Type
    hashers: tuple[int, ...] = ()
    keys: tuple[Type, ...] = ()
    default: bytes | None = None


def by_netuid(value: Type, default: bytes) -> Item:
    """Return an item with one value a subnet."""
    return Item(value, (IDENTITY,), (NETUID,), default)


REVEALED = ("vector", ("tuple", ("vector", "u8"), "u64"))
STORAGE: dict[str, dict[str, Item]] = {
    "System": {"Number": Item("u32", default=unsigned(0, 32))},
    "Timestamp": {"Now": Item("u64", default=unsigned(0, 64))},
    "SubtensorModule": {
        "NetworksAdded": by_netuid("bool", flag(value=False)),
        "SubnetworkN": by_netuid("u16", unsigned(0, 16)),
        "Tempo": by_netuid("u16", unsigned(360, 16)),
        "Active": by_netuid(("vector", "bool"), b"\x00"),
        "ValidatorPermit": by_netuid(("vector", "bool"), b"\x00"),
        "LastUpdate": by_netuid(("vector", "u64"), b"\x00"),
        "Keys": Item(ACCOUNT, (IDENTITY, IDENTITY), (NETUID, "u16"), bytes(32)),
        "Uids": Item("u16", (IDENTITY, BLAKE), (NETUID, ACCOUNT)),
        "Owner": Item(ACCOUNT, (BLAKE,), (ACCOUNT,), bytes(32)),
        "BlockAtRegistration": Item("u64", (IDENTITY, IDENTITY), (NETUID, "u16"), unsigned(0, 64)),
    },
    "Commitments": {"RevealedCommitments": Item(REVEALED, (IDENTITY, TWOX), (NETUID, ACCOUNT))},
}


def storage_key(pallet: str, item: str, *keys: bytes) -> bytes:
    """Return where the chain stores a value; `keys` are SCALE."""
    hashers = STORAGE[pallet][item].hashers
    hashes = (hashed(hasher, key) for hasher, key in zip(hashers, keys, strict=True))
    return twox(pallet.encode(), 2) + twox(item.encode(), 2) + b"".join(hashes)


class Registry:
    """Types by number, in the order in which they were first asked for."""

    def __init__(self, spec_version: int) -> None:
        self._has_newtypes = spec_version >= NEWTYPES_SINCE
        self._numbers: dict[Type, int] = {}
        self._encoded: list[bytes] = []

    def number(self, kind: Type) -> bytes:
        """Return a type's number, compact; a type that is new gets the next one."""
        if kind == NETUID and not self._has_newtypes:
            kind = "u16"
        if kind not in self._numbers:
            self._numbers[kind] = len(self._encoded)
            self._encoded.append(b"")
            self._encoded[self._numbers[kind]] = self._definition(kind)
        return compact(self._numbers[kind])

    def encode(self) -> bytes:
        """Return all types, each behind its number."""
        return vector(compact(number) + one for number, one in enumerate(self._encoded))

    def _definition(self, kind: Type) -> bytes:
        path: Sequence[str] = ()
        if isinstance(kind, str):
            body = b"\x05" + bytes([PRIMITIVES.index(kind)])
        elif kind[0] == "vector":
            body = b"\x02" + self.number(kind[1])
        elif kind[0] == "array":
            body = b"\x03" + unsigned(kind[1], 32) + self.number(kind[2])
        elif kind[0] == "tuple":
            body = b"\x04" + vector(self.number(part) for part in kind[1:])
        else:
            path = kind[1].split("::")
            field = option(None) + self.number(kind[2]) + option(None) + vector([])
            body = b"\x00" + vector([field])
        return vector(map(text, path)) + vector([]) + body + vector([])


def metadata(spec_version: int) -> bytes:
    """Return the metadata of a runtime."""
    registry = Registry(spec_version)
    nothing = registry.number(("tuple",))
    pallets = []
    for index, (name, items) in enumerate(STORAGE.items()):
        entries = vector(_entry(registry, item_name, item) for item_name, item in items.items())
        prefix = text("SS58Prefix") + registry.number("u16") + blob(unsigned(42, 16)) + vector([])
        constants = vector([prefix] if name == "System" else [])
        pallets.append(
            text(name)
            + option(text(name) + entries)
            + option(None) * 2  # calls, events
            + constants
            + option(None)  # errors
            + bytes([index])
        )
    extrinsic = nothing + b"\x04" + vector([])
    return b"meta\x0e" + registry.encode() + vector(pallets) + extrinsic + nothing


def _entry(registry: Registry, name: str, item: Item) -> bytes:
    if item.hashers:
        key = item.keys[0] if len(item.keys) == 1 else ("tuple", *item.keys)
        hashers = vector(bytes([hasher]) for hasher in item.hashers)
        kind = b"\x01" + hashers + registry.number(key) + registry.number(item.value)
    else:
        kind = b"\x00" + registry.number(item.value)
    is_default = item.default is not None
    return text(name) + flag(value=is_default) + kind + blob(item.default or b"") + vector([])
