"""A simulated chain: blocks, and the state of one subnet at each of them."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cli.simulated.metadata import storage_key
from cli.simulated.scale import account, blob, compact, flag, option, unsigned, vector

RAO = 10**9
ZERO = bytes(32)
BLOCKS_KEPT = 256
COMMITMENTS_KEPT = 10
# Older runtimes answer with bytes that hold the state, newer ones with the state itself.
WRAPPED_UNTIL = 218


@dataclass
class SimulatedNeuron:
    """A neuron; the zero key is an empty uid."""

    hotkey: bytes
    coldkey: bytes = ZERO
    stake_rao: int = 0
    has_permit: bool = False
    registered_at: int = 0


@dataclass(frozen=True)
class Block:
    """What can be read at one block."""

    number: int
    spec_version: int
    storage: Mapping[bytes, bytes]
    subnet_state: bytes


class SimulatedChain:
    """A chain with one subnet. What is done takes effect with the next block that is mined."""

    def __init__(
        self,
        netuid: int = 99,
        spec_version: int = 425,
        genesis: str = "simulated",
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        first_block: int = 0,
    ) -> None:
        self.netuid, self.spec_version = netuid, spec_version
        self.neurons: list[SimulatedNeuron] = []
        self.number = first_block - 1
        self._genesis, self._now_ms = genesis, now_ms
        self._revealed: dict[bytes, list[tuple[bytes, int]]] = {}
        self._blocks: dict[str, Block] = {}
        self.mine()

    def register(
        self,
        hotkey: str,
        stake_tao: float = 0,
        *,
        coldkey: str | None = None,
        permit: bool = False,
        uid: int | None = None,
    ) -> int:
        """Register a hotkey at the next uid, or in the place of who has `uid`; return the uid."""
        if uid is not None:
            self.deregister(uid)
        else:
            uid = len(self.neurons)
            self.neurons.append(SimulatedNeuron(ZERO))
        self.neurons[uid] = SimulatedNeuron(
            account(hotkey),
            account(coldkey) if coldkey else account(hotkey),
            round(stake_tao * RAO),
            permit,
            self.number + 1,
        )
        return uid

    def deregister(self, uid: int) -> None:
        """Leave the zero key in a uid; its commitments are gone."""
        self._revealed.pop(self.neurons[uid].hotkey, None)
        self.neurons[uid] = SimulatedNeuron(ZERO)

    def set_stake(self, hotkey: str, stake_tao: float) -> None:
        """Give a registered hotkey another stake."""
        key = account(hotkey)
        next(one for one in self.neurons if one.hotkey == key).stake_rao = round(stake_tao * RAO)

    def reveal(
        self,
        hotkey: str,
        content: str | bytes | Mapping[str, object],
        block: int | None = None,
        *,
        is_raw: bool = False,
    ) -> None:
        """Add a revealed commitment; `is_raw`: stored as it is, without the length before it."""
        if isinstance(content, Mapping):
            content = json.dumps(content)
        payload = content.encode() if isinstance(content, str) else content
        revealed = self._revealed.setdefault(account(hotkey), [])
        at_block = self.number + 1 if block is None else block
        revealed.append((payload if is_raw else blob(payload), at_block))
        del revealed[:-COMMITMENTS_KEPT]

    def upgrade_runtime(self, spec_version: int) -> None:
        """Let the next block be made by another runtime."""
        self.spec_version = spec_version

    def mine(self, count: int = 1) -> str:
        """Mine blocks and return the last one's hash."""
        for _ in range(count):
            self.number += 1
            block = Block(
                self.number, self.spec_version, self._storage(), self._subnet_state_answer()
            )
            self._blocks[self.hash_of(self.number)] = block
            self._blocks.pop(self.hash_of(self.number - BLOCKS_KEPT), None)
        return self.head

    @property
    def head(self) -> str:
        """The newest block's hash."""
        return self.hash_of(self.number)

    @property
    def genesis_hash(self) -> str:
        """Block 0's hash."""
        return self.hash_of(0)

    def hash_of(self, number: int) -> str:
        """Return a block's hash."""
        seed = f"{self._genesis} {number}".encode()
        return "0x" + hashlib.blake2b(seed, digest_size=32).hexdigest()

    def block(self, block_hash: str | None) -> Block | None:
        """Return a block, None if it is not kept; the newest without a hash."""
        return self._blocks.get(block_hash or self.head)

    def _storage(self) -> dict[bytes, bytes]:
        netuid = unsigned(self.netuid, 16)
        subnet = "SubtensorModule"
        permits = vector(flag(value=one.has_permit) for one in self.neurons)
        active = vector(flag(value=True) for _ in self.neurons)
        stored = {
            storage_key("System", "Number"): unsigned(self.number, 32),
            storage_key("Timestamp", "Now"): unsigned(self._now_ms(), 64),
            storage_key(subnet, "NetworksAdded", netuid): flag(value=True),
            storage_key(subnet, "SubnetworkN", netuid): unsigned(len(self.neurons), 16),
            storage_key(subnet, "ValidatorPermit", netuid): permits,
            storage_key(subnet, "Active", netuid): active,
        }
        for uid, one in enumerate(self.neurons):
            place = unsigned(uid, 16)
            stored[storage_key(subnet, "Keys", netuid, place)] = one.hotkey
            stored[storage_key(subnet, "Uids", netuid, one.hotkey)] = place
            registered = unsigned(one.registered_at, 64)
            stored[storage_key(subnet, "BlockAtRegistration", netuid, place)] = registered
        for hotkey, revealed in self._revealed.items():
            entries = vector(blob(content) + unsigned(block, 64) for content, block in revealed)
            stored[storage_key("Commitments", "RevealedCommitments", netuid, hotkey)] = entries
        return stored

    def _subnet_state_answer(self) -> bytes:
        state = self.subnet_state()
        return blob(state) if self.spec_version <= WRAPPED_UNTIL else option(state)

    def subnet_state(self) -> bytes:
        """Return the SubnetState of the next block, all its vectors by uid."""
        zeros = vector(compact(0) for _ in self.neurons)
        stakes = vector(compact(one.stake_rao) for one in self.neurons)
        return b"".join(
            [
                compact(self.netuid),
                vector(one.hotkey for one in self.neurons),
                vector(one.coldkey for one in self.neurons),
                vector(flag(value=True) for _ in self.neurons),  # active
                vector(flag(value=one.has_permit) for one in self.neurons),
                zeros,  # pruning_score
                zeros,  # last_update
                zeros * 6,  # emission, dividends, incentives, consensus, trust, rank
                vector(compact(one.registered_at) for one in self.neurons),
                zeros * 2,  # alpha_stake, tao_stake
                stakes,  # total_stake
                vector([zeros]),  # emission_history
            ]
        )
