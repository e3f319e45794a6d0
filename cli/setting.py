"""Which weights to set on chain, if any. Pure: an answer of the API and facts of the chain in.

Every doubt is a `DoubtError`, and its sentence says what was in doubt. Who gets one sends nothing:
the weights on chain stay as they are, because not knowing is neither a new winner nor a burn.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from api.answers import Weights
from warehouse.hotkeys import is_hotkey

UID_MAX = 2**16 - 1
WEIGHT_MAX = 2**16 - 1
BURN_UID = 0
# What `burn_reason` may say. `window_incomplete` is the one that a service without a history gives.
BURN_REASONS = ("no_rank", "no_valid_miner", "window_incomplete")
# The service and the validator may ask two nodes, and the later one may be a little ahead.
BLOCKS_AHEAD_MAX = 10


class DoubtError(Exception):
    """Why nothing is sent, and what is on chain stays."""


@dataclass(frozen=True)
class Served:
    """One answer of `GET /weights`, the server's clock in it, and ours when it came."""

    weights: Weights
    server_time: datetime
    local_time: datetime


@dataclass(frozen=True)
class Limits:
    """What a validator insists on. `burn_reasons`: those for which it burns; by default none."""

    netuid: int
    age_seconds_max: float = 1800.0
    clock_seconds_max: float = 60.0
    blocks_behind_max: int = 300
    burn_reasons: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choice:
    """Who gets all the weight: `hotkey` at `uid`, or nobody (burn), and then why."""

    uid: int
    hotkey: str | None
    burn_reason: str | None
    block: int
    snapshot_id: str

    def __str__(self) -> str:
        """Return the choice in words."""
        if self.hotkey:
            return f"uid {self.uid}, {self.hotkey}"
        return f"uid {self.uid}, a burn ({self.burn_reason})"


@dataclass(frozen=True)
class ChainFacts:
    """What the chain says at one block about the subnet, the chosen uid and our own hotkey.

    `hotkey_at_uid` is None for an empty uid, `own_uid` for a hotkey that is not registered.
    `is_owners`: the uid's hotkey is one of the subnet owner's, whose share of the emission the
    chain burns; that is what makes weight at uid 0 a burn.
    `last_update` is the block in which our weights were set or committed last, 0 for never.
    `weights_min` is how many uids the subnet wants in weights that are not for our own uid alone.
    `weights` are ours as they are now: pairs of uid and value.
    """

    block: int
    has_subnet: bool
    hotkey_at_uid: str | None
    is_owners: bool
    own_uid: int | None
    has_permit: bool
    last_update: int
    rate_limit_blocks: int
    weights_min: int
    weights: tuple[tuple[int, int], ...]


def choose(served: Served, limits: Limits) -> Choice:
    """Return what the answer says to set; raise `DoubtError` unless it is whole, ours and fresh.

    A burn needs leave for its very reason. An API that was just installed, or has lost its log,
    says `window_incomplete` and means it; a validator that follows would take the winner's pay away
    over somebody else's accident. So by default no burn is sent, whatever the reason.
    """
    weights = served.weights
    _refuse_contradictions(weights)
    if weights.netuid != limits.netuid:
        raise DoubtError(f"the API serves subnet {weights.netuid}, not {limits.netuid}")
    _refuse_times(served, limits)
    if weights.winner_hotkey is None and weights.burn_reason not in limits.burn_reasons:
        raise DoubtError(
            f"the API says burn ({weights.burn_reason}), which is not sent without "
            "`--allow-burn` for this reason"
        )
    return Choice(
        uid=weights.winner_uid,
        hotkey=weights.winner_hotkey,
        burn_reason=weights.burn_reason,
        block=weights.block,
        snapshot_id=weights.snapshot_id,
    )


def refuse_doubts(choice: Choice, facts: ChainFacts, own_hotkey: str, limits: Limits) -> None:
    """Raise `DoubtError` unless the chain bears the choice out and would take our weights."""
    if not facts.has_subnet:
        raise DoubtError(f"there is no subnet {limits.netuid} on this chain")
    blocks_behind = facts.block - choice.block
    if blocks_behind < -BLOCKS_AHEAD_MAX:
        raise DoubtError(
            f"the weights are of block {choice.block}, but the node is only at block "
            f"{facts.block}: it lags, or the API reads another chain"
        )
    if blocks_behind > limits.blocks_behind_max:
        raise DoubtError(
            f"the weights are of block {choice.block}, {blocks_behind} blocks behind the chain's "
            f"{facts.block}, and {limits.blocks_behind_max} are allowed"
        )
    if facts.hotkey_at_uid is None:
        raise DoubtError(f"nobody is at uid {choice.uid} on chain")
    if choice.hotkey is not None and facts.hotkey_at_uid != choice.hotkey:
        raise DoubtError(
            f"the API names {choice.hotkey} at uid {choice.uid}, but on chain that uid belongs to "
            f"{facts.hotkey_at_uid}"
        )
    if choice.hotkey is None and not facts.is_owners:
        raise DoubtError(
            f"the API says burn, but uid {choice.uid} belongs to {facts.hotkey_at_uid}, which is "
            "no hotkey of the subnet's owner: weight there would pay it, and burn nothing"
        )
    _refuse_us(choice, facts, own_hotkey, limits)


