"""The commit for commit-reveal subnets: what is in it, and when it opens."""

import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import bittensor_drand
import pytest

from cli.timelock import (
    DRAND_GENESIS_UNIX,
    DRAND_PERIOD_SECONDS,
    EpochSchedule,
    TimelockError,
    timelocked,
)
from tests.builders import keypair

# Drand's own signature of round 1000 of quicknet, from its public record: what opens that round.
ROUND = 1000
SIGNATURE = (
    "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125"
    "e342b73a8dd2bacbe47e4b6b63ed5e39"
)
SCHEDULE = EpochSchedule(
    block=1_090,
    tempo=360,
    epoch_index=5,
    last_epoch_block=1_000,
    pending_epoch_at=0,
    blocks_since_last_step=90,
    reveal_period_epochs=1,
)
# The epoch after the present one runs in block 1360; three blocks later its pulse is on chain.
BLOCKS_TO_REVEAL = 1_360 + 3 - 1_090
OWN = keypair("own").public_key


def opened(ciphertext):
    """Decrypt a commit of round 1000, in the wrapping that `decrypt_with_signature` reads."""
    length = (len(ciphertext) << 2 | 1).to_bytes(2, "little")
    wrapped = length + ciphertext + ROUND.to_bytes(8, "little")
    return bittensor_drand.decrypt_with_signature(wrapped, SIGNATURE)


def test_the_chain_will_find_hotkey_weights_and_version_key_in_it():
    # A block time that makes the reveal fall into the past, where the round's key is known.
    then = DRAND_GENESIS_UNIX + (ROUND + 0.5) * DRAND_PERIOD_SECONDS
    block_seconds = (then - time.time()) / BLOCKS_TO_REVEAL
    commit = timelocked(
        [7, 300], [65_535, 0], 3, public_key=OWN, schedule=SCHEDULE, block_seconds=block_seconds
    )
    assert commit.reveal_round == ROUND
    scale = (
        b"\x80" + OWN,
        b"\x08" + (7).to_bytes(2, "little") + (300).to_bytes(2, "little"),
        b"\x08" + b"\xff\xff" + b"\0\0",
        (3).to_bytes(8, "little"),
    )
    assert opened(commit.ciphertext) == b"".join(scale)


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, BLOCKS_TO_REVEAL),
        ({"reveal_period_epochs": 3}, BLOCKS_TO_REVEAL + 720),
        ({"tempo": 100, "last_epoch_block": 1_080, "blocks_since_last_step": 10}, 93),
        ({"pending_epoch_at": 1_100}, 13),
    ],
)
def test_it_opens_when_the_epoch_runs_in_which_the_chain_reveals(changes, blocks):
    before = datetime.now(UTC)
    commit = timelocked([7], [65_535], 0, public_key=OWN, schedule=replace(SCHEDULE, **changes))
    due = before + timedelta(seconds=12 * blocks)
    assert commit.reveals_at > before
    assert abs(commit.reveals_at - due) < timedelta(seconds=30)


def test_twice_the_same_weights_do_not_look_the_same():
    commits = [timelocked([7], [65_535], 0, public_key=OWN, schedule=SCHEDULE) for _ in range(2)]
    assert commits[0].ciphertext != commits[1].ciphertext


def test_a_subnet_without_epochs_reveals_nothing():
    with pytest.raises(TimelockError, match="tempo is 0"):
        timelocked([7], [1], 0, public_key=OWN, schedule=replace(SCHEDULE, tempo=0))


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(TimelockError, match="made no commit"):
        timelocked([70_000], [1], 0, public_key=OWN, schedule=SCHEDULE)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bittensor_drand", None)
    with pytest.raises(TimelockError, match=r"pip install 'bittensor-drand>=2\.0'"):
        timelocked([7], [65_535], 0, public_key=OWN, schedule=SCHEDULE)


def test_the_extra_is_imported_by_nothing_else():
    code = "import sys, cli.timelock; print('bittensor_drand' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
