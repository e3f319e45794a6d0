"""The connection to one Subtensor node: blocks, storage and runtime calls, each at a block hash.

Whatever goes wrong, in the network, in the node's answer or in a library's reading of it, comes
out as `NodeError`, and the connection is made anew at the next use. Which values make a metagraph
is not said here.
"""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import websocket
from scalecodec.base import ScaleBytes
from substrateinterface import SubstrateInterface
from substrateinterface.exceptions import SubstrateRequestException
from substrateinterface.storage import StorageKey

KEYS_PER_REQUEST_MAX = 500
SS58_FORMAT = 42
CLOSE_SECONDS_MAX = 1
# A connection that is being made has no socket yet to be cut: it is looked for again so often.
CUT_AGAIN_SECONDS = 0.1
# 500 keys with ten commitments of 2 kB each are 20 MB in hex.
ANSWER_BYTES_MAX = 64 * 2**20
REASON_CHARACTERS_MAX = 300
SECRET_CHARACTERS_MIN = 3

Question = tuple[str, str, Sequence[Any]]


class NodeError(Exception):
    """A sentence: which node, what it was asked, what happened.

    Of the node's address it has scheme, host and port: the rest may be a password or a key.
    """


class AnswerError(ValueError):
    """What is wrong with an answer, for the end of `NodeError`'s sentence."""


class AddressError(ValueError):
    """What is wrong with the address, without the address."""


