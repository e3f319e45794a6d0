"""Metagraph files, what is refused in them, and the tables that follow from a metagraph."""

import json
from fractions import Fraction

import pytest
from substrateinterface import Keypair

from pipelines.chain_snapshots import ChainSnapshots
from pipelines.frames import schema, violations
from pipelines.metagraph import MetagraphError, metagraph_of_neurons, miners, validators
from pipelines.metagraph_file import read_metagraph_file
from pipelines.neurons import Revealed, revealed_text
from pipelines.settings import Parameters, PipelineSettings
from pipelines.sources import chain_source
from warehouse.hotkeys import ZERO_HOTKEY
from warehouse.settings import WarehouseSettings
from warehouse.tables import MINERS, VALIDATORS

ALICE, BOB, CAROL, DAVE = (
    Keypair.create_from_uri(f"//{name}").ss58_address for name in ("Alice", "Bob", "Carol", "Dave")
)
OTHER_NETWORK = Keypair.create_from_uri("//Alice", ss58_format=0).ss58_address
PARAMETERS = Parameters(
    task_window=100,
    completeness_threshold=Fraction(4, 5),
    dominance_threshold=Fraction(1, 20),
    min_validator_stake_rao=5000 * 10**9,
)
WHOLE_MINER = {
    "uid": 7,
    "hotkey": CAROL,
    "block": 4_400_000,
    "is_valid": True,
    "invalid_reason": None,
    "model_name": "carol/leoma",
    "model_revision": "abc",
    "model_hash": "def",
    "chute_id": "c-1",
    "chute_slug": "carol-leoma",
}


def validator(hotkey=ALICE, uid=0, stake=12_345.678):
    return {"uid": uid, "hotkey": hotkey, "stake": stake}


def miner(**changes):
    return WHOLE_MINER | changes


def document(**changes):
    whole = {"netuid": 99, "block": 4_500_000, "validators": [validator()], "miners": [miner()]}
    return whole | changes


@pytest.fixture
def read(tmp_path):
    """Write a document, or a text as it stands, to a file and read it as a metagraph."""

    def read_back(content):
        path = tmp_path / "metagraph.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return read_metagraph_file(path, netuid=99)

    return read_back


def with_stake(literal):
    """A document whose one stake is this text, as JSON has it."""
    return json.dumps(document(validators=[validator(stake="STAKE")])).replace('"STAKE"', literal)


def without(fields, name):
    return {key: value for key, value in fields.items() if key != name}


def test_a_file_becomes_a_metagraph(read):
    found = read(
        document(
            validators=[validator(BOB, 3, 5000), validator(ALICE, 0)],
            miners=[miner(hotkey=DAVE, uid=9), miner()],
        )
    )

    assert (found.netuid, found.block) == (99, 4_500_000)
    assert found.validators.to_dicts() == [
        {"hotkey": ALICE, "uid": 0, "stake_rao": 12_345_678_000_000},
        {"hotkey": BOB, "uid": 3, "stake_rao": 5_000_000_000_000},
    ]
    assert found.miners.schema == schema(MINERS)
    assert found.miners.to_dicts() == [
        WHOLE_MINER | {"last_validated_at_ms": None},
        WHOLE_MINER | {"hotkey": DAVE, "uid": 9, "last_validated_at_ms": None},
    ]


@pytest.mark.parametrize(
    ("literal", "stake_rao"),
    [
        ("12345.678", 12_345_678_000_000),
        ("5000", 5_000_000_000_000),
        ("0.1", 100_000_000),
        # As a float this is 4,503,599.627370497, one rao too many.
        ("4503599.627370496", 4_503_599_627_370_496),
        ("9007199.254740993", 9_007_199_254_740_993),
        ("1e3", 1_000_000_000_000),
        ("0.0000000019", 1),
        ("4999.9999999999999999999999999999999999999999", 4_999_999_999_999),
        ("1e-999999", 0),
        ("0e999999", 0),
        ("-0.5", 0),
        ("-1e999999", 0),
        ("-3", 0),
        ("4611686018.427387903", 2**62 - 1),
    ],
)
def test_a_stake_is_exact_to_the_rao_and_never_negative(read, literal, stake_rao):
    assert read(with_stake(literal)).validators["stake_rao"].to_list() == [stake_rao]


