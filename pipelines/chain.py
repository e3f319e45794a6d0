"""A sync with a live chain: all neurons and their revealed commitments at one block.

Stake is the runtime's own sum (`total_stake` of the runtime API SubnetInfoRuntimeApi), which has
inherited and root stake in it; no sum of storage items has. Every read is at one block hash: two
reads at two heads make pairs that never existed together. Each hotkey's commitments are asked for
by name, so that a gap in the answer is told from a miner without any.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from pipelines.metagraph import INT64_MAX, MetagraphError
from pipelines.neurons import ChainState, Neuron, Revealed
from pipelines.node import Node, NodeError
from pipelines.scale import ScaleError, ScaleReader
from pipelines.settings import PipelineSettings
from warehouse.hotkeys import ZERO_HOTKEY, hotkey_of

SUBNET_STATE = "SubnetInfoRuntimeApi_get_subnet_state"

Value = TypeVar("Value")


class ContradictionError(Exception):
    """What a node says of the chain cannot be, or is not what was asked for."""


@dataclass(frozen=True)
class SubnetState:
    """What is used of the runtime's SubnetState; each list by uid."""

    netuid: int
    hotkeys: list[bytes]
    coldkeys: list[bytes]
    stakes_rao: list[int]


class ChainNodes:
    """The nodes of `CHAIN_SOURCE` as one source: the first with a whole answer is believed.

    `refuse_regress` is given the genesis hash and the block of each node and raises
    `MetagraphError` for those that cannot follow what was read before.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        refuse_regress: Callable[[str, int], None] = lambda _genesis_hash, _block: None,
    ) -> None:
        self._settings = settings
        self._refuse_regress = refuse_regress
        self._nodes = [
            Node(endpoint, settings.chain_timeout_seconds) for endpoint in settings.chain_endpoints
        ]

    def sync(self) -> ChainState:
        """Read the chain now; raise `MetagraphError` that says what each node did."""
        failures = []
        for node in list(self._nodes):
            try:
                with node.within(self._settings.chain_sync_seconds_max):
                    state = self._read(node)
            except (NodeError, ContradictionError, MetagraphError) as error:
                is_named = isinstance(error, NodeError)
                failures.append(str(error) if is_named else f"{node.name}: {error}")
                # An address may stand for many machines: the next sync may find a better one.
                node.close()
                continue
            # The one that answered is asked first next time.
            self._nodes.remove(node)
            self._nodes.insert(0, node)
            return state
        raise MetagraphError(f"the chain cannot be read: {'; '.join(failures)}")

    def close(self) -> None:
        """Let go of all connections."""
        for node in self._nodes:
            node.close()

    def _read(self, node: Node) -> ChainState:
        netuid = self._settings.netuid
        genesis_hash = node.genesis_hash()
        self._refuse_other_chain(genesis_hash)
        block_hash, block = node.head()
        self._refuse_regress(genesis_hash, block)
        number, now, is_there, size = node.stored(
            block_hash,
            [
                ("System", "Number", []),
                ("Timestamp", "Now", []),
                ("SubtensorModule", "NetworksAdded", [netuid]),
                ("SubtensorModule", "SubnetworkN", [netuid]),
            ],
        )
        # A head that is too high would be in force for ever: whatever comes after it lags.
        if (own_number := _number("System.Number", number, 32)) != block:
            raise ContradictionError(f"its newest block is {block}, and calls itself {own_number}")
        self._refuse_old(block, _number("Timestamp.Now", now, 64))
        if is_there is None or not _value("NetworksAdded", is_there, ScaleReader.flag):
            raise ContradictionError(f"netuid {netuid} does not exist on this chain")
        answer = node.call(block_hash, SUBNET_STATE, netuid.to_bytes(2, "little"))
        neurons = self._neurons(_subnet_state(answer), _number("SubnetworkN", size, 16))
        contents = node.stored(
            block_hash,
            [("Commitments", "RevealedCommitments", [netuid, one.hotkey]) for one in neurons],
        )
        return ChainState(
            netuid,
            block,
            block_hash,
            genesis_hash,
            tuple(
                replace(one, revealed=_revealed(one.hotkey, content, block))
                for one, content in zip(neurons, contents, strict=True)
            ),
        )

    def _refuse_other_chain(self, genesis_hash: str) -> None:
        wanted = self._settings.chain_genesis.lower()
        if wanted and genesis_hash != wanted:
            raise ContradictionError(
                f"it is of the chain {genesis_hash}, but CHAIN_GENESIS is {wanted}"
            )

    def _refuse_old(self, block: int, now_ms: int) -> None:
        age_seconds = time.time() - now_ms / 1000
        if age_seconds > self._settings.chain_block_age_seconds_max:
            raise ContradictionError(
                f"it does not follow the chain: its newest block, {block}, is "
                f"{age_seconds:.0f} seconds old"
            )

    def _neurons(self, state: SubnetState, size: int) -> list[Neuron]:
        """Return the neurons without commitments; the zero key is an empty uid."""
        if state.netuid != self._settings.netuid:
            raise ContradictionError(
                f"asked about netuid {self._settings.netuid}, it answered about {state.netuid}"
            )
        vectors = (state.hotkeys, state.coldkeys, state.stakes_rao)
        if any(len(vector) != size for vector in vectors):
            lengths = ", ".join(str(len(vector)) for vector in vectors)
            raise ContradictionError(
                f"the subnet has {size} neurons, the answer {lengths} of hotkeys, coldkeys, stakes"
            )
        neurons = [
            Neuron(uid, hotkey_of(hotkey), hotkey_of(coldkey), stake_rao)
            for uid, (hotkey, coldkey, stake_rao) in enumerate(zip(*vectors, strict=True))
        ]
        neurons = [one for one in neurons if one.hotkey != ZERO_HOTKEY]
        _refuse_repeats(neurons)
        self._refuse_stakes(neurons)
        return neurons

    def _refuse_stakes(self, neurons: list[Neuron]) -> None:
        if not neurons:
            raise ContradictionError(f"netuid {self._settings.netuid} has no neurons")
        # The rules sum and double stakes in 64 bits.
        if 2 * sum(one.stake_rao for one in neurons) > INT64_MAX:
            raise ContradictionError("the stakes sum to 2**62 rao or more")
        least_rao = self._settings.parameters().min_validator_stake_rao
        highest_rao = max(one.stake_rao for one in neurons)
        if highest_rao < least_rao or not highest_rao:
            raise ContradictionError(
                "no neuron has MIN_VALIDATOR_STAKE "
                f"({self._settings.min_validator_stake} TAO); the highest stake is "
                f"{highest_rao / 10**9:.9f}"
            )


def _refuse_repeats(neurons: list[Neuron]) -> None:
    uids: dict[str, int] = {}
    for one in neurons:
        first = uids.setdefault(one.hotkey, one.uid)
        if first != one.uid:
            raise ContradictionError(
                f"a hotkey has two uids: {one.hotkey} has {first} and {one.uid}"
            )


def _value(name: str, content: bytes, read: Callable[[ScaleReader], Value]) -> Value:
    """Return what `read` makes of all the bytes."""
    reader = ScaleReader(content)
    try:
        value = read(reader)
        reader.end()
    except ScaleError as error:
        raise ContradictionError(f"{name} is not what it was: {error}") from None
    return value


def _number(name: str, content: bytes | None, bits: int) -> int:
    if content is None:
        raise ContradictionError(f"{name} is absent")
    return _value(name, content, lambda reader: reader.unsigned(bits))


def _subnet_state(answer: bytes) -> SubnetState:
    """Read an option of a SubnetState, or, from older runtimes, its bytes behind their number.

    Which one it is shows in what fits: the number of bytes may begin like an option.
    """
    if answer == b"\x00":
        raise ContradictionError("the runtime knows no such subnet")
    problems = []
    for form in (_optional, _wrapped):
        try:
            return _fields(form(answer))
        except ScaleError as error:
            problems.append(str(error))
    raise ContradictionError(f"{SUBNET_STATE} is not what it was: {', or '.join(problems)}")


def _optional(answer: bytes) -> ScaleReader:
    reader = ScaleReader(answer)
    if not reader.flag():
        raise ScaleError("it begins like nothing and goes on")
    return reader


def _wrapped(answer: bytes) -> ScaleReader:
    reader = ScaleReader(answer)
    state = reader.blob()
    reader.end()
    return ScaleReader(state)


def _fields(reader: ScaleReader) -> SubnetState:
    """Read a SubnetState field by field, in the order of the runtime's declaration."""
    netuid = reader.compact()
    hotkeys = reader.vector(lambda: reader.take(32))
    coldkeys = reader.vector(lambda: reader.take(32))
    for _ in ("active", "validator_permit"):
        reader.vector(reader.flag)
    for _ in (
        *("pruning_score", "last_update", "emission", "dividends", "incentives", "consensus"),
        *("trust", "rank", "block_at_registration", "alpha_stake", "tao_stake"),
    ):
        reader.vector(reader.compact)
    stakes_rao = reader.vector(reader.compact)
    # emission_history. Of no use but this: if a runtime put a field before the stakes, or took one
    # away, another field would pass for them, and this one would not be here.
    reader.vector(lambda: reader.vector(reader.compact))
    return SubnetState(netuid, hotkeys, coldkeys, stakes_rao)


def _revealed(hotkey: str, content: bytes | None, head: int) -> tuple[Revealed, ...]:
    """Return what a hotkey revealed. What the miner wrote is handed on as it is."""
    if content is None:
        return ()
    entries = _value(
        f"RevealedCommitments of {hotkey}",
        content,
        lambda reader: reader.vector(lambda: (reader.blob(), reader.unsigned(64))),
    )
    for _, block in entries:
        if block > head:
            raise ContradictionError(
                f"{hotkey} has a commitment of block {block}, after the newest block {head}"
            )
    return tuple(Revealed(block, written) for written, block in entries)
