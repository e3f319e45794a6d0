"""What chain, services and files say: read as it was written, or the declared error."""

import contextlib
import dataclasses
import json

import pytest
from huggingface_hub import ModelInfo
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.chain import ContradictionError, _revealed, _subnet_state
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.chutes import Chutes, _is_denial
from pipelines.evidence import Facts
from pipelines.huggingface import HuggingFace, _no_answer
from pipelines.judging import facts_in, judged
from pipelines.metagraph import Metagraph, MetagraphError
from pipelines.metagraph_file import read_metagraph_file
from pipelines.neurons import ChainState, Neuron, Revealed, revealed_in, revealed_text
from pipelines.node import Node, NodeError, _changes
from pipelines.outside import NoAnswer
from pipelines.validation import ChuteFact, ModelFact
from tests.builders import hotkey, metagraph
from tests.properties import JSON_VALUES, changed, tried
from warehouse.settings import WarehouseSettings

DEEP = b"[" * 100_000
CONTENTS = st.binary(max_size=80) | JSON_VALUES.map(json.dumps).map(str.encode)
INT63 = st.integers(0, 2**63 - 1)
STORABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
HOTKEYS = [hotkey(f"neuron {number}") for number in range(4)]
HASH = "0x" + "a" * 64
# Nobody is asked: only what they make of an answer is tried.
CHUTES = Chutes("http://127.0.0.1:1", "", 1.0)
HUGGING_FACE = HuggingFace("http://127.0.0.1:1", "", 1.0)


def compact(number):
    if number < 2**6:
        return (number << 2).to_bytes(1, "little")
    if number < 2**14:
        return (number << 2 | 1).to_bytes(2, "little")
    if number < 2**30:
        return (number << 2 | 2).to_bytes(4, "little")
    content = number.to_bytes(max(4, (number.bit_length() + 7) // 8), "little")
    return bytes([len(content) - 4 << 2 | 3]) + content


def vector(items):
    return compact(len(items)) + b"".join(items)


@st.composite
def chutes(draw):
    return changed({"hot": True, "slug": "a", "revision": "b", "more": [1]}, draw)


@tried(300, 4_000)
@given(CONTENTS | chutes().map(json.dumps).map(str.encode))
@example(DEEP)
@example(b'{"hot": 1}')
def test_whatever_chutes_says_is_a_fact_or_no_answer(content):
    with contextlib.suppress(NoAnswer):
        fact = CHUTES._described("id", content)
        assert fact.is_found
        assert isinstance(fact.is_hot, bool)
        json.dumps(dataclasses.asdict(fact)).encode()
    assert _is_denial(content) in {True, False}


@st.composite
def models(draw):
    sibling = {
        "rfilename": "a.safetensors",
        "lfs": {"size": 1, "sha256": "a" * 64, "pointerSize": 1},
    }
    return changed({"id": "a/b", "sha": "0" * 40, "siblings": [sibling, sibling]}, draw)


@tried(200, 2_000)
@given(models().filter(lambda document: isinstance(document, dict)))
@example({"id": "a/b", "sha": "0" * 40, "siblings": [{"rfilename": 7, "lfs": {}}]})
def test_whatever_hugging_face_says_is_a_fact_or_no_answer(document):
    # As in `fact`, without the way there. The library raises what it likes.
    with contextlib.suppress(NoAnswer), told_as_no_answer():
        fact = HUGGING_FACE._described("a/b", "main", ModelInfo(**document))
        json.dumps(dataclasses.asdict(fact)).encode()


@contextlib.contextmanager
def told_as_no_answer():
    try:
        yield
    except Exception as error:  # noqa: BLE001  (as in `fact`)
        raise _no_answer(error) from None


class Speaking:
    """What stands for the library's connection: it answers everything with one document."""

    def __init__(self, answer):
        self.answer = answer

    def rpc_request(self, _method, _params):
        return self.answer


@tried(300, 4_000)
@given(JSON_VALUES | st.fixed_dictionaries({"result": JSON_VALUES}))
@example({"result": {"number": "0xffffffff", "hash": HASH}})
@example({"result": "0x" + "g" * 64})
@example({"error": None})
def test_whatever_a_node_answers_is_a_value_or_a_node_error(answer):
    questions = (
        lambda node: node.head(),
        lambda node: node.genesis_hash(),
        lambda node: node.ask("x", []),
        lambda node: node.call(HASH, "x", b""),
    )
    for ask in questions:
        node = Node("ws://127.0.0.1:1", 1.0)
        node._substrate = Speaking(answer)
        with contextlib.suppress(NodeError):
            ask(node)


@tried(200, 2_000)
@given(
    JSON_VALUES
    | st.lists(st.fixed_dictionaries({"block": st.just(HASH), "changes": JSON_VALUES}), max_size=2)
)
def test_whatever_a_node_says_is_stored_is_refused(answer):
    node = Node("ws://127.0.0.1:1", 1.0)
    with pytest.raises(NodeError), node._told("state_queryStorageAt"):
        _changes(answer, ["0xab"], HASH)


@tried(300, 4_000)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x01", b"\x01\x04"]))
def test_any_bytes_are_the_state_of_a_subnet_or_a_contradiction(content, begin):
    with contextlib.suppress(ContradictionError):
        _subnet_state(begin + content)


@tried()
@given(
    st.integers(0, 2**16 - 1),
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), INT63), max_size=5),
    st.booleans(),
)
def test_the_state_of_a_subnet_is_read_back(netuid, neurons, is_wrapped):
    keys = vector([key for key, _ in neurons])
    flags = vector([b"\x01"] * len(neurons))
    numbers = vector([compact(7)] * len(neurons))
    state = compact(netuid) + keys * 2 + flags * 2 + numbers * 11
    state += vector([compact(stake) for _, stake in neurons]) + vector([vector([compact(1)])])
    read = _subnet_state(compact(len(state)) + state if is_wrapped else b"\x01" + state)
    assert (read.netuid, read.hotkeys) == (netuid, [key for key, _ in neurons])
    assert read.stakes_rao == [stake for _, stake in neurons]


