"""One extrinsic of a hotkey, from its making to what the chain made of it.

What was not seen is never reported as success: after the first byte has left, every failure but the
node's own refusal is `UnknownOutcomeError`.
"""

import time
from dataclasses import dataclass
from typing import Any

from substrateinterface import ExtrinsicReceipt, Keypair, SubstrateInterface
from substrateinterface.exceptions import SubstrateRequestException

# Blocks for which the signature is good. After them a lost extrinsic can no longer come back.
ERA_BLOCKS = 16
# States from which a node says nothing more, and the extrinsic may or may not be in a block.
LAST_STATES = frozenset({"invalid", "dropped", "usurped", "finalityTimeout"})
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
        birth = substrate.get_block_number(substrate.get_chain_finalised_head())
        signed = substrate.create_signed_extrinsic(
            call=call, keypair=keypair, nonce=nonce, era={"period": ERA_BLOCKS, "current": birth}
        )
        extrinsic_hash = "0x" + signed.extrinsic_hash.hex()
    except Exception as error:
        raise NotSentError(f"the call {function} cannot be made: {_reason(error)}") from error
    return Extrinsic(signed, extrinsic_hash, birth + ERA_BLOCKS)


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
        raise RefusedError(_rpc_error(error)) from error
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
        receipt = ExtrinsicReceipt(
            substrate,
            extrinsic_hash=extrinsic.hash,
            block_hash=block_hash,
            extrinsic_idx=index,
        )
        is_success: bool | None = receipt.is_success
        refusal: dict[str, Any] | None = None if is_success else receipt.error_message
        number = int(block["header"]["number"], 16)
    except Exception as error:
        raise UnknownOutcomeError(
            f"it is in block {block_hash}, which cannot be read: {_reason(error)}"
        ) from error
    if is_success is None:
        raise UnknownOutcomeError(
            f"it is in block {block_hash}, which does not say what became of it"
        )
    name = None if is_success else str((refusal or {}).get("name") or "an error without a name")
    return Included(number, block_hash, name, is_final)


def _rpc_error(error: SubstrateRequestException) -> str:
    """Return a node's error object in one line: its message, its data, its code."""
    said = error.args[0] if error.args else ""
    if isinstance(said, dict):
        parts = [str(said[name]) for name in ("message", "data") if said.get(name)]
        said = f"{': '.join(parts)} (code {said.get('code')})"
    return " ".join(str(said).split())[:ANSWER_CHARACTERS_MAX]


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:ANSWER_CHARACTERS_MAX]
