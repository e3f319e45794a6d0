"""A sync with a live chain: all neurons and their revealed commitments at one block.

Stake is the runtime's own sum (`total_stake` of the runtime API SubnetInfoRuntimeApi), which has
inherited and root stake in it; no sum of storage items has. Every read is at one block hash: two
reads at two heads make pairs that never existed together. Each hotkey's commitments are asked for
by name, so that a gap in the answer is told from a miner without any.
"""

import time
from typing import Any

from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
from scalecodec.type_registry import load_type_registry_preset

from pipelines.metagraph import INT64_MAX, MetagraphError
from pipelines.neurons import ChainState, Neuron, Revealed
from pipelines.node import Node, NodeError
from pipelines.settings import PipelineSettings
from warehouse.hotkeys import ZERO_HOTKEY, is_hotkey

SUBNET_STATE = "SubnetInfoRuntimeApi_get_subnet_state"
# Up to the field that is needed; later ones may come and go with the runtime.
SUBNET_STATE_TYPE = {
    "type": "struct",
    "type_mapping": [
        ["netuid", "Compact<u16>"],
        ["hotkeys", "Vec<[u8; 32]>"],
        ["coldkeys", "Vec<[u8; 32]>"],
        ["active", "Vec<bool>"],
        ["validator_permit", "Vec<bool>"],
        ["pruning_score", "Vec<Compact<u16>>"],
        ["last_update", "Vec<Compact<u64>>"],
        ["emission", "Vec<Compact<u64>>"],
        ["dividends", "Vec<Compact<u16>>"],
        ["incentives", "Vec<Compact<u16>>"],
        ["consensus", "Vec<Compact<u16>>"],
        ["trust", "Vec<Compact<u16>>"],
        ["rank", "Vec<Compact<u16>>"],
        ["block_at_registration", "Vec<Compact<u64>>"],
        ["alpha_stake", "Vec<Compact<u64>>"],
        ["tao_stake", "Vec<Compact<u64>>"],
        ["total_stake", "Vec<Compact<u64>>"],
    ],
}


