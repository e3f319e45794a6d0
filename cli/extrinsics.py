"""One extrinsic of a hotkey, from its making to what the chain made of it.

What was not seen is never reported as success: after the first byte has left, every failure but the
node's own refusal is `UnknownOutcomeError`.
"""

import time
from dataclasses import dataclass
from typing import Any

from substrateinterface import Keypair, SubstrateInterface
from substrateinterface.exceptions import SubstrateRequestException

# Blocks for which the signature is good. After them a lost extrinsic can no longer come back.
ERA_BLOCKS = 16
# States from which a node says nothing more, and the extrinsic may or may not be in a block.
LAST_STATES = frozenset({"invalid", "dropped", "usurped", "finalityTimeout"})
# Error codes by which a node says that it has not taken it: bad, unknown, of too low a priority, no
# room, no such method. Any other may be a gateway's, which may have handed it on all the same; 1012
# and 1013 say that somebody already did.
REFUSALS = frozenset({1002, 1010, 1011, 1014, 1015, 1016, -32600, -32601, -32602})
ANSWER_CHARACTERS_MAX = 300


class NotSentError(Exception):
    """It could not be made, so nothing was sent."""


class RefusedError(Exception):
    """The node refused it: it is in no block and in no queue of this node."""


class UnknownOutcomeError(Exception):
    """It was sent, and what became of it was not seen."""


@dataclass(frozen=True)
class Extrinsic:
    """A signed extrinsic. `expires_at_block`: from this block on it can be in no block."""

    signed: Any
    hash: str
    expires_at_block: int


@dataclass(frozen=True)
class Included:
    """What the chain did with an extrinsic: `error` is the name of its refusal, None for success.

    `is_final`: the block was finalised; one that was not may still be replaced.
    """

    block: int
    block_hash: str
    error: str | None
    is_final: bool


def sign(
    substrate: SubstrateInterface,
    keypair: Keypair,
    function: str,
    arguments: dict[str, Any],
    nonce: int,
) -> Extrinsic:
    """Make and sign a call of SubtensorModule; raise `NotSentError`.

    The nonce lets the chain take it once, and the era lets it take it only soon.
    """
    try:
        call = substrate.compose_call("SubtensorModule", function, arguments)
        # Counted from a final block: the birth of the era must not be replaced by another block.
        birth = _final_block(substrate)
        signed = substrate.create_signed_extrinsic(
            call=call, keypair=keypair, nonce=nonce, era={"period": ERA_BLOCKS, "current": birth}
        )
        return Extrinsic(signed, "0x" + signed.extrinsic_hash.hex(), birth + ERA_BLOCKS)
    except Exception as error:
        raise NotSentError(f"the call {function} cannot be made: {_reason(error)}") from error


def _final_block(substrate: SubstrateInterface) -> int:
    """Return the number of the newest final block."""
    block_hash = substrate.get_chain_finalised_head()
    if not block_hash:
        # The library would go on with the newest block.
        raise ValueError("the node names no final block")
    return int(substrate.get_block_number(block_hash))


def submit(
    substrate: SubstrateInterface,
    extrinsic: Extrinsic,
    *,
    wait_seconds: float,
    until_final: bool = False,
) -> Included:
    """Send it once and return what the chain did; raise `RefusedError` or `UnknownOutcomeError`."""
    socket = substrate.transport.websocket
    usual_seconds = socket.gettimeout()
    deadline = time.monotonic() + wait_seconds

    def seen(message: dict[str, Any], _number: int, _subscription: str) -> str | None:
        """Return the block's hash once it is in one; the library waits on for None."""
        status = message["params"]["result"]
        name, value = (status, None) if isinstance(status, str) else next(iter(status.items()))
        if name == "finalized" or (name == "inBlock" and not until_final):
            return str(value)
        if name in LAST_STATES:
            raise UnknownOutcomeError(f"the node calls it {name!r} now")
        # A node that sends states for ever does not keep us for ever.
        socket.settimeout(max(deadline - time.monotonic(), 0.001))
        return None

    try:
        socket.settimeout(wait_seconds)
        block_hash = substrate.rpc_request(
            "author_submitAndWatchExtrinsic", [str(extrinsic.signed.data)], seen
        )
        socket.settimeout(usual_seconds)
        return _outcome(substrate, extrinsic, block_hash, is_final=until_final)
    except UnknownOutcomeError:
        raise
    except SubstrateRequestException as error:
        kind = RefusedError if _code(error) in REFUSALS else UnknownOutcomeError
        raise kind(_rpc_error(error)) from error
    # A drop or a hang is whatever the socket, the JSON or the library raise on it.
    except Exception as error:
        raise UnknownOutcomeError(_reason(error)) from error


def _outcome(
    substrate: SubstrateInterface, extrinsic: Extrinsic, block_hash: str, *, is_final: bool
) -> Included:
    """Read off the block what became of the extrinsic."""
    try:
        # Raw, because no library decodes every kind of extrinsic that a block may hold.
        block = substrate.rpc_request("chain_getBlock", [block_hash])["result"]["block"]
        index = block["extrinsics"].index(str(extrinsic.signed.data))
        number = int(block["header"]["number"], 16)
        ends = [
            event.value
            for event in substrate.get_events(block_hash)
            if event.extrinsic_idx == index
            and event.value["module_id"] == "System"
            and event.value["event_id"] in {"ExtrinsicSuccess", "ExtrinsicFailed"}
        ]
        (end,) = ends
        is_success = end["event_id"] == "ExtrinsicSuccess"
        name = None if is_success else _error_name(substrate, end["attributes"]["dispatch_error"])
    except Exception as error:
        raise UnknownOutcomeError(
            f"the node says that block {block_hash} has it, but not what became of it: "
            f"{_reason(error)}"
        ) from error
    return Included(number, block_hash, name, is_final)


def _error_name(substrate: SubstrateInterface, error: Any) -> str:
    """Return the name of a DispatchError; of a pallet's by its index, not by its place in a list.

    The library's receipt counts places, and they differ where a pallet has dropped an error.
    """
    if not isinstance(error, dict) or "Module" not in error:
        return str(error)
    pallet_index, code = error["Module"]["index"], error["Module"]["error"]
    # Four bytes, of which the first is the error's index.
    error_index = int(code[2:4], 16) if isinstance(code, str) else int(code)
    for pallet in substrate.metadata.pallets:
        if pallet.value["index"] == pallet_index:
            for one in pallet.errors or ():
                if one.value["index"] == error_index:
                    return str(one.value["name"])
    return f"error {error_index} of pallet {pallet_index}"


def _code(error: SubstrateRequestException) -> Any:
    said = error.args[0] if error.args else None
    return said.get("code") if isinstance(said, dict) else None


def _rpc_error(error: SubstrateRequestException) -> str:
    """Return a node's error object in one line: its message, its data, its code."""
    said = error.args[0] if error.args else ""
    if isinstance(said, dict):
        parts = [str(said[name]) for name in ("message", "data") if said.get(name)]
        said = f"{': '.join(parts)} (code {said.get('code')})"
    return " ".join(str(said).split())[:ANSWER_CHARACTERS_MAX]


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:ANSWER_CHARACTERS_MAX]