@tried(300, 4_000)
@given(st.binary(max_size=100))
def test_any_bytes_are_commitments_or_a_contradiction(content):
    with contextlib.suppress(ContradictionError):
        _revealed("5", content, 100)


entries = st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 100)), max_size=4)


@tried()
@given(entries)
def test_commitments_are_read_back(written):
    content = vector(
        [compact(len(one)) + one + block.to_bytes(8, "little") for one, block in written]
    )
    read = _revealed("5", content, 100)
    assert read == tuple(Revealed(block, one) for one, block in written)
    assert revealed_in(revealed_text(read)) == read


@st.composite
def metagraph_files(draw):
    document = metagraph([{"hotkey": HOTKEYS[0]}], [{"hotkey": HOTKEYS[1]}, {"hotkey": HOTKEYS[2]}])
    return json.dumps(changed(document, draw)).encode()


@tried(300, 2_000)
@given(CONTENTS | metagraph_files())
@example(DEEP)
@example(b'{"netuid": 99, "block": 1e999999999}')
@example(b'{"netuid": 99, "netuid": 99}')
def test_any_file_is_a_metagraph_or_refused(tmp_path, content):
    path = tmp_path / "metagraph.json"
    path.write_bytes(content)
    with contextlib.suppress(MetagraphError):
        assert isinstance(read_metagraph_file(path, 99), Metagraph)


chute_facts = st.builds(
    ChuteFact,
    chute_id=STORABLE,
    is_found=st.booleans(),
    slug=st.none() | STORABLE,
    is_hot=st.none() | st.booleans(),
    revision=st.none() | STORABLE,
    answered_at_ms=INT63,
)
model_facts = st.builds(
    ModelFact,
    model_name=STORABLE,
    model_revision=STORABLE,
    is_found=st.booleans(),
    sha=st.none() | STORABLE,
    model_hash=st.none() | STORABLE,
    answered_at_ms=INT63,
)
all_facts = st.lists(
    st.builds(
        Facts,
        chute=st.none() | chute_facts,
        model=st.none() | model_facts,
        is_complete=st.just(False),
    ),
    min_size=4,
    max_size=4,
)


@tried(40, 400)
@given(all_facts, st.lists(entries, min_size=4, max_size=4), st.integers(1, 2**60))
def test_a_chain_snapshot_is_read_back_with_its_facts(tmp_path_factory, facts, written, stake_rao):
    neurons = tuple(
        Neuron(
            uid,
            HOTKEYS[uid],
            HOTKEYS[-uid],
            stake_rao if uid == 0 else 0,
            tuple(Revealed(block, content) for content, block in written[uid]),
        )
        for uid in range(4)
    )
    state = ChainState(99, 100, HASH, HASH, neurons)
    known = dict(zip(HOTKEYS, facts, strict=True))
    made = judged(state, known, None, 7)
    snapshots = ChainSnapshots(WarehouseSettings(leoma_home=tmp_path_factory.mktemp("home")))
    name = snapshots.keep(made, 1).name
    read = snapshots.read(name)
    assert read.neurons.equals(made.neurons)
    kept = {
        hotkey: one
        for (hotkey, one), content in zip(known.items(), written, strict=True)
        if content and (one.chute or one.model)
    }
    assert facts_in(read) == kept


@tried(40, 400)
@given(st.data())
def test_a_chain_snapshot_that_was_changed_is_refused(tmp_path_factory, data):
    snapshots = ChainSnapshots(WarehouseSettings(leoma_home=tmp_path_factory.mktemp("home")))
    neuron = Neuron(0, HOTKEYS[0], HOTKEYS[1], 1, ())
    name = snapshots.keep(judged(ChainState(99, 1, HASH, HASH, (neuron,)), {}, None, 7), 1).name
    path = snapshots.directory / name
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.binary(max_size=4).filter(lambda one: one != content[at : at + len(one)]))
    path.write_bytes(content[:at] + other + content[at + max(1, len(other)) :])
    with pytest.raises(MetagraphError):
        snapshots.read(name)


@tried(200, 2_000)
@given(CONTENTS)
@example(b'{"snapshot": 1}')
def test_what_is_no_pointer_to_a_chain_snapshot_is_refused(tmp_path, content):
    snapshots = ChainSnapshots(WarehouseSettings(leoma_home=tmp_path))
    snapshots.directory.mkdir(parents=True, exist_ok=True)
    snapshots.pointer.write_bytes(content)
    with pytest.raises(MetagraphError):
        snapshots.newest()
