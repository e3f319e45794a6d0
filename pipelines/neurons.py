"""What a chain node tells about a subnet at one block, before anybody judges it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Revealed:
    """A revealed commitment: the stored bytes, their SCALE length included, and their block."""

    block: int
    content: bytes


@dataclass(frozen=True)
class Neuron:
    """One participant. `stake_rao` as the runtime sums it (`total_stake`), never negative.

    `revealed`: its revealed commitments, oldest first, at most the ten that the chain keeps.
    """

    uid: int
    hotkey: str
    coldkey: str
    stake_rao: int
    revealed: tuple[Revealed, ...] = ()


@dataclass(frozen=True)
class ChainState:
    """All neurons of a subnet at one block of one chain, by uid, without empty uids.

    Every hotkey has one uid and every uid one hotkey. `block_hash` and `genesis_hash` are 0x and 64
    lower-case hex digits.
    """

    netuid: int
    block: int
    block_hash: str
    genesis_hash: str
    neurons: tuple[Neuron, ...]


def revealed_text(revealed: Sequence[Revealed]) -> str:
    """Return the `revealed` column of a neuron: JSON of [block, hex]."""
    return json.dumps([[one.block, one.content.hex()] for one in revealed], separators=(",", ":"))


def revealed_in(text: str) -> tuple[Revealed, ...]:
    """Read the `revealed` column back."""
    return tuple(Revealed(block, bytes.fromhex(content)) for block, content in json.loads(text))
