"""Weights that nobody can read before a drand round: what commit-reveal subnets take.

The ciphertext is made offline: `bittensor_drand` knows drand's public key and only reads the clock.
It is an optional extra, imported when a commit is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

# The drand network "quicknet", whose pulses the chain follows.
DRAND_GENESIS_UNIX = 1_692_803_367
DRAND_PERIOD_SECONDS = 3
COMMIT_BYTES_MAX = 5_000


class TimelockError(Exception):
    """Why no commit can be made."""


@dataclass(frozen=True)
class EpochSchedule:
    """When the subnet's epochs run, as the chain has it at `block`.

    `tempo` is blocks an epoch, `pending_epoch_at` the block of an epoch that the subnet's owner
    asked for (0: none), `epoch_index` counts the epochs.
    """

    block: int
    tempo: int
    epoch_index: int
    last_epoch_block: int
    pending_epoch_at: int
    blocks_since_last_step: int
    reveal_period_epochs: int


@dataclass(frozen=True)
class Commit:
    """Ciphertext, and the drand round whose pulse opens it."""

    ciphertext: bytes
    reveal_round: int

    @property
    def reveals_at(self) -> datetime:
        """When drand emits the round's pulse."""
        # Round 1 is the pulse of the genesis itself.
        seconds = DRAND_GENESIS_UNIX + (self.reveal_round - 1) * DRAND_PERIOD_SECONDS
        return datetime.fromtimestamp(seconds, UTC)


def timelocked(
    uids: Sequence[int],
    values: Sequence[int],
    version_key: int,
    *,
    public_key: bytes,
    schedule: EpochSchedule,
    block_seconds: float = 12.0,
) -> Commit:
    """Encrypt weights until the epoch in which the chain applies them.

    `public_key` is the hotkey's that will sign: the chain checks that it is the one inside.
    """
    if not schedule.tempo:
        raise TimelockError("the subnet's tempo is 0: it has no epochs, so nothing is revealed")
    try:
        # Here, so that everything else works without the extra.
        from bittensor_drand import get_encrypted_commit_v2  # noqa: PLC0415
    except ImportError as error:
        raise TimelockError(
            "the subnet has commit-reveal on, and the extra `leoma[validator]` is not installed: "
            "run `pip install 'bittensor-drand>=2.0'`"
        ) from error
    try:
        ciphertext, reveal_round = get_encrypted_commit_v2(
            uids=list(uids),
            weights=list(values),
            version_key=version_key,
            last_epoch_block=schedule.last_epoch_block,
            pending_epoch_at=schedule.pending_epoch_at,
            subnet_epoch_index=schedule.epoch_index,
            tempo=schedule.tempo,
            blocks_since_last_step=schedule.blocks_since_last_step,
            current_block=schedule.block,
            subnet_reveal_period_epochs=schedule.reveal_period_epochs,
            block_time=block_seconds,
            hotkey=public_key,
        )
    except (ValueError, OverflowError, TypeError) as error:
        raise TimelockError(f"bittensor-drand made no commit: {error}") from error
    if len(ciphertext) > COMMIT_BYTES_MAX:
        raise TimelockError(f"the commit has over {COMMIT_BYTES_MAX} bytes, which no chain takes")
    return Commit(bytes(ciphertext), int(reveal_round))
