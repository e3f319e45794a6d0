"""A simulated node: a chain behind JSON-RPC on a WebSocket, with faults on cue."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from cli.simulated.chain import Block, SimulatedChain
from cli.simulated.metadata import metadata
from cli.simulated.scale import unsigned

MESSAGE_BYTES_MAX = 2**24
START_SECONDS_MAX = 10
KEYS_PAGE_MAX = 1000
CHATTER_SECONDS = 0.05


class RpcError(Exception):
    """What a node refuses: its code and its message."""


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer, or to it."""

    kind: str
    value: Any = None

    @classmethod
    def drop(cls) -> Self:
        """Close the connection."""
        return cls("drop")

    @classmethod
    def hang(cls) -> Self:
        """Never answer."""
        return cls("hang")

    @classmethod
    def error(cls, code: int, message: str) -> Self:
        """Answer with an error."""
        return cls("error", {"code": code, "message": message})

    @classmethod
    def result(cls, value: Any) -> Self:
        """Answer this."""
        return cls("result", value)

    @classmethod
    def change(cls, change: Callable[[Any], Any]) -> Self:
        """Answer what `change` makes of the true result."""
        return cls("change", change)

    @classmethod
    def chatter(cls, text: str) -> Self:
        """Send a text again and again, and never the answer."""
        return cls("chatter", text)

    @classmethod
    def garbage(cls, text: str) -> Self:
        """Send a text that need not be JSON."""
        return cls("garbage", text)


