"""What a node says that setting weights depends on, all of it at one block."""

import time
from dataclasses import dataclass
from typing import Any

from scalecodec.base import ScaleBytes

from cli.setting import ChainFacts
from cli.timelock import EpochSchedule
from pipelines.node import Node, NodeError, Question
from warehouse.hotkeys import ZERO_HOTKEY

SUBNET = "SubtensorModule"


@dataclass(frozen=True)
class Terms:
    """In which form the chain takes our weights now.

    `nonce` counts what our hotkey had in blocks, so that whatever is sent while an earlier
    extrinsic still waits takes that one's place in the queue and never joins it. `schedule` and
    `commit_version` are those of commit-reveal, None where the subnet has it off.
    """

    version_key: int
    nonce: int
    schedule: EpochSchedule | None
    commit_version: int | None


def refuse_other_chain(node: Node, genesis: str) -> None:
    """Raise `NodeError` if the node is not of the chain whose block 0 has the hash `genesis`."""
    if genesis and node.genesis_hash() != genesis.lower():
        raise NodeError(
            f"{node.name} is of the chain {node.genesis_hash()}, but {genesis.lower()} is wanted"
        )


def read(
    node: Node, netuid: int, uid: int, own_hotkey: str, block_age_seconds_max: float
) -> tuple[ChainFacts, Terms]:
    """Read the subnet, `uid` and our own hotkey at the node's head; raise `NodeError`.

    A head that is older than `block_age_seconds_max` is an error, too.
    """
    block_hash, block = node.head()
    found = _values(
        node,
        block_hash,
        [
            ("Timestamp", "Now", []),
            (SUBNET, "NetworksAdded", [netuid]),
            (SUBNET, "Keys", [netuid, uid]),
            (SUBNET, "Uids", [netuid, own_hotkey]),
            (SUBNET, "ValidatorPermit", [netuid]),
            (SUBNET, "LastUpdate", [netuid]),
            (SUBNET, "WeightsSetRateLimit", [netuid]),
            (SUBNET, "MinAllowedWeights", [netuid]),
            (SUBNET, "WeightsVersionKey", [netuid]),
            (SUBNET, "CommitRevealWeightsEnabled", [netuid]),
            ("System", "Account", [own_hotkey]),
        ],
    )
    now, has_subnet, key, own, permits, updates, *rules = found
    limit, fewest, version_key, has_commits, account = rules
    _refuse_old(node, now, block, block_age_seconds_max)
    is_known = own is not None and own < len(permits) and own < len(updates)
    if own is not None and has_subnet and not is_known:
        raise NodeError(
            f"{node.name}: uid {own} is ours, but permits end at {len(permits)} and last updates "
            f"at {len(updates)}"
        )
    facts = ChainFacts(
        block=block,
        has_subnet=has_subnet,
        hotkey_at_uid=None if key == ZERO_HOTKEY else key,
        is_owners=_is_owners(node, block_hash, netuid, key),
        own_uid=own,
        has_permit=is_known and permits[own],
        last_update=updates[own] if is_known else 0,
        rate_limit_blocks=limit,
        weights_min=fewest,
        weights=() if own is None else weights(node, block_hash, netuid, own),
    )
    schedule = _schedule(node, block_hash, block, netuid) if has_commits else None
    commit_version = None
    if has_commits:
        (commit_version,) = _values(node, block_hash, [(SUBNET, "CommitRevealWeightsVersion", [])])
    return facts, Terms(version_key, account["nonce"], schedule, commit_version)


def weights(node: Node, block_hash: str, netuid: int, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the weights that a validator has on chain at a block: uid and value, in order."""
    (found,) = _values(node, block_hash, [(SUBNET, "Weights", [netuid, uid])])
    return tuple((int(target), int(value)) for target, value in found)


def _is_owners(node: Node, block_hash: str, netuid: int, hotkey: str) -> bool:
    """Tell whether a hotkey is one of the subnet owner's, as the chain's emission sees it."""
    owners_hotkey, owners_coldkey, coldkey = _values(
        node,
        block_hash,
        [
            (SUBNET, "SubnetOwnerHotkey", [netuid]),
            (SUBNET, "SubnetOwner", [netuid]),
            (SUBNET, "Owner", [hotkey]),
        ],
    )
    # Nobody's key is what the chain says where it knows none, of either side.
    pairs = ((hotkey, owners_hotkey), (coldkey, owners_coldkey))
    return any(one == owners and one != ZERO_HOTKEY for one, owners in pairs)


def _schedule(node: Node, block_hash: str, block: int, netuid: int) -> EpochSchedule:
    tempo, index, last, pending, since, period = _values(
        node,
        block_hash,
        [
            (SUBNET, item, [netuid])
            for item in (
                "Tempo",
                "SubnetEpochIndex",
                "LastEpochBlock",
                "PendingEpochAt",
                "BlocksSinceLastStep",
                "RevealPeriodEpochs",
            )
        ],
    )
    return EpochSchedule(block, tempo, index, last, pending, since, period)


def _values(node: Node, block_hash: str, questions: list[Question]) -> list[Any]:
    """Return plain values; what is not stored has its default in the runtime, or is None."""
    stored = node.storage(block_hash, questions)
    return [
        _default(node, pallet, item) if found is None else found.value
        for found, (pallet, item, _) in zip(stored, questions, strict=True)
    ]


def _default(node: Node, pallet: str, item: str) -> Any:
    substrate = node.substrate
    try:
        function = substrate.metadata.get_metadata_pallet(pallet).get_storage_function(item)
        if function.value["modifier"] != "Default":
            return None
        kind = function.get_value_type_string()
        default = ScaleBytes(function.value_object["default"].value_object)
        return substrate.runtime_config.create_scale_object(kind, default).decode()
    # Whatever the library raises on metadata that it does not understand.
    except Exception as error:
        raise NodeError(f"{node.name}: {pallet}.{item} has no default: {error}") from error


def _refuse_old(node: Node, now_ms: int, block: int, age_seconds_max: float) -> None:
    age_seconds = time.time() - now_ms / 1000
    if age_seconds > age_seconds_max:
        raise NodeError(
            f"{node.name} does not follow the chain: its newest block, {block}, is "
            f"{age_seconds:.0f} seconds old"
        )