def _refuse_us(choice: Choice, facts: ChainFacts, own_hotkey: str, limits: Limits) -> None:
    """Raise `DoubtError` unless the chain would take this choice from our hotkey now."""
    if facts.own_uid is None:
        raise DoubtError(f"our hotkey {own_hotkey} is not registered in subnet {limits.netuid}")
    if not facts.has_permit:
        raise DoubtError(f"our hotkey {own_hotkey} (uid {facts.own_uid}) has no validator permit")
    # A timelocked commit of too few is taken, and dropped when it is revealed: nobody would notice.
    if facts.weights_min > 1 and choice.uid != facts.own_uid:
        raise DoubtError(
            f"the subnet takes no fewer than {facts.weights_min} weights at a time "
            "(MinAllowedWeights), and all the weight goes to one uid"
        )
    # The earliest block that can take the weights is the next one.
    waited = facts.block + 1 - facts.last_update
    if facts.last_update and waited < facts.rate_limit_blocks:
        raise DoubtError(
            f"too soon: our weights were set in block {facts.last_update}, and the subnet allows "
            f"it every {facts.rate_limit_blocks} blocks; wait {facts.rate_limit_blocks - waited} "
            "more"
        )


def _refuse_contradictions(weights: Weights) -> None:
    """Refuse an answer that says two things, or nothing."""
    given = [(miner.uid, miner.miner_hotkey) for miner in weights.miners]
    uids, hotkeys = {uid for uid, _ in given}, {hotkey for _, hotkey in given}
    if len(uids) != len(given) or len(hotkeys) != len(given):
        raise DoubtError("the API names one miner or one uid twice")
    if not all(0 <= uid <= UID_MAX for uid in (*uids, weights.winner_uid)):
        raise DoubtError(f"the API names a uid beyond 0 to {UID_MAX}")
    # A weight that is not a number is not equal to 0 either.
    paid = [miner for miner in weights.miners if miner.weight != 0]
    if weights.winner_hotkey is None:
        if not weights.burn_reason or weights.winner_uid != BURN_UID:
            raise DoubtError("the API names no winner, and no reason to burn at uid 0")
        if paid:
            raise DoubtError("the API says burn and gives miners weight as well")
        return
    if not is_hotkey(weights.winner_hotkey):
        raise DoubtError("the API names a winner whose hotkey is no address")
    if weights.burn_reason is not None:
        raise DoubtError("the API names a winner and a reason to burn as well")
    due = [(weights.winner_hotkey, weights.winner_uid, 1.0)]
    if [(miner.miner_hotkey, miner.uid, miner.weight) for miner in paid] != due:
        raise DoubtError(
            f"the API names uid {weights.winner_uid} as the winner, but the weights are not 1.0 "
            "for it and 0.0 for everybody else"
        )


def _refuse_times(served: Served, limits: Limits) -> None:
    """Refuse what is stale by either clock, and clocks that do not agree."""
    weights = served.weights
    apart = abs(served.server_time - served.local_time)
    if apart > timedelta(seconds=limits.clock_seconds_max):
        raise DoubtError(
            f"this machine's clock and the API's are {apart.total_seconds():.0f} s apart (here "
            f"{served.local_time:%Y-%m-%d %H:%M:%S}, there {served.server_time:%Y-%m-%d %H:%M:%S} "
            "UTC): set the wrong one right"
        )
    # By the clock that makes the answer older: nothing is set that either calls stale.
    now = max(served.local_time, served.server_time)
    if now >= weights.valid_until:
        raise DoubtError(
            f"the API's weights expired at {weights.valid_until:%Y-%m-%d %H:%M:%S} UTC"
        )
    age_seconds = (now - weights.computed_at).total_seconds()
    if age_seconds > limits.age_seconds_max:
        raise DoubtError(
            f"the API's weights were computed {age_seconds:.0f} s ago, and "
            f"{limits.age_seconds_max:.0f} s are allowed"
        )
    if age_seconds < -limits.clock_seconds_max:
        raise DoubtError("the API's weights were computed in the future")
    if not weights.is_usable(now):
        raise DoubtError("the API's weights contradict themselves")