class SimulatedNode:
    """A node on loopback, from entering the `with` block to leaving it."""

    def __init__(self, chain: SimulatedChain, port: int = 0) -> None:
        self.chain, self.port = chain, port
        self.calls: list[str] = []
        self.fault: Callable[[str, list[Any]], Fault | None] = lambda _method, _params: None
        self.open_connections: set[ServerConnection] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self.open_connections)

    def listen(self) -> None:
        """Begin to listen, on the same port as before."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        if not ready.wait(START_SECONDS_MAX):
            raise TimeoutError(f"the simulated node does not listen on port {self.port}")

    def stop_listening(self) -> None:
        """Go away, with all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS_MAX)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Go away."""
        self.stop_listening()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(
            self._client, "127.0.0.1", self.port, max_size=MESSAGE_BYTES_MAX, close_timeout=1
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            ready.set()
            await self._stop.wait()

    async def _client(self, connection: ServerConnection) -> None:
        self.open_connections.add(connection)
        try:
            async for message in connection:
                if not await self._answer(connection, json.loads(message)):
                    return
        except ConnectionClosed:
            pass  # it left without a word, as clients do
        finally:
            self.open_connections.discard(connection)

    async def _answer(self, connection: ServerConnection, request: dict[str, Any]) -> bool:
        """Answer a request; return whether the connection stays open."""
        method, params = request["method"], request.get("params") or []
        self.calls.append(method)
        fault = self.fault(method, params) or Fault("none")
        if fault.kind == "drop":
            return False
        if fault.kind == "hang":
            return True
        while fault.kind == "chatter":
            await connection.send(fault.value)
            await asyncio.sleep(CHATTER_SECONDS)
        if fault.kind == "garbage":
            await connection.send(fault.value)
            return True
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            result = fault.value if fault.kind == "result" else self._result(method, params)
            answer["result"] = fault.value(result) if fault.kind == "change" else result
        except RpcError as error:
            answer["error"] = {"code": error.args[0], "message": error.args[1]}
        if fault.kind == "error":
            answer = {"jsonrpc": "2.0", "id": request["id"], "error": fault.value}
        await connection.send(json.dumps(answer))
        return True

    def _result(self, method: str, params: list[Any]) -> Any:
        if method not in METHODS:
            raise RpcError(-32601, "Method not found")
        return METHODS[method](self.chain, *params)


def _block(chain: SimulatedChain, block_hash: str | None) -> Block:
    block = chain.block(block_hash)
    if block is None:
        raise RpcError(4003, f"Client error: UnknownBlock: State already discarded: {block_hash}")
    return block


def _hex(content: bytes | None) -> str | None:
    return None if content is None else "0x" + content.hex()


def _bytes(text: str | None) -> bytes:
    return bytes.fromhex((text or "").removeprefix("0x"))


def _header(chain: SimulatedChain, block_hash: str | None = None) -> dict[str, Any]:
    number = _block(chain, block_hash).number
    zero = "0x" + "00" * 32
    return {
        "number": hex(number),
        "parentHash": chain.hash_of(number - 1) if number else zero,
        "stateRoot": zero,
        "extrinsicsRoot": zero,
        "digest": {"logs": []},
    }


def _block_hash(chain: SimulatedChain, number: int | None = None) -> str | None:
    if number is None:
        return chain.head
    return chain.hash_of(number) if 0 <= number <= chain.number else None


def _runtime_version(chain: SimulatedChain, block_hash: str | None = None) -> dict[str, Any]:
    return {
        "specName": "node-subtensor",
        "implName": "node-subtensor",
        "authoringVersion": 1,
        "specVersion": _block(chain, block_hash).spec_version,
        "implVersion": 1,
        "apis": [],
        "transactionVersion": 1,
        "stateVersion": 1,
    }


def _storage(chain: SimulatedChain, key: str, block_hash: str | None = None) -> str | None:
    return _hex(_block(chain, block_hash).storage.get(_bytes(key)))


def _storage_many(
    chain: SimulatedChain, keys: list[str], block_hash: str | None = None
) -> list[dict[str, Any]]:
    block = _block(chain, block_hash)
    changes = [[key, _hex(block.storage.get(_bytes(key)))] for key in keys]
    return [{"block": chain.hash_of(block.number), "changes": changes}]


def _keys(
    chain: SimulatedChain,
    prefix: str,
    count: int,
    start: str | None = None,
    block_hash: str | None = None,
) -> list[str | None]:
    if count > KEYS_PAGE_MAX:
        raise RpcError(4002, f"count exceeds maximum value. value: {count}, max: {KEYS_PAGE_MAX}")
    first, after = _bytes(prefix), _bytes(start)
    stored = _block(chain, block_hash).storage
    found = sorted(key for key in stored if key.startswith(first) and key > after)
    return [_hex(key) for key in found[:count]]


def _call(
    chain: SimulatedChain, name: str, arguments: str, block_hash: str | None = None
) -> str | None:
    block = _block(chain, block_hash)
    if name == "SubnetInfoRuntimeApi_get_subnet_state":
        is_ours = _bytes(arguments) == unsigned(chain.netuid, 16)
        return _hex(block.subnet_state if is_ours else b"\x00")
    raise RpcError(4003, f"Client error: Execution failed: Other: Exported method {name} not found")


METHODS: dict[str, Callable[..., Any]] = {
    "rpc_methods": lambda _chain: {"methods": sorted(METHODS)},
    "system_chain": lambda _chain: "Simulated",
    "system_name": lambda _chain: "simulated-subtensor",
    "system_version": lambda _chain: "1",
    "system_properties": lambda _chain: {
        "ss58Format": 42,
        "tokenDecimals": 9,
        "tokenSymbol": "TAO",
    },
    "chain_getHead": _block_hash,
    "chain_getFinalizedHead": _block_hash,
    "chain_getFinalisedHead": _block_hash,
    "chain_getBlockHash": _block_hash,
    "chain_getHeader": _header,
    "state_getRuntimeVersion": _runtime_version,
    "chain_getRuntimeVersion": _runtime_version,
    "state_getMetadata": lambda chain, block_hash=None: _hex(
        metadata(_block(chain, block_hash).spec_version)
    ),
    "state_getStorage": _storage,
    "state_getStorageAt": _storage,
    "state_getKeysPaged": _keys,
    "state_queryStorageAt": _storage_many,
    "state_call": _call,
}