class ChainNodes:
    """The nodes of `CHAIN_SOURCE` as one source: the first with a whole answer is believed."""

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._nodes = [
            Node(endpoint, settings.chain_timeout_seconds) for endpoint in settings.chain_endpoints
        ]
        self._types = RuntimeConfigurationObject()
        self._types.update_type_registry(load_type_registry_preset("core"))
        self._types.update_type_registry({"types": {"SubnetState": SUBNET_STATE_TYPE}})

    def sync(self) -> ChainState:
        """Read the chain now; raise `MetagraphError` that says what each node did."""
        failures = []
        for node in list(self._nodes):
            try:
                with node.within(self._settings.chain_sync_seconds_max):
                    state = self._read(node)
            except NodeError as error:
                failures.append(str(error))
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
        wanted = self._settings.chain_genesis.lower()
        if wanted and genesis_hash != wanted:
            raise NodeError(
                f"{node.name} is of the chain {genesis_hash}, but CHAIN_GENESIS is {wanted}"
            )
        block_hash, block = node.head()
        now, is_there, size = node.storage(
            block_hash,
            [
                ("Timestamp", "Now", []),
                ("SubtensorModule", "NetworksAdded", [netuid]),
                ("SubtensorModule", "SubnetworkN", [netuid]),
            ],
        )
        self._refuse_old(node, now, block)
        if is_there is None or is_there.value is not True:
            raise NodeError(f"{node.name}: netuid {netuid} does not exist on this chain")
        if size is None or not size.value:
            raise NodeError(f"{node.name}: netuid {netuid} has no neurons")
        state = node.call(
            block_hash, SUBNET_STATE, netuid.to_bytes(2, "little"), self._subnet_state
        )
        neurons = self._neurons(node, state, size.value)
        revealed = node.storage(
            block_hash,
            [("Commitments", "RevealedCommitments", [netuid, one.hotkey]) for one in neurons],
        )
        try:
            whole = [
                Neuron(one.uid, one.hotkey, one.coldkey, one.stake_rao, _revealed(found))
                for one, found in zip(neurons, revealed, strict=True)
            ]
        except (AttributeError, TypeError, ValueError) as error:
            raise NodeError(f"{node.name}: the commitments are no list: {error}") from None
        return ChainState(netuid, block, block_hash, genesis_hash, tuple(whole))

    def _refuse_old(self, node: Node, now: Any, block: int) -> None:
        age_seconds = time.time() - now.value / 1000 if now is not None else float("inf")
        if age_seconds > self._settings.chain_block_age_seconds_max:
            raise NodeError(
                f"{node.name} does not follow the chain: its newest block, {block}, is "
                f"{age_seconds:.0f} seconds old"
            )

    def _subnet_state(self, answer: bytes) -> dict[str, Any]:
        """Decode a SubnetState: an option of it, or, from older runtimes, its bytes."""
        wrapped = self._decoded("Bytes", answer)
        if wrapped is not None:
            answer = b"\x01" + wrapped.value_object
        if answer[:1] != b"\x01":
            raise ValueError("there is no such subnet")
        state = self._types.create_scale_object("SubnetState", ScaleBytes(answer[1:]))
        state.decode(check_remaining=False)
        fields: dict[str, Any] = state.value_object
        return {name: fields[name] for name in ("netuid", "hotkeys", "coldkeys", "total_stake")}

    def _decoded(self, kind: str, answer: bytes) -> Any:
        """Return a scale object that takes up all the bytes, None if none does."""
        found = self._types.create_scale_object(kind, ScaleBytes(answer))
        try:
            found.decode(check_remaining=True)
        except Exception:  # noqa: BLE001 - whatever it raises, the bytes are not that
            return None
        return found

    def _neurons(self, node: Node, state: dict[str, Any], size: int) -> list[Neuron]:
        """Return the neurons without commitments; the zero key is an empty uid."""
        netuid = state["netuid"].value
        if netuid != self._settings.netuid:
            raise NodeError(f"{node.name}: asked about {self._settings.netuid}, answered {netuid}")
        vectors = [state[name].value_object for name in ("hotkeys", "coldkeys", "total_stake")]
        if any(len(vector) != size for vector in vectors):
            lengths = ", ".join(str(len(vector)) for vector in vectors)
            raise NodeError(
                f"{node.name}: the subnet has {size} neurons, the answer {lengths} of hotkeys, "
                "coldkeys, stakes"
            )
        neurons = [
            Neuron(uid, _address(node, hotkey), _address(node, coldkey), stake.value)
            for uid, (hotkey, coldkey, stake) in enumerate(zip(*vectors, strict=True))
        ]
        neurons = [one for one in neurons if one.hotkey != ZERO_HOTKEY]
        if len({one.hotkey for one in neurons}) != len(neurons):
            raise NodeError(f"{node.name}: a hotkey has two uids")
        self._refuse_stakes(node, sum(one.stake_rao for one in neurons), neurons)
        return neurons

    def _refuse_stakes(self, node: Node, total_rao: int, neurons: list[Neuron]) -> None:
        if 2 * total_rao > INT64_MAX:
            raise NodeError(f"{node.name}: the stakes sum to 2**62 rao or more")
        least_rao = self._settings.parameters().min_validator_stake_rao
        highest_rao = max((one.stake_rao for one in neurons), default=0)
        if highest_rao < least_rao or not highest_rao:
            raise NodeError(
                f"{node.name}: no neuron has MIN_VALIDATOR_STAKE "
                f"({self._settings.min_validator_stake} TAO); the highest stake is "
                f"{highest_rao / 10**9:.9f}"
            )


def _address(node: Node, key: Any) -> str:
    # The library's scale object of [u8; 32] gives its hex.
    address = str(node.substrate.ss58_encode(key.value))
    if address != ZERO_HOTKEY and not is_hotkey(address):
        raise NodeError(f"{node.name}: {address} is no address")
    return address


def _revealed(found: Any) -> tuple[Revealed, ...]:
    """Return stored commitments. Bytes from `value_object`: `value` is text or hex, as it likes."""
    if found is None:
        return ()
    return tuple(
        Revealed(int(block.value), _raw(content))
        for content, block in (entry.value_object for entry in found.value_object)
    )


def _raw(content: Any) -> bytes:
    raw = content.value_object
    if isinstance(raw, str):
        return bytes.fromhex(raw.removeprefix("0x"))
    if isinstance(raw, bytes | bytearray):
        return bytes(raw)
    return bytes(one.value if hasattr(one, "value") else one for one in raw)
