"""One round of a validator: from the API's answer to weights on chain, and what came of it.

What may be set is decided in `cli.setting`, and how an extrinsic fares is seen in `cli.extrinsics`.
Here is the order of things, and the words in which a validator hears of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from substrateinterface import Keypair

from api.answers import LeomaError
from cli.extrinsics import (
    ANSWER_CHARACTERS_MAX,
    NotSentError,
    RefusedError,
    UnknownOutcomeError,
    sign,
    submit,
)
from cli.onchain import Terms, read, refuse_other_chain, weights
from cli.served import fetch
from cli.setting import (
    WEIGHT_MAX,
    ChainFacts,
    Choice,
    DoubtError,
    Limits,
    choose,
    refuse_doubts,
)
from cli.timelock import Commit, TimelockError, timelocked
from pipelines.node import Node, NodeError

# Beyond the timeout of each answer: what all reads of one node may take.
READ_SECONDS_MAX = 60.0
EXIT_CODES = {"set": 0, "committed": 0, "would_send": 0, "refused": 1, "kept": 3, "unknown": 4}


@dataclass(frozen=True)
class Order:
    """What the validator asked for: which API, which chain, how careful, how patient."""

    url: str
    endpoints: tuple[str, ...]
    genesis: str
    netuid: int
    burn_reasons: tuple[str, ...]
    age_seconds_max: float
    blocks_behind_max: int
    block_age_seconds_max: float
    timeout_seconds: float
    wait_seconds: float
    block_seconds: float
    until_final: bool
    is_dry_run: bool

    @property
    def limits(self) -> Limits:
        """What the answer is held to."""
        return Limits(
            netuid=self.netuid,
            age_seconds_max=self.age_seconds_max,
            blocks_behind_max=self.blocks_behind_max,
            burn_reasons=frozenset(self.burn_reasons),
        )


@dataclass(frozen=True)
class Report:
    """What came of one round: a key of `EXIT_CODES`, the same in words, figures for programs."""

    outcome: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {"outcome": self.outcome, "text": self.text, **self.figures}


@dataclass(frozen=True)
class Prepared:
    """What is sent: all the weight to one uid, in the form that the chain takes now."""

    choice: Choice
    facts: ChainFacts
    terms: Terms
    netuid: int

    @property
    def uids(self) -> list[int]:
        """The uids that get weight."""
        return [self.choice.uid]

    @property
    def values(self) -> list[int]:
        """Their weights, as the chain scales them."""
        return [WEIGHT_MAX]

    @property
    def function(self) -> str:
        """The call of SubtensorModule."""
        return "commit_timelocked_weights" if self.terms.schedule else "set_weights"

    def figures(self) -> dict[str, Any]:
        """Return what would be sent, and what is on chain now."""
        return {
            "call": f"SubtensorModule.{self.function}",
            "netuid": self.netuid,
            "uids": self.uids,
            "weights": self.values,
            "version_key": self.terms.version_key,
            "is_commit_reveal": self.terms.schedule is not None,
            "winner_hotkey": self.choice.hotkey,
            "burn_reason": self.choice.burn_reason,
            "snapshot_id": self.choice.snapshot_id,
            "own_uid": self.facts.own_uid,
            "read_at_block": self.facts.block,
            "weights_on_chain": [list(pair) for pair in self.facts.weights],
            "last_update_block": self.facts.last_update,
        }


def set_once(order: Order, keypair: Keypair) -> Report:
    """Do one round, and report it whatever happens; nothing is sent twice."""
    try:
        choice = choose(fetch(order.url, order.timeout_seconds), order.limits)
        return _set(choice, order, keypair)
    except (LeomaError, DoubtError) as error:
        return _kept(error)
    # A defect, from before the sending: `_sent` reports all that is later.
    except Exception as error:  # noqa: BLE001 - it must not pass for an answer of the chain
        return _kept(DoubtError(f"the round broke off: {_defect(error)}"))


def _set(choice: Choice, order: Order, keypair: Keypair) -> Report:
    """Go from node to node until one of them answers all that is asked before the sending."""
    failures = []
    for endpoint in order.endpoints:
        node = Node(endpoint, order.timeout_seconds)
        try:
            return _through(node, choice, order, keypair)
        # Only from before the sending: another node may do better.
        except NodeError as error:
            failures.append(str(error))
        except (NotSentError, TimelockError) as error:
            return _kept(type(error)(node.without_secrets(str(error))))
        finally:
            node.close()
    raise DoubtError(f"the chain cannot be read: {'; '.join(failures)}")


def _through(node: Node, choice: Choice, order: Order, keypair: Keypair) -> Report:
    with node.within(READ_SECONDS_MAX):
        refuse_other_chain(node, order.genesis)
        facts, terms = read(
            node, order.netuid, choice.uid, keypair.ss58_address, order.block_age_seconds_max
        )
    refuse_doubts(choice, facts, keypair.ss58_address, order.limits)
    prepared = Prepared(choice, facts, terms, order.netuid)
    if order.is_dry_run:
        return Report("would_send", _intention(prepared), prepared.figures())
    commit = None
    if terms.schedule:
        commit = timelocked(
            prepared.uids,
            prepared.values,
            terms.version_key,
            public_key=keypair.public_key,
            schedule=terms.schedule,
            block_seconds=order.block_seconds,
        )
    return _sent(node, prepared, commit, order, keypair)


def _sent(
    node: Node, prepared: Prepared, commit: Commit | None, order: Order, keypair: Keypair
) -> Report:
    """Sign, send, wait and read back. Nothing is raised once something was sent."""
    substrate = node.substrate
    arguments = _arguments(prepared, commit)
    with node.within(READ_SECONDS_MAX):
        extrinsic = sign(substrate, keypair, prepared.function, arguments, prepared.terms.nonce)
    figures = {**prepared.figures(), "extrinsic_hash": extrinsic.hash}
    try:
        with node.within(order.wait_seconds + READ_SECONDS_MAX):
            included = submit(
                substrate,
                extrinsic,
                wait_seconds=order.wait_seconds,
                until_final=order.until_final,
            )
            figures |= {"block": included.block, "block_hash": included.block_hash}
            if included.error:
                text = f"Not set: the chain answered {included.error} in block {included.block}."
                return Report("refused", text, {**figures, "error": included.error})
            if commit is None:
                _refuse_other_weights(node, prepared, included.block_hash)
    except RefusedError as error:
        what = node.without_secrets(str(error))
        text = f"Not set: the node refused the extrinsic: {what}."
        return Report("refused", text, {**figures, "error": what})
    except Exception as error:  # noqa: BLE001 - whatever it is, the extrinsic is on its way
        is_told = isinstance(error, UnknownOutcomeError | NodeError)
        what = node.without_secrets(str(error) if is_told else _defect(error))
        text = (
            f"The outcome is unknown: the extrinsic {extrinsic.hash} was sent, and then: {what}. "
            f"It can be in a block before {extrinsic.expires_at_block} and only once; "
            "`leoma weights set --dry-run` shows what is on chain."
        )
        expires_at = extrinsic.expires_at_block
        return Report("unknown", text, {**figures, "expires_at_block": expires_at})
    where = (
        f"in block {included.block} ({'final' if included.is_final else 'not final yet'}), "
        f"extrinsic {extrinsic.hash}"
    )
    if commit is None:
        text = f"Set: all the weight of uid {prepared.facts.own_uid} is on {prepared.choice}; read "
        return Report("set", f"{text}back {where}.", figures)
    text = (
        f"Committed: all the weight of uid {prepared.facts.own_uid} on {prepared.choice}, {where}; "
        f"the chain reveals it after drand round {commit.reveal_round}, about "
        f"{commit.reveals_at:%Y-%m-%d %H:%M} UTC."
    )
    return Report("committed", text, {**figures, "reveal_round": commit.reveal_round})


def _arguments(prepared: Prepared, commit: Commit | None) -> dict[str, Any]:
    if commit is None:
        return {
            "netuid": prepared.netuid,
            "dests": prepared.uids,
            "weights": prepared.values,
            "version_key": prepared.terms.version_key,
        }
    return {
        "netuid": prepared.netuid,
        "commit": "0x" + commit.ciphertext.hex(),
        "reveal_round": commit.reveal_round,
        "commit_reveal_version": prepared.terms.commit_version,
    }


def _refuse_other_weights(node: Node, prepared: Prepared, block_hash: str) -> None:
    """Raise `UnknownOutcomeError` unless the block holds the weights that were sent."""
    sent = tuple(zip(prepared.uids, prepared.values, strict=True))
    found = weights(node, block_hash, prepared.netuid, prepared.facts.own_uid or 0)
    if found != sent:
        raise UnknownOutcomeError(
            f"the chain reports success, but has {list(found)} instead of {list(sent)}"
        )


def _intention(prepared: Prepared) -> str:
    terms = prepared.terms
    hidden = " (commit-reveal is on: they would go out encrypted)" if terms.schedule else ""
    now = ", ".join(f"uid {uid}: {value}" for uid, value in prepared.facts.weights) or "none"
    last = prepared.facts.last_update or "never"
    return (
        f"Would send SubtensorModule.{prepared.function}: netuid {prepared.netuid}, uids "
        f"{prepared.uids}, weights {prepared.values}, version key {terms.version_key}{hidden}. "
        f"That is {prepared.choice}. On chain at block {prepared.facts.block}, uid "
        f"{prepared.facts.own_uid} has {now}; set or committed last: {last}."
    )


def _defect(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:ANSWER_CHARACTERS_MAX]


def _kept(reason: Exception) -> Report:
    text = f"Nothing was sent, and the weights on chain stay as they are: {reason}."
    return Report("kept", text, {"reason": str(reason)})