def test_entries_of_the_zero_key_are_empty_uids_and_dropped(read):
    empty = {"hotkey": ZERO_HOTKEY}

    found = read(
        document(
            validators=[validator(**empty, uid=4), validator(), validator(**empty, uid=5)],
            miners=[miner(), miner(**empty, uid=6)],
        )
    )

    assert found.validators["hotkey"].to_list() == [ALICE]
    assert found.miners["hotkey"].to_list() == [CAROL]


def test_a_neuron_may_be_validator_and_miner(read):
    found = read(document(miners=[miner(hotkey=ALICE, uid=0)]))

    assert found.miners["uid"].to_list() == found.validators["uid"].to_list() == [0]


def test_a_subnet_may_have_no_miners(read):
    found = read(document(miners=[]))

    assert found.miners.is_empty()
    assert violations(miners(found, []), MINERS) == []


def test_what_is_unknown_of_a_miner_is_null(read):
    brief = {"uid": 7, "hotkey": CAROL, "block": None, "is_valid": False}

    assert read(document(miners=[brief])).miners.to_dicts() == [dict.fromkeys(MINERS.names) | brief]


def test_fields_that_nobody_asked_for_are_ignored(read):
    assert read(document(tempo=360)).block == 4_500_000


REFUSED = {
    "empty file": ("", "not JSON"),
    "not JSON": ("{", "not JSON"),
    "not an object": ("[]", "the document is not an object"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "a number of 5000 digits": (with_stake("9" * 5_000), "not JSON"),
    "an exponent beyond decimals": (with_stake("1e99999999999999999999"), "not JSON"),
    "field given twice": ('{"netuid": 1, "netuid": 99}', "given twice"),
    "other netuid": (document(netuid=98), "netuid is 98, but NETUID is 99"),
    "netuid as text": (document(netuid="99"), "netuid is not an integer"),
    "negative block": (document(block=-1), "block is not an integer"),
    "block as bool": (document(block=True), "block is not an integer"),
    "block with a fraction": (document(block=4.5), "block is not an integer"),
    "block beyond 63 bits": (document(block=2**63), "block is not an integer"),
    "no validators": (document(validators=[]), "there are no validators"),
    "only empty uids": (document(validators=[validator(ZERO_HOTKEY)]), "there are no validators"),
    "validators as object": (document(validators={}), "validators is not a list"),
    "validators as null": (document(validators=None), "validators is not a list"),
    "validator as text": (document(validators=[ALICE]), r"validators\[0\] is not an object"),
    "malformed hotkey": (document(miners=[miner(hotkey="5abc")]), r"miners\[0\].hotkey is not an"),
    "other network": (document(validators=[validator(OTHER_NETWORK)]), "prefix 42"),
    "hotkey with newline": (document(validators=[validator(ALICE + "\n")]), "prefix 42"),
    "hotkey as number": (document(validators=[validator(5)]), "prefix 42"),
    "uid as bool": (document(validators=[validator(uid=True)]), r"\[0\].uid is not an integer"),
    "uid beyond 16 bits": (document(validators=[validator(uid=65_536)]), "uid is not an integer"),
    "negative uid": (document(miners=[miner(uid=-1)]), r"miners\[0\].uid is not an integer"),
    "duplicate uid": (
        document(validators=[validator(), validator(BOB)]),
        "uid 0 is given to two hotkeys",
    ),
    "duplicate hotkey": (
        document(validators=[validator(), validator(uid=1)]),
        f"hotkey {ALICE} is listed twice",
    ),
    "duplicate entry": (document(miners=[miner(), miner()]), f"hotkey {CAROL} is listed twice"),
    "one hotkey at two uids across the lists": (
        document(miners=[miner(hotkey=ALICE, uid=5)]),
        f"hotkey {ALICE} is given two uids",
    ),
    "one uid for two hotkeys across the lists": (
        document(miners=[miner(uid=0)]),
        "uid 0 is given to two hotkeys",
    ),
    "stake as text": (with_stake('"5000"'), r"validators\[0\].stake is not a number"),
    "stake as bool": (with_stake("true"), r"validators\[0\].stake is not a number"),
    "stake as null": (with_stake("null"), r"validators\[0\].stake is not a number"),
    "stake NaN": (with_stake("NaN"), "NaN is not a number"),
    "stake Infinity": (with_stake("Infinity"), "Infinity is not a number"),
    "stake -Infinity": (with_stake("-Infinity"), "-Infinity is not a number"),
    "stake that would fill the memory": (with_stake("1e999999"), "more TAO than there can be"),
    "integer stake beyond 63 bits of rao": (with_stake("9223372037"), "more TAO than there can be"),
    "stake whose double overflows": (
        with_stake("4611686018.427387904"),
        r"the stakes sum to 2\*\*62 rao or more",
    ),
    "stakes whose doubled sum overflows": (
        document(validators=[validator(stake=2_400_000_000), validator(BOB, 1, 2_400_000_000)]),
        r"the stakes sum to 2\*\*62 rao or more",
    ),
    "is_valid as number": (document(miners=[miner(is_valid=1)]), "neither true nor false"),
    "is_valid as null": (document(miners=[miner(is_valid=None)]), "neither true nor false"),
    "commit block as text": (document(miners=[miner(block="1")]), r"miners\[0\].block is not an"),
    "commit block as bool": (document(miners=[miner(block=False)]), r"miners\[0\].block is not an"),
    "model name as number": (document(miners=[miner(model_name=3)]), "model_name is not a text"),
    "half of a surrogate pair": (
        document(miners=[miner(chute_id="\ud800")]),
        "chute_id is not a text",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_right_is_refused_by_file_and_field(read, content, sentence):
    with pytest.raises(MetagraphError, match=sentence) as refused:
        read(content)

    assert str(refused.value).startswith("metagraph file /")
    assert "metagraph.json: " in str(refused.value)


@pytest.mark.parametrize("name", ["netuid", "block", "validators", "miners"])
def test_a_missing_field_is_refused(read, name):
    with pytest.raises(MetagraphError, match=f": {name} is missing"):
        read(without(document(), name))


@pytest.mark.parametrize("name", ["uid", "hotkey", "stake"])
def test_a_missing_field_of_a_validator_is_refused(read, name):
    with pytest.raises(MetagraphError, match=rf"validators\[1\].{name} is missing"):
        read(document(validators=[validator(), without(validator(BOB, 1), name)]))


@pytest.mark.parametrize("name", ["uid", "hotkey", "block", "is_valid"])
def test_a_missing_field_of_a_miner_is_refused(read, name):
    with pytest.raises(MetagraphError, match=rf"miners\[0\].{name} is missing"):
        read(document(miners=[without(miner(), name)]))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(MetagraphError, match=r"none\.json: it cannot be read: No such file"):
        read_metagraph_file(tmp_path / "none.json", 99)
    with pytest.raises(MetagraphError, match="it cannot be read: Is a directory"):
        read_metagraph_file(tmp_path, 99)


def test_bytes_that_are_no_utf8_are_refused(tmp_path):
    path = tmp_path / "metagraph.json"
    path.write_bytes(b'{"netuid": "\xff"}')

    with pytest.raises(MetagraphError, match="not JSON"):
        read_metagraph_file(path, 99)


def test_a_file_of_absurd_size_is_refused_unread(tmp_path):
    path = tmp_path / "metagraph.json"
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)

    with pytest.raises(MetagraphError, match="more than 67108864 bytes"):
        read_metagraph_file(path, 99)


def source_of(tmp_path, place):
    snapshots = ChainSnapshots(WarehouseSettings(leoma_home=tmp_path))
    return chain_source(PipelineSettings(chain_source=place, netuid=99), snapshots)


def test_a_source_reads_its_file_anew_at_every_sync(tmp_path):
    path = tmp_path / "metagraph.json"
    source = source_of(tmp_path, str(path))

    with pytest.raises(MetagraphError):
        source.sync()
    path.write_text(json.dumps(document()))
    assert source.sync().block == 4_500_000
    path.write_text(json.dumps(document(block=4_500_001)))
    assert source.sync().block == 4_500_001


def test_a_source_that_is_not_set_is_refused_when_it_is_read(tmp_path):
    source = source_of(tmp_path, "")

    with pytest.raises(MetagraphError, match="CHAIN_SOURCE is not set"):
        source.sync()


def test_a_validator_is_registered_from_the_minimum_stake_on(read):
    found = validators(
        read(
            document(
                validators=[
                    validator(ALICE, 0, 5000),
                    validator(BOB, 1, 4999.999999999),
                    validator(DAVE, 2, 5000.000000001),
                ]
            )
        ),
        PARAMETERS,
    )

    assert violations(found, VALIDATORS) == []
    registered = dict(found.select("hotkey", "is_registered").rows())
    assert registered == {ALICE: True, BOB: False, DAVE: True}


def test_the_blacklist_comes_before_every_other_reason(read):
    metagraph = read(
        document(
            miners=[
                miner(),
                miner(hotkey=BOB, uid=8),
                miner(hotkey=DAVE, uid=9, is_valid=False, invalid_reason="chute_not_running"),
            ]
        )
    )

    def judged(blacklisted):
        found = miners(metagraph, blacklisted)
        assert violations(found, MINERS) == []
        return found.select("hotkey", "is_valid", "invalid_reason").rows()

    assert judged([]) == [
        (CAROL, True, None),
        (BOB, True, None),
        (DAVE, False, "chute_not_running"),
    ]
    assert judged({BOB, DAVE, ALICE}) == [
        (CAROL, True, None),
        (BOB, False, "blacklisted"),
        (DAVE, False, "blacklisted"),
    ]


def chain_miner(hotkey, uid, commit_block, **changes):
    whole = {
        "netuid": 99,
        "block": 1000,
        "uid": uid,
        "hotkey": hotkey,
        "is_validator": True,
        "stake_rao": 1,
        "is_miner": True,
        "revealed": revealed_text([Revealed(commit_block, b"")]),
        "commit_block": commit_block,
        "is_valid": True,
        "model_hash": "same",
    }
    return whole | changes


def judged_on_chain(rows, blacklisted=()):
    found = miners(metagraph_of_neurons(rows), blacklisted)
    assert violations(found, MINERS) == []
    return dict(found.select("hotkey", "invalid_reason").rows())


def test_a_copy_loses_to_the_earlier_commitment():
    rows = [chain_miner(ALICE, 5, 300), chain_miner(BOB, 9, 200), chain_miner(CAROL, 7, 200)]
    copied = "duplicate_model:earliest_uid=7"
    assert judged_on_chain(rows) == {ALICE: copied, BOB: copied, CAROL: None}
    assert judged_on_chain(rows[::-1]) == judged_on_chain(rows)
    other = [*rows, chain_miner(DAVE, 1, 900, model_hash="another")]
    assert judged_on_chain(other)[DAVE] is None


def test_the_original_counts_while_it_is_invalid_but_not_when_it_is_blacklisted():
    cold = chain_miner(ALICE, 5, 100, is_valid=False, invalid_reason="chute_not_running")
    copy = chain_miner(BOB, 6, 200)
    copied = "duplicate_model:earliest_uid=5"
    assert judged_on_chain([cold, copy]) == {ALICE: "chute_not_running", BOB: copied}
    assert judged_on_chain([cold, copy], {ALICE}) == {ALICE: "blacklisted", BOB: None}


def test_an_earlier_reason_stays_and_what_is_unknown_is_no_copy():
    mismatch = chain_miner(BOB, 6, 200, is_valid=False, invalid_reason="revision_mismatch:hf=x")
    rows = [
        chain_miner(ALICE, 5, 100),
        mismatch,
        chain_miner(CAROL, 7, 300, model_hash=None),
        chain_miner(DAVE, 8, 400, model_hash=None),
    ]
    assert judged_on_chain(rows) == {
        ALICE: None,
        BOB: "revision_mismatch:hf=x",
        CAROL: None,
        DAVE: None,
    }


def test_a_file_has_judged_its_own_miners(read):
    metagraph = read(document(miners=[miner(), miner(hotkey=BOB, uid=8)]))
    assert miners(metagraph, [])["is_valid"].to_list() == [True, True]
