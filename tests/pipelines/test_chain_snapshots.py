"""Chain snapshots: what is kept comes back, what is damaged is told, and time runs one way."""

import hashlib
import json

import duckdb
import pytest
from substrateinterface import Keypair

from pipelines.chain_snapshots import ChainSnapshots
from pipelines.frames import violations
from pipelines.metagraph import MetagraphError, metagraph_of_neurons
from tests.warehouse.builders import settings
from warehouse.tables import NEURONS

ALICE, BOB, CAROL = (
    Keypair.create_from_uri(f"//{name}").ss58_address for name in ("Alice", "Bob", "Carol")
)
FINNEY, TESTNET = (f"0x{digit * 64}" for digit in "ab")
VALIDATOR = {"is_validator": True, "is_miner": False}


def metagraph(block=1000, genesis=FINNEY, stake_rao=5_000_000_000_001, **carol):
    place = {"netuid": 99, "block": block, "genesis_hash": genesis}
    miner = {
        "is_validator": False,
        "is_miner": True,
        "revealed": '[[900,"08ff"]]',
        "commit_block": 900,
        "is_valid": False,
        "invalid_reason": "malformed_commitment",
    }
    return metagraph_of_neurons(
        [
            {**place, **VALIDATOR, "uid": 1, "hotkey": BOB, "stake_rao": 7},
            {**place, **VALIDATOR, "uid": 0, "hotkey": ALICE, "stake_rao": stake_rao},
            {**place, **miner, "uid": 7, "hotkey": CAROL, **carol},
        ]
    )


@pytest.fixture
def snapshots(tmp_path):
    return ChainSnapshots(settings(tmp_path))


def files(snapshots):
    return sorted(path.name for path in snapshots.directory.glob("*.parquet"))


def test_before_the_first_sync_there_is_none(snapshots):
    assert snapshots.newest() is None
    assert snapshots.newest_name() is None


def test_what_is_kept_comes_back(snapshots):
    kept = snapshots.keep(metagraph(), 1_234)

    assert kept.name.startswith("1000-")
    assert snapshots.newest_name() == (kept.name, 1_234)
    found = snapshots.newest()
    assert found.metagraph.neurons.equals(metagraph().neurons)
    assert (found.metagraph.netuid, found.metagraph.block) == (99, 1000)
    assert found.metagraph.validators.rows() == [(ALICE, 0, 5_000_000_000_001), (BOB, 1, 7)]
    assert found.metagraph.miners.select("hotkey", "block", "invalid_reason").rows() == [
        (CAROL, 900, "malformed_commitment")
    ]
    assert violations(found.metagraph.neurons, NEURONS) == []
    assert snapshots.read(kept.name).neurons.equals(metagraph().neurons)


def test_two_syncs_in_one_block_are_one_file_unless_something_changed(snapshots):
    first = snapshots.keep(metagraph(), 1)
    assert snapshots.keep(metagraph(), 2).name == first.name
    assert snapshots.newest_name() == (first.name, 2)
    assert snapshots.keep(metagraph(last_validated_at_ms=5), 3).name != first.name
    assert len(files(snapshots)) == 2
    # Nothing half-written stays beside them.
    assert not list(snapshots.directory.glob(".*"))


@pytest.mark.parametrize(
    "change",
    [
        {"block": 1001},
        {"stake_rao": 5_000_000_000_002},
        {"hotkey": Keypair.create_from_uri("//Dave").ss58_address},
        {"uid": 8},
        {"is_valid": True},
        {"commit_block": None},
        {"revealed": "[]"},
    ],
)
def test_any_difference_is_another_snapshot(snapshots, change):
    assert snapshots.keep(metagraph(), 1).name != snapshots.keep(metagraph(**change), 1).name


