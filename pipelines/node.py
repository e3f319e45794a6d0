"""The connection to one Subtensor node: blocks, storage and runtime calls, each at a block hash.

Whatever goes wrong, in the network, in the node's answer or in a library's reading of it, comes
out as `NodeError`, and the connection is made anew at the next use. Which values make a metagraph
is not said here.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import websocket
from scalecodec.base import ScaleBytes
from substrateinterface import SubstrateInterface
from substrateinterface.storage import StorageKey

KEYS_PER_REQUEST_MAX = 500
SS58_FORMAT = 42
CLOSE_SECONDS_MAX = 1

Question = tuple[str, str, Sequence[Any]]


class NodeError(Exception):
    """A sentence: which node, and what it did. A URL's credentials and query are left out."""


class Node:
    """A node. Connected at the first use; what it says of its runtime is decoded once."""

    def __init__(self, endpoint: str, timeout_seconds: float) -> None:
        self.name = _shown(endpoint)
        self._endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._socket: websocket.WebSocket | None = None
        self._substrate: SubstrateInterface | None = None
        self._genesis_hash: str | None = None

    @property
    def substrate(self) -> SubstrateInterface:
        """The connected library object."""
        if self._substrate is None:
            with self._told("connect"):
                # Ours, not the library's: it would leave the socket open when it fails, and
                # reconnect in the middle of a sync, perhaps to another node. The timeout is for
                # connecting and for each message; without one a hang is for ever.
                self._socket = websocket.create_connection(
                    self._endpoint, timeout=self._timeout_seconds
                )
                self._substrate = SubstrateInterface(
                    websocket=self._socket, ss58_format=SS58_FORMAT
                )
        return self._substrate

    def head(self) -> tuple[str, int]:
        """Return the newest block's hash and number."""
        block_hash = self._hash("chain_getHead", [])
        header = self.ask("chain_getHeader", [block_hash])
        with self._told("chain_getHeader"):
            return block_hash, int(header["number"], 16)

    def genesis_hash(self) -> str:
        """Return the hash of block 0, asked once a connection."""
        if self._genesis_hash is None:
            self._genesis_hash = self._hash("chain_getBlockHash", [0])
        return self._genesis_hash

    def ask(self, method: str, params: list[Any]) -> Any:
        """Return the result of an RPC; raises `NodeError` for an error object, too."""
        substrate = self.substrate
        with self._told(method):
            answer = substrate.rpc_request(method, params)
            return answer["result"]

    def storage(self, block_hash: str, questions: Sequence[Question]) -> list[Any]:
        """Return the decoded values of (pallet, item, keys) at a block, in order.

        A value is the library's scale object; None where the chain stores nothing, whatever the
        item's default. Raises `NodeError` for an answer that leaves out a key or adds one.
        """
        substrate = self.substrate
        with self._told("its runtime"):
            # Follows an upgrade of the runtime: a new one's metadata is read at its first block.
            substrate.init_runtime(block_hash=block_hash)
            keys = [
                StorageKey.create_from_storage_function(
                    pallet, item, list(params), substrate.runtime_config, substrate.metadata
                )
                for pallet, item, params in questions
            ]
        values: list[Any] = []
        for first in range(0, len(keys), KEYS_PER_REQUEST_MAX):
            asked = keys[first : first + KEYS_PER_REQUEST_MAX]
            names = [key.to_hex() for key in asked]
            answer = self.ask("state_queryStorageAt", [names, block_hash])
            with self._told("state_queryStorageAt"):
                stored = _stored(answer, names, block_hash)
                values += [
                    None
                    if stored[name] is None
                    else key.decode_scale_value(ScaleBytes(stored[name]))
                    for key, name in zip(asked, names, strict=True)
                ]
        return values

    def call(
        self,
        block_hash: str,
        function: str,
        arguments: bytes,
        decode: Callable[[bytes], Any],
    ) -> Any:
        """Call the runtime at a block and return its answer, decoded."""
        answer = self.ask("state_call", [function, "0x" + arguments.hex(), block_hash])
        with self._told(function):
            return decode(bytes.fromhex(answer.removeprefix("0x")))

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut the connection when the block takes longer: a node may drip for ever, and in time.

        Each message has a timeout of its own, which such a node never reaches.
        """
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def close(self) -> None:
        """Let go of the connection; the next use makes a new one."""
        connection, self._socket = self._socket, None
        self._substrate, self._genesis_hash = None, None
        if connection is not None:
            with contextlib.suppress(Exception):  # what the other side thinks of it is its affair
                connection.close(timeout=CLOSE_SECONDS_MAX)
            # Also where the farewell failed, which leaves the library's part open.
            connection.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations

    def _hash(self, method: str, params: list[Any]) -> str:
        found = self.ask(method, params)
        with self._told(method):
            if len(bytes.fromhex(found.removeprefix("0x"))) != 32:
                raise ValueError(f"{found!r} is no block hash")
            return str(found).lower()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn every failure inside into a sentence."""
        try:
            yield
        # The libraries raise what they like on what a node sends: KeyError, JSONDecodeError,
        # WebSocketException, OSError, RemainingScaleBytesNotEmptyException, ...
        except Exception as error:  # noqa: BLE001 - see above
            self.close()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise NodeError(f"{self.name}, {what}: {self._hidden(reason)}") from None

    def _hidden(self, reason: str) -> str:
        """Leave the address out of a library's message: it may hold a key."""
        parts = urlsplit(self._endpoint)
        for secret in (self._endpoint, parts.password, parts.username, parts.query, parts.path):
            if secret and len(secret) > 1:
                reason = reason.replace(secret, "...")
        return reason

    def _cut(self) -> None:
        connection = self._socket
        if connection is not None and connection.sock is not None:
            # Wakes who waits for it; closing would not.
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)


def _shown(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def _stored(answer: Any, names: Sequence[str], block_hash: str) -> dict[str, str | None]:
    """Return what is stored at each key; raise when the answer is not about exactly these."""
    (change,) = answer
    if change["block"].lower() != block_hash:
        raise ValueError(f"the answer is for block {change['block']}, not {block_hash}")
    stored = dict(change["changes"])
    if set(stored) != set(names) or len(change["changes"]) != len(names):
        raise ValueError(f"{len(names)} keys were asked for, {len(change['changes'])} answered")
    return stored
