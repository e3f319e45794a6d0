"""A simulated chain that takes weights, and its node: extrinsics are decoded and verified here.

Nothing of the client's library is used for it: what is taken must be right by the chain's rules.
"""

import asyncio
import hashlib
import json

import sr25519

from cli.simulated.chain import SimulatedChain, account
from cli.simulated.node import RpcError, SimulatedNode
from cli.simulated.scale import unsigned, vector
from pipelines.scale import ScaleReader
from tests.cli import weights_runtime as runtime
from warehouse.hotkeys import hotkey_of

TX_VERSION = 1
FINAL_LAG = 2
PAUSE_SECONDS = 0.1
# Of a version that no library decodes, before ours in every block.
INHERENT = "0x0c05ffff"


class RejectedError(Exception):
    """The name of the pallet's error."""


class Taken:
    """An extrinsic as the chain reads it. Raises `RpcError` for one that it would not queue."""

    def __init__(self, chain, content):
        outer = ScaleReader(content)
        self.content = outer.blob()
        reader = ScaleReader(self.content)
        assert reader.take(2) == b"\x84\x00", "a signed extrinsic, its signer by account"
        self.signer = reader.take(32)
        assert reader.take(1) == b"\x01", "sr25519"
        signature = reader.take(64)
        start = len(self.content) - reader.left
        era = reader.unsigned(16)
        self.nonce = reader.compact()
        self.tip = reader.compact()
        assert reader.take(1) == b"\0", "no metadata hash"
        extra = self.content[start : len(self.content) - reader.left]
        self.call = reader.take(reader.left)
        self.period = 2 << (era & 15)
        phase = (era >> 4) * max(self.period >> 12, 1)
        self.birth = (max(chain.number, phase) - phase) // self.period * self.period + phase
        payload = (
            self.call
            + extra
            + unsigned(chain.spec_version, 32)
            + unsigned(TX_VERSION, 32)
            + bytes.fromhex(chain.genesis_hash[2:])
            + bytes.fromhex(chain.hash_of(self.birth)[2:])
            + b"\0"
        )
        if len(payload) > 256:
            payload = hashlib.blake2b(payload, digest_size=32).digest()
        if not sr25519.verify(signature, payload, self.signer):
            raise RpcError(1010, "Invalid Transaction: Transaction has a bad signature")
        if self.nonce < chain.nonces.get(self.signer, 0):
            raise RpcError(1010, "Invalid Transaction: Transaction is outdated")
        if any((one.signer, one.nonce) == (self.signer, self.nonce) for one in chain.pool):
            raise RpcError(1014, "Priority is too low")
        self.text = "0x" + content.hex()