class Node:
    """A node. Connected at the first use; what it says of its runtime is decoded once."""

    def __init__(self, endpoint: str, timeout_seconds: float) -> None:
        shown = _shown(endpoint)
        self.name = shown or "a node whose address cannot be read"
        self._endpoint = endpoint if shown else None
        self._secrets = _secrets(endpoint) if shown else []
        self._timeout_seconds = timeout_seconds
        self._connection: _Connection | None = None
        self._substrate: SubstrateInterface | None = None
        self._genesis_hash: str | None = None
        self._cut_after_seconds: float | None = None

    @property
    def substrate(self) -> SubstrateInterface:
        """The connected library object."""
        if self._substrate is None:
            with self._told("connecting"):
                if self._endpoint is None:
                    raise AddressError("give ws://host:port or wss://host:port")
                # Ours, not the library's: it would leave the socket open when it fails, and
                # reconnect in the middle of a sync, perhaps to another node. The timeout is for
                # connecting and for each message; without one a hang is for ever.
                self._connection = _Connection()
                self._connection.settimeout(self._timeout_seconds)
                # No redirects: the operator named the nodes that are believed.
                self._connection.connect(  # type: ignore[no-untyped-call]  # no annotations
                    self._endpoint, redirect_limit=0
                )
                # All types come from the metadata, none from the name that a chain gives itself.
                self._substrate = SubstrateInterface(
                    websocket=self._connection, ss58_format=SS58_FORMAT, auto_discover=False
                )
        return self._substrate

    def head(self) -> tuple[str, int]:
        """Return the newest block's hash and number."""
        block_hash = self._hash("chain_getHead", [])
        header = self.ask("chain_getHeader", [block_hash])
        with self._told("chain_getHeader"):
            number = header.get("number") if isinstance(header, dict) else None
            if not isinstance(number, str) or not re.fullmatch("0x[0-9a-fA-F]{1,8}", number):
                raise AnswerError(f"no block number in {_short(header)}")
            return block_hash, int(number, 16)

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
            if "result" not in answer:
                raise AnswerError("neither a result nor an error")
            return answer["result"]

    def storage(self, block_hash: str, questions: Sequence[Question]) -> list[Any]:
        """Return the decoded values of (pallet, item, keys) at a block, in order.

        A value is the library's scale object; None where the chain stores nothing, whatever the
        item's default. Raises `NodeError` for an answer that leaves out a key or adds one.
        """
        keys = self._keys(block_hash, questions)
        contents = self._stored(block_hash, keys)
        with self._told("state_queryStorageAt"):
            return [
                None if content is None else key.decode_scale_value(ScaleBytes(content))
                for key, content in zip(keys, contents, strict=True)
            ]

    def stored(self, block_hash: str, questions: Sequence[Question]) -> list[bytes | None]:
        """Return the same values as `storage`, but the bytes as they are stored."""
        return self._stored(block_hash, self._keys(block_hash, questions))

    def call(self, block_hash: str, function: str, arguments: bytes) -> bytes:
        """Call a function of the runtime at a block and return its answer, not decoded."""
        answer = self.ask("state_call", [function, "0x" + arguments.hex(), block_hash])
        with self._told(function):
            return _bytes(answer)

    def without_secrets(self, text: str) -> str:
        """Return a text without what the address holds beside scheme, host and port."""
        for secret in self._secrets:
            text = text.replace(secret, "...")
        return text

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut the connection when the block takes longer: a node may drip for ever, and in time.

        Each message has a timeout of its own, which such a node never reaches.
        """
        is_over = threading.Event()
        self._cut_after_seconds = None
        watch = threading.Thread(target=self._cut_after, args=(seconds, is_over), daemon=True)
        watch.start()
        try:
            yield
        finally:
            is_over.set()
            watch.join()
            self._cut_after_seconds = None

    def close(self) -> None:
        """Let go of the connection; the next use makes a new one."""
        connection, self._connection = self._connection, None
        self._substrate, self._genesis_hash = None, None
        if connection is None:
            return
        # A farewell, and no wait for the other side's: a node that is at fault may never send it.
        with contextlib.suppress(Exception):
            connection.settimeout(CLOSE_SECONDS_MAX)
            if connection.connected:
                connection.send_close()
        connection.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations

    def _keys(self, block_hash: str, questions: Sequence[Question]) -> list[StorageKey]:
        substrate = self.substrate
        with self._told("its runtime"):
            # Follows an upgrade of the runtime: a new one's metadata is read at its first block.
            substrate.init_runtime(block_hash=block_hash)
            return [
                StorageKey.create_from_storage_function(
                    pallet, item, list(params), substrate.runtime_config, substrate.metadata
                )
                for pallet, item, params in questions
            ]

    def _stored(self, block_hash: str, keys: Sequence[StorageKey]) -> list[bytes | None]:
        contents: list[bytes | None] = []
        for first in range(0, len(keys), KEYS_PER_REQUEST_MAX):
            names = [key.to_hex() for key in keys[first : first + KEYS_PER_REQUEST_MAX]]
            answer = self.ask("state_queryStorageAt", [names, block_hash])
            with self._told("state_queryStorageAt"):
                changes = _changes(answer, names, block_hash)
                contents += [
                    None if changes[name] is None else _bytes(changes[name]) for name in names
                ]
        return contents

    def _hash(self, method: str, params: list[Any]) -> str:
        found = self.ask(method, params)
        with self._told(method):
            if not isinstance(found, str) or not re.fullmatch("0x[0-9a-fA-F]{64}", found):
                raise AnswerError(f"{_short(found)} is no block hash")
            return found.lower()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn every failure inside into a sentence."""
        try:
            yield
        # The libraries raise what they like on what a node sends: KeyError, JSONDecodeError,
        # WebSocketException, OSError, RemainingScaleBytesNotEmptyException, ... And an interrupt
        # leaves a connection with an answer on its way.
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise NodeError(f"{self.name}, {what}: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        """Return what happened in one line, without anything of the address: it may hold a key."""
        if self._cut_after_seconds is not None:
            return f"it took more than {self._cut_after_seconds:g} seconds in all"
        if isinstance(error, TimeoutError | websocket.WebSocketTimeoutException):
            return f"no answer within {self._timeout_seconds:g} seconds"
        reason = self.without_secrets(_said(error))
        reason = "".join(char if char.isprintable() else " " for char in reason)
        return " ".join(reason.split())[:REASON_CHARACTERS_MAX]

    def _cut_after(self, seconds: float, is_over: threading.Event) -> None:
        wait_seconds = seconds
        while not is_over.wait(wait_seconds):
            self._cut_after_seconds, wait_seconds = seconds, CUT_AGAIN_SECONDS
            connection = self._connection
            stream = connection.sock if connection is not None else None
            if stream is not None:
                # Wakes who waits for it; closing would not.
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)


class _Connection(websocket.WebSocket):
    """A WebSocket whose end is an error, and whose answers have one."""

    def __init__(self) -> None:
        self._answer_bytes = 0
        super().__init__()

    def send(self, payload: bytes | str, opcode: int = websocket.ABNF.OPCODE_TEXT) -> int:
        """Send a frame. A text is a question, and what follows is its answer."""
        if opcode == websocket.ABNF.OPCODE_TEXT:
            self._answer_bytes = 0
        return super().send(payload, opcode)

    def recv(self) -> str | bytes:
        """Return the next message; the other side's farewell is not one."""
        message = super().recv()
        if not message:
            raise websocket.WebSocketConnectionClosedException("closed in due form")
        return message

    def _recv(self, bufsize: int) -> bytes:
        content: bytes = super()._recv(bufsize)  # type: ignore[no-untyped-call]
        self._answer_bytes += len(content)
        if self._answer_bytes > ANSWER_BYTES_MAX:
            raise AnswerError(f"more than {ANSWER_BYTES_MAX} bytes")
        return content


def _shown(endpoint: str) -> str | None:
    """Return scheme, host and port of an address; None when it is not one."""
    # The error quotes what it could not read, which may be a password.
    with contextlib.suppress(ValueError):
        parts = urlsplit(endpoint)
        if parts.hostname:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    return None


def _secrets(endpoint: str) -> list[str]:
    """Return the parts of an address that are not shown, as sent and as meant, longest first."""
    parts = urlsplit(endpoint)
    found = {endpoint, parts.username or "", parts.password or "", parts.path, parts.query}
    found |= {parts.fragment, *parts.path.split("/"), *re.split("[&=]", parts.query)}
    found |= {unquote(one) for one in found}
    return sorted((one for one in found if len(one) >= SECRET_CHARACTERS_MIN), key=len)[::-1]


def _said(error: Exception) -> str:
    """Return what an exception of the libraries or of this module means."""
    if isinstance(error, AddressError):
        return str(error)
    if isinstance(error, AnswerError):
        return f"the answer is wrong: {error}"
    if isinstance(error, websocket.WebSocketBadStatusException):
        # Without headers and body, which may repeat the question with its key.
        return f"HTTP status {error.status_code} instead of a WebSocket"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, websocket.WebSocketConnectionClosedException | ConnectionError):
        return "it closed the connection"
    if isinstance(error, SubstrateRequestException):
        return f"it answered with an error: {_rpc_error(error)}"
    if isinstance(error, json.JSONDecodeError):
        return "the answer is not JSON"
    kind = type(error).__name__
    if isinstance(error, OSError | websocket.WebSocketException):
        return f"the connection failed ({kind}: {error})"
    return f"the answer cannot be read ({kind}: {error})"


def _rpc_error(error: SubstrateRequestException) -> str:
    said = error.args[0] if error.args else None
    if isinstance(said, dict):
        said = ", ".join(f"{name} {value}" for name, value in said.items())
    return str(said)


def _short(value: object) -> str:
    return repr(value)[:80]


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str) or not re.fullmatch("0x([0-9a-fA-F]{2})*", text):
        raise AnswerError(f"{_short(text)} where bytes in hex belong")
    return bytes.fromhex(text[2:])


def _changes(answer: Any, names: Sequence[str], block_hash: str) -> dict[str, Any]:
    """Return what is stored at each key; raise when the answer is not about exactly these."""
    if not isinstance(answer, list) or len(answer) != 1:
        raise AnswerError(f"{len(names)} keys were asked for, {_short(answer)} answered")
    (found,) = answer
    if found["block"].lower() != block_hash:
        raise AnswerError(f"it is for block {_short(found['block'])}, not {block_hash}")
    changes = dict(found["changes"])
    if set(changes) != set(names) or len(found["changes"]) != len(names):
        raise AnswerError(
            f"{len(names)} keys were asked for, and {len(set(names) & set(changes))} of them and "
            f"{len(set(changes) - set(names))} others were answered"
        )
    return changes