def test_any_damaged_byte_of_a_snapshot_is_noticed(snapshots):
    path = snapshots.directory / snapshots.keep(metagraph(), 1).name
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1 :]
        )
        with pytest.raises(MetagraphError, match="not what its name says"):
            snapshots.newest()
    for harmed in (content[: len(content) // 2], b""):
        path.write_bytes(harmed)
        with pytest.raises(MetagraphError, match="not what its name says"):
            snapshots.newest()
    path.unlink()
    with pytest.raises(MetagraphError, match="chain snapshot"):
        snapshots.newest()


def test_a_damaged_snapshot_does_not_keep_the_next_from_taking_its_place(snapshots):
    name = snapshots.keep(metagraph(), 1).name
    (snapshots.directory / name).write_bytes(b"harmed")
    kept = snapshots.keep(metagraph(block=1001), 2)
    assert snapshots.newest().name == kept.name


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"snapshot": "x", "synced_at_ms": "soon"}'])
def test_a_damaged_pointer_is_not_taken_for_a_first_start(snapshots, text):
    snapshots.keep(metagraph(), 1)
    snapshots.pointer.write_text(text)
    with pytest.raises(MetagraphError, match="cannot be read"):
        snapshots.newest()
    with pytest.raises(MetagraphError, match="cannot be read"):
        snapshots.keep(metagraph(), 2)


def test_a_node_that_lags_behind_changes_nothing(snapshots):
    kept = snapshots.keep(metagraph(block=1000), 1)
    with pytest.raises(MetagraphError, match="at block 999, but block 1000 was read before"):
        snapshots.keep(metagraph(block=999), 2)
    assert snapshots.newest_name() == (kept.name, 1)


def test_a_sync_that_was_overtaken_changes_nothing(snapshots):
    kept = snapshots.keep(metagraph(block=1001), 2)
    with pytest.raises(MetagraphError, match="read later is in force"):
        snapshots.keep(metagraph(block=1001), 1)
    assert snapshots.newest_name() == (kept.name, 2)


def test_another_chain_is_refused_unless_it_is_meant(snapshots):
    snapshots.keep(metagraph(), 1)
    for chain_genesis in ("", FINNEY):
        with pytest.raises(MetagraphError, match="set CHAIN_GENESIS"):
            snapshots.keep(metagraph(genesis=TESTNET), 2, chain_genesis)
    # Its blocks are others: fewer of them are no step back.
    kept = snapshots.keep(metagraph(block=5, genesis=TESTNET), 3, TESTNET.upper().replace("X", "x"))
    assert snapshots.newest_name() == (kept.name, 3)


def test_a_file_may_say_any_block(snapshots):
    snapshots.keep(metagraph(block=1000, genesis=None), 1)
    snapshots.keep(metagraph(block=5, genesis=None), 2)
    snapshots.keep(metagraph(block=4), 3)
    assert snapshots.newest().metagraph.block == 4


def test_a_snapshot_without_a_place_to_go_is_an_error(tmp_path):
    (tmp_path / "warehouse").write_text("a file in the directory's place")
    with pytest.raises(OSError, match="warehouse"):
        ChainSnapshots(settings(tmp_path)).keep(metagraph(), 1)


def test_analysts_read_all_snapshots_as_one_table(snapshots):
    snapshots.keep(metagraph(), 1)
    snapshots.keep(metagraph(block=1001, stake_rao=3), 2)
    rows = duckdb.sql(
        f"SELECT block, stake_rao FROM '{snapshots.directory}/*.parquet' "
        f"WHERE hotkey = '{ALICE}' ORDER BY block"
    ).fetchall()
    assert rows == [(1000, 5_000_000_000_001), (1001, 3)]
    (pointed,) = [json.loads(snapshots.pointer.read_bytes())]
    assert pointed["block"] == 1001


def test_a_subnet_without_validators_or_with_impossible_stakes_is_refused():
    with pytest.raises(MetagraphError, match="no validators"):
        metagraph_of_neurons([])
    with pytest.raises(MetagraphError, match="2\\*\\*62"):
        metagraph(stake_rao=2**62)


@pytest.mark.parametrize(
    "name",
    [
        "../escaped-{digest}.parquet",
        "1-x/../../escaped-{digest}.parquet",
        "escaped-{digest}.parquet",
        "1-{digest}.parquet/",
        "1-{digest}.parquet\n",
    ],
)
def test_a_name_that_leads_elsewhere_is_no_snapshots(snapshots, tmp_path, name):
    content = b"whoever wrote it knows its digest"
    name = name.format(digest=hashlib.sha256(content).hexdigest()[:16])
    with pytest.raises(MetagraphError, match="is not the name of a chain snapshot"):
        snapshots.restore(name, content)
    with pytest.raises(MetagraphError, match="names no chain snapshot"):
        snapshots.point_to({"snapshot": name, "synced_at_ms": 1})
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("pointed", [{}, {"snapshot": 7, "synced_at_ms": 1}, {"snapshot": "x"}])
def test_a_pointer_without_a_snapshot_is_told(snapshots, pointed):
    with pytest.raises(MetagraphError, match="names no chain snapshot"):
        snapshots.point_to(pointed)