class WeightsChain(SimulatedChain):
    """Takes `set_weights` and `commit_timelocked_weights` by the pallet's own rules.

    `error` is what the next extrinsics fail with, whatever they say; `mangle` is done to weights
    that are taken; `owner` and `owner_hotkey` are the subnet owner's keys, None for unknown.
    """

    def __init__(self, **values):
        self.weights, self.last_updates, self.nonces = {}, {}, {}
        self.timelocked_commits, self.pool, self.bodies = [], [], {}
        self.version_key, self.rate_limit, self.commit_version = 0, 100, 4
        self.weights_min = 1
        self.has_commit_reveal, self.error, self.mangle = False, None, None
        self.owner, self.owner_hotkey = None, None
        self._records = []
        super().__init__(**values)

    def mine(self, count=1):
        """Mine blocks; what is queued goes into the first of them."""
        for _ in range(count):
            taken, self.pool = self.pool, []
            self._records = [runtime.event_record(0)] if taken else []
            for index, one in enumerate(taken, start=1):
                self.nonces[one.signer] = one.nonce + 1
                self._records.append(runtime.event_record(index, self._dispatched(one)))
            super().mine(1)
            self.bodies[self.head] = [INHERENT, *(one.text for one in taken)]
        return self.head

    def _dispatched(self, one):
        """Apply an extrinsic; return the name of its error."""
        if self.error:
            return self.error
        keys = [neuron.hotkey for neuron in self.neurons]
        if one.signer not in keys:
            return "HotKeyNotRegisteredInSubNet"
        uid = keys.index(one.signer)
        arguments = ScaleReader(one.call)
        assert arguments.unsigned(8) == runtime.SUBTENSOR
        function = runtime.CALLS[arguments.unsigned(8)][0]
        assert arguments.unsigned(16) == self.netuid
        try:
            getattr(self, f"_{function}")(uid, arguments)
        except RejectedError as error:
            return str(error)
        assert arguments.left == 0
        self.last_updates[uid] = self.number + 1
        return None

    def _set_weights(self, uid, arguments):
        dests = [arguments.unsigned(16) for _ in range(arguments.compact())]
        values = [arguments.unsigned(16) for _ in range(arguments.compact())]
        if self.has_commit_reveal:
            raise RejectedError("CommitRevealEnabled")
        if arguments.unsigned(64) < self.version_key:
            raise RejectedError("IncorrectWeightVersionKey")
        self._refuse_haste(uid, "SettingWeightsTooFast")
        if not self.neurons[uid].has_permit and dests != [uid]:
            raise RejectedError("NeuronNoValidatorPermit")
        if len(dests) < self.weights_min and dests != [uid]:
            raise RejectedError("WeightVecLengthIsLow")
        if max(dests) >= len(self.neurons):
            raise RejectedError("UidVecContainInvalidOne")
        pairs = list(zip(dests, values, strict=True))
        self.weights[uid] = self.mangle(pairs) if self.mangle else pairs

    def _commit_timelocked_weights(self, uid, arguments):
        commit, reveal_round = arguments.blob(), arguments.unsigned(64)
        if not self.has_commit_reveal:
            raise RejectedError("CommitRevealDisabled")
        if arguments.unsigned(16) != self.commit_version:
            raise RejectedError("IncorrectCommitRevealVersion")
        self._refuse_haste(uid, "CommittingWeightsTooFast")
        hotkey = hotkey_of(self.neurons[uid].hotkey)
        self.timelocked_commits.append((hotkey, self.number + 1, commit, reveal_round))

    def _refuse_haste(self, uid, error):
        last = self.last_updates.get(uid, 0)
        if last and self.number + 1 - last < self.rate_limit:
            raise RejectedError(error)

    def _storage(self):
        netuid, subnet = unsigned(self.netuid, 16), "SubtensorModule"
        uids = range(len(self.neurons))
        plain = {
            "WeightsSetRateLimit": unsigned(self.rate_limit, 64),
            "MinAllowedWeights": unsigned(self.weights_min, 16),
            "WeightsVersionKey": unsigned(self.version_key, 64),
            "CommitRevealWeightsEnabled": runtime.boolean(self.has_commit_reveal),
            "SubnetEpochIndex": unsigned(self.number // 361, 64),
            "LastEpochBlock": unsigned(self.number // 361 * 361, 64),
            "BlocksSinceLastStep": unsigned(self.number % 361, 64),
            "LastUpdate": vector(unsigned(self.last_updates.get(uid, 0), 64) for uid in uids),
        }
        if self.owner:
            plain["SubnetOwner"] = account(self.owner)
        if self.owner_hotkey:
            plain["SubnetOwnerHotkey"] = account(self.owner_hotkey)
        stored = super()._storage()
        stored |= {
            runtime.storage_key(subnet, item, netuid): value for item, value in plain.items()
        }
        for one in self.neurons:
            if any(one.hotkey):
                stored[runtime.storage_key(subnet, "Owner", one.hotkey)] = one.coldkey
        for uid, pairs in self.weights.items():
            value = vector(unsigned(one, 16) + unsigned(weight, 16) for one, weight in pairs)
            stored[runtime.storage_key(subnet, "Weights", netuid, unsigned(uid, 16))] = value
        version = runtime.storage_key(subnet, "CommitRevealWeightsVersion")
        stored[version] = unsigned(self.commit_version, 16)
        for signer, nonce in self.nonces.items():
            stored[runtime.storage_key("System", "Account", signer)] = runtime.account_info(nonce)
        stored[runtime.storage_key("System", "Events")] = vector(self._records)
        return stored


class WeightsNode(SimulatedNode):
    """Its node. `story` is what follows a submission that was answered, in these words.

    `mine` mines a block, `final` makes it final, `drop` ends the connection, `pause` takes a
    moment; any other word is a state that is sent (with the block's hash where it belongs) and then
    in `told`. Without an end it just falls still.
    """

    def __init__(self, chain, story=("ready", "mine", "inBlock", "final", "finalized")):
        super().__init__(chain)
        self.story = story
        self.subscriptions, self.told = 0, []

    def _result(self, method, params):
        chain = self.chain
        if method == "state_getMetadata":
            block = chain.block(params[0] if params else None)
            return "0x" + runtime.metadata(block.spec_version).hex()
        if method == "chain_getFinalizedHead":
            return chain.hash_of(max(chain.number - FINAL_LAG, 0))
        if method == "chain_getBlock":
            header = super()._result("chain_getHeader", params)
            return {"block": {"header": header, "extrinsics": chain.bodies[params[0]]}}
        if method == "author_submitAndWatchExtrinsic":
            chain.pool.append(Taken(chain, bytes.fromhex(params[0][2:])))
            self.subscriptions += 1
            return f"subscription{self.subscriptions}"
        return super()._result(method, params)

    async def _answer(self, connection, request):
        fault = self.fault(request["method"], request.get("params") or [])
        if fault and fault.kind == "error":
            # Who answers with an error has not taken it.
            self.calls.append(request["method"])
            answer = {"jsonrpc": "2.0", "id": request["id"], "error": fault.value}
            await connection.send(json.dumps(answer))
            return True
        queued = len(self.chain.pool)
        is_open = await super()._answer(connection, request)
        is_taken = len(self.chain.pool) > queued
        if not (is_open and is_taken and request["method"] == "author_submitAndWatchExtrinsic"):
            return is_open
        for word in self.story:
            if word == "drop":
                return False
            if word == "mine":
                self.chain.mine()
            elif word == "pause":
                await asyncio.sleep(PAUSE_SECONDS)
            elif word == "final":
                self.chain.mine(FINAL_LAG)
            else:
                await self._tell(connection, word)
        return True

    async def _tell(self, connection, word):
        included = self.chain.head
        for block_hash, body in self.chain.bodies.items():
            if len(body) > 1:
                included = block_hash
        has_block = word in {"inBlock", "finalized", "retracted", "finalityTimeout", "usurped"}
        result = {word: included} if has_block else word
        params = {"subscription": f"subscription{self.subscriptions}", "result": result}
        update = {"jsonrpc": "2.0", "method": "author_extrinsicUpdate", "params": params}
        await connection.send(json.dumps(update))
        self.told.append(word)
