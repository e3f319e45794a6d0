"""A sync with a simulated node: everything at one block, or a sentence that says why not."""

import threading
import time

import psutil
import pytest
from substrateinterface import Keypair

from cli.simulated.chain import SimulatedChain
from cli.simulated.metadata import storage_key
from cli.simulated.node import Fault, SimulatedNode
from cli.simulated.scale import account, blob, compact, option, unsigned, vector
from pipelines.chain import ChainNodes
from pipelines.metagraph import MetagraphError
from pipelines.neurons import Revealed
from pipelines.settings import PipelineSettings
from warehouse.hotkeys import hotkey_of

HOTKEYS = [Keypair.create_from_uri(f"//neuron{uid}").ss58_address for uid in range(12)]
NEWCOMER = Keypair.create_from_uri("//newcomer").ss58_address
TIMEOUT_SECONDS = 0.5
SYNC_METHODS = (
    "chain_getBlockHash",
    "chain_getHead",
    "chain_getHeader",
    "state_getRuntimeVersion",
    "state_getMetadata",
    "state_queryStorageAt",
    "state_call",
)


def populated(**values):
    chain = SimulatedChain(**values)
    for uid, hotkey in enumerate(HOTKEYS):
        chain.register(hotkey, 5000 + uid if uid < 4 else 0)
    for hotkey in HOTKEYS[4:10]:
        chain.reveal(hotkey, {"model_name": hotkey}, block=0)
    chain.mine(3)
    return chain


@pytest.fixture
def chain():
    return populated()


@pytest.fixture
def node(chain):
    with SimulatedNode(chain) as listening:
        yield listening


@pytest.fixture
def nodes():
    made = []

    def make(*urls, **values):
        values = {"chain_timeout_seconds": TIMEOUT_SECONDS} | values
        made.append(ChainNodes(PipelineSettings(chain_source=",".join(urls), **values)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def source(node, nodes):
    return nodes(node.url)


def hotkeys(state):
    return {one.uid: one.hotkey for one in state.neurons}


def test_a_sync_tells_all_neurons_at_one_block(chain, source):
    chain.reveal(HOTKEYS[4], "second", block=2)
    chain.reveal(HOTKEYS[5], b"\xff\x00 no text", is_raw=True, block=2)
    chain.mine()

    state = source.sync()

    assert (state.netuid, state.block, state.block_hash) == (99, 4, chain.head)
    assert state.genesis_hash == chain.genesis_hash
    assert hotkeys(state) == dict(enumerate(HOTKEYS))
    stakes = [one.stake_rao for one in state.neurons]
    assert stakes == [(5000 + uid) * 10**9 for uid in range(4)] + [0] * 8
    first = b'{"model_name": "' + HOTKEYS[4].encode() + b'"}'
    assert state.neurons[4].revealed == (
        Revealed(0, bytes([len(first) << 2 & 0xFF | 1, len(first) >> 6]) + first),
        Revealed(2, b"\x18second"),
    )
    assert state.neurons[5].revealed[-1] == Revealed(2, b"\xff\x00 no text")
    assert state.neurons[10].revealed == ()


def test_a_block_mined_in_the_middle_changes_nothing(chain, node, source):
    before = source.sync()

    def mine(method, _params):
        if method == "state_queryStorageAt":
            chain.set_stake(HOTKEYS[0], 1_000_000)
            chain.register(NEWCOMER, uid=1)
            chain.mine()

    node.fault = mine
    assert source.sync() == before
    node.fault = lambda _method, _params: None
    assert source.sync().neurons[0].stake_rao == 10**15


def test_an_answer_that_does_not_hold_the_runtime_long_is_followed(chain, node, source):
    newer = source.sync()
    for spec_version in (218, 425, 426):
        chain.upgrade_runtime(spec_version)
        chain.mine(2)
        state = source.sync()
        assert [one.stake_rao for one in state.neurons] == [one.stake_rao for one in newer.neurons]
        assert [one.revealed for one in state.neurons] == [one.revealed for one in newer.neurons]
    assert node.calls.count("state_getMetadata") == 3  # 425 was decoded before
    assert node.calls.count("chain_getBlockHash") == 1  # and all of that on one connection


def test_two_syncs_in_one_block_are_equal(source):
    assert source.sync() == source.sync()


def test_a_uid_that_changes_hands_and_a_hotkey_that_changes_its_uid(chain, source):
    source.sync()
    chain.register(NEWCOMER, uid=5)
    chain.deregister(6)
    moved = HOTKEYS[7]
    chain.deregister(7)
    chain.register(moved, uid=6)
    chain.mine()

    state = source.sync()

    assert hotkeys(state)[5] == NEWCOMER
    assert hotkeys(state)[6] == moved
    # The zero key in uid 7 is nobody.
    assert 7 not in hotkeys(state)
    # Commitments are a hotkey's: neither of them inherits any.
    assert [one.revealed for one in state.neurons if one.hotkey in {NEWCOMER, moved}] == [(), ()]


FAULTS = {
    "error": (Fault.error(-32000, "the node is tired"), "the node is tired"),
    "drop": (Fault.drop(), "it closed the connection"),
    "hang": (Fault.hang(), "no answer within 0.5 seconds"),
    "garbage": (Fault.garbage("<html>502 Bad Gateway</html>"), "the answer is not JSON"),
    "another message": (Fault.garbage('{"jsonrpc": "2.0", "method": "x", "params": {}}'), ""),
    "null": (Fault.result(None), ""),
    "an empty list": (Fault.result([]), ""),
    "an empty text": (Fault.result(""), ""),
    "a number": (Fault.result(7), ""),
    "half of it": (
        Fault.change(lambda result: {} if isinstance(result, dict) else result[: len(result) // 2]),
        "",
    ),
}


@pytest.mark.parametrize("method", SYNC_METHODS)
@pytest.mark.parametrize("name", FAULTS)
def test_whatever_a_node_does_is_one_sentence_and_the_next_sync_works(node, source, method, name):
    fault, says = FAULTS[name]
    node.fault = lambda asked, _params: fault if asked == method else None
    with pytest.raises(MetagraphError, match=r"^the chain cannot be read: ws:") as caught:
        source.sync()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    node.fault = lambda _method, _params: None
    assert len(source.sync().neurons) == len(HOTKEYS)


def without_last_change(result):
    result[0]["changes"].pop()
    return result


def with_another_key(result):
    result[0]["changes"][-1][0] = "0x00"
    return result


def of_another_block(result):
    result[0]["block"] = "0x" + "00" * 32
    return result


def twice(result):
    result[0]["changes"].append(result[0]["changes"][0])
    return result


@pytest.mark.parametrize("change", [without_last_change, with_another_key, of_another_block, twice])
def test_a_partial_answer_is_not_taken_for_a_smaller_subnet(node, source, change):
    node.fault = lambda method, _params: (
        Fault.change(change) if method == "state_queryStorageAt" else None
    )
    with pytest.raises(MetagraphError, match=r"keys were asked for|it is for block"):
        source.sync()


def stored(item, *keys, content):
    """A fault that gives one item of storage another content."""
    key = "0x" + storage_key(*item, *keys).hex()
    text = None if content is None else "0x" + content.hex()

    def change(result):
        for one in result[0]["changes"]:
            if one[0] == key:
                one[1] = text
        return result

    return lambda method, _params: (
        Fault.change(change) if method == "state_queryStorageAt" else None
    )


NETUID = unsigned(99, 16)
REVEALED = ("Commitments", "RevealedCommitments"), NETUID, account(HOTKEYS[4])
SIZE = ("SubtensorModule", "SubnetworkN"), NETUID
IS_THERE = ("SubtensorModule", "NetworksAdded"), NETUID


@pytest.mark.parametrize(
    ("item", "content", "says"),
    [
        ((("Timestamp", "Now"),), None, "Timestamp.Now is absent"),
        ((("Timestamp", "Now"),), b"\x01" * 4, "Timestamp.Now is not what it was: 8 bytes"),
        (IS_THERE, None, "netuid 99 does not exist"),
        (IS_THERE, b"\x00", "netuid 99 does not exist"),
        (IS_THERE, b"\x02", "2 is neither true nor false"),
        (IS_THERE, b"", "1 bytes are announced and 0 are there"),
        (SIZE, None, "SubnetworkN is absent"),
        (SIZE, unsigned(13, 16), "has 13 neurons, the answer 12, 12, 12"),
        (SIZE, unsigned(12, 32), "SubnetworkN is not what it was: 2 bytes too many"),
        (REVEALED, b"", f"RevealedCommitments of {HOTKEYS[4]} is not what it was"),
        (REVEALED, compact(2**30 - 1) + bytes(99), "1073741823 items are announced"),
        (REVEALED, vector([blob(b"x") + unsigned(3, 64)]) + b"\x00", "1 bytes too many"),
        # A runtime with blocks of 32 bits, say.
        (REVEALED, vector([blob(b"x") + unsigned(3, 32)]), "8 bytes are announced and 4 are there"),
        (REVEALED, vector([blob(b"x") + unsigned(4, 64)]), "block 4, after the newest block 3"),
    ],
)
def test_storage_that_is_not_what_it_was_fails_the_sync(node, source, item, content, says):
    node.fault = stored(*item, content=content)
    with pytest.raises(MetagraphError, match=says):
        source.sync()
    node.fault = lambda _method, _params: None
    assert len(source.sync().neurons) == len(HOTKEYS)


def test_no_commitments_and_an_empty_list_of_them_are_the_same(node, source):
    node.fault = stored(*REVEALED, content=b"\x00")
    assert source.sync().neurons[4].revealed == ()


@pytest.mark.parametrize("change", ["inserted", "removed", "appended"])
def test_a_field_that_a_runtime_adds_never_passes_for_the_stakes(chain, node, source, change):
    zeros = vector(compact(0) for _ in HOTKEYS)
    state, history = chain.subnet_state(), vector([zeros])
    before = state[: -len(history + vector(compact(one.stake_rao) for one in chain.neurons))]
    tail = state[len(before) :]
    state = {
        "inserted": before + zeros + tail,
        "removed": before[: -len(zeros)] + tail,
        "appended": state + zeros,
    }[change]
    node.fault = lambda method, _params: (
        Fault.result("0x" + option(state).hex()) if method == "state_call" else None
    )
    if change == "appended":
        assert source.sync().neurons[3].stake_rao == 5003 * 10**9
        return
    with pytest.raises(MetagraphError, match=r"get_subnet_state is not what it was|has 12 neurons"):
        source.sync()


@pytest.mark.parametrize(("spec_version", "size"), [(425, 9026), (218, 9026), (218, 9024)])
def test_the_two_forms_of_a_state_are_told_apart_whatever_its_length(nodes, spec_version, size):
    # 9024 bytes behind their number are 9026, which begin with 01 8d; so does an option of a state
    # of netuid 99.
    chain = SimulatedChain(spec_version=spec_version)
    hotkeys = [hotkey_of(bytes([uid + 1]) * 32) for uid in range(120)]
    chain.register(hotkeys[0], 5000)
    for hotkey in hotkeys[1:]:
        chain.register(hotkey)
        if len(chain.subnet_state()) + 100 > size:
            break
    missing = size - (len(chain.subnet_state()) + (1 if spec_version == 425 else 2))
    for hotkey in hotkeys[1 : missing + 1]:
        chain.set_stake(hotkey, 64e-9)
    chain.mine()
    with SimulatedNode(chain) as node:
        answers = []
        node.fault = lambda method, _params: (
            Fault.change(lambda answer: answers.append(answer) or answer)
            if method == "state_call"
            else None
        )
        state = nodes(node.url).sync()
    assert len(answers[0]) == 2 + 2 * size
    assert len(state.neurons) == len(chain.neurons)
    assert (state.neurons[0].stake_rao, state.neurons[1].stake_rao) == (5000 * 10**9, 64)


def lying(chain, **changes):
    """The runtime's answer about a chain that was changed and not mined."""
    for name, value in changes.items():
        setattr(chain, name, value)
    return "0x01" + chain.subnet_state().hex()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda chain: chain.neurons.pop(), "has 12 neurons, the answer 11, 11, 11"),
        (lambda chain: setattr(chain, "netuid", 98), "asked about netuid 99, it answered about 98"),
        (lambda chain: chain.register(HOTKEYS[0], uid=3), "a hotkey has two uids"),
        (lambda chain: chain.set_stake(HOTKEYS[0], 4.7e9), "sum to 2"),
        (lambda chain: [chain.set_stake(key, 1) for key in HOTKEYS], "no neuron has MIN_VALIDATOR"),
        (lambda chain: [chain.set_stake(key, 0) for key in HOTKEYS], "no neuron has MIN_VALIDATOR"),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused(node, source, make, says):
    other = populated()
    make(other)
    node.fault = lambda method, _params: (
        Fault.result(lying(other)) if method == "state_call" else None
    )
    with pytest.raises(MetagraphError, match=says):
        source.sync()


def test_a_netuid_that_does_not_exist_is_said(node, nodes):
    with pytest.raises(MetagraphError, match="netuid 7 does not exist on this chain"):
        nodes(node.url, netuid=7).sync()


def test_an_empty_subnet_is_no_success(nodes):
    chain = SimulatedChain()
    with SimulatedNode(chain) as node, pytest.raises(MetagraphError, match="has no neurons"):
        nodes(node.url).sync()


def test_a_node_of_another_chain_is_refused(chain, node, nodes):
    other = "0x" + "ab" * 32
    with pytest.raises(MetagraphError, match=f"{chain.genesis_hash}, but CHAIN_GENESIS is {other}"):
        nodes(node.url, chain_genesis=other).sync()
    assert nodes(node.url, chain_genesis=chain.genesis_hash.upper().replace("X", "x")).sync()


def test_a_node_that_stands_still_is_refused(nodes):
    chain = populated(now_ms=lambda: int((time.time() - 3_600) * 1000))
    with SimulatedNode(chain) as node:
        with pytest.raises(MetagraphError, match="does not follow the chain: its newest block, 3"):
            nodes(node.url).sync()
        assert nodes(node.url, chain_block_age_seconds_max=4_000).sync().block == 3


def test_the_nodes_are_tried_in_turn_and_the_good_one_first_next_time(chain, node, nodes):
    with SimulatedNode(chain) as broken:
        broken.fault = lambda _method, _params: Fault.drop()
        source = nodes("ws://127.0.0.1:1", broken.url, node.url)
        assert source.sync().block == 3
        asked = len(broken.calls)
        assert source.sync().block == 3
        assert len(broken.calls) == asked
        node.fault = lambda _method, _params: Fault.drop()
        with pytest.raises(MetagraphError) as caught:
            source.sync()
        # What each of them did.
        assert str(caught.value).count("ws://127.0.0.1:") == 3


def test_a_node_that_went_away_and_came_back_needs_no_restart(node, source):
    source.sync()
    node.stop_listening()
    with pytest.raises(MetagraphError):
        source.sync()
    node.listen()
    assert source.sync().block == 3


def test_a_node_that_is_not_believed_is_connected_to_anew(chain, node, source):
    # Behind its address there may be many.
    source.sync()
    node.fault = stored(*IS_THERE, content=None)
    with pytest.raises(MetagraphError):
        source.sync()
    node.fault = lambda _method, _params: None
    source.sync()
    assert node.calls.count("state_getMetadata") == 2


def test_a_node_that_chats_for_ever_does_not_hold_us_for_ever(node, nodes):
    source = nodes(node.url, chain_sync_seconds_max=1)
    node.fault = lambda method, _params: (
        Fault.chatter('{"jsonrpc": "2.0", "method": "x", "params": {"subscription": 1}}')
        if method == "state_call"
        else None
    )
    with pytest.raises(MetagraphError, match="cannot be read"):
        source.sync()
    node.fault = lambda _method, _params: None
    assert source.sync().block == 3


def test_what_an_address_may_hold_is_not_shown(nodes):
    source = nodes("ws://someone:hidden1@127.0.0.1:1/hidden2?key=hidden3")
    with pytest.raises(MetagraphError) as caught:
        source.sync()
    assert "ws://127.0.0.1:1" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "someone" not in str(caught.value)


def test_many_syncs_leave_no_connection_behind(node, nodes):
    process = psutil.Process()
    source = nodes(node.url)
    source.sync()
    # Not the process's count of threads: libraries of other tests start theirs when they like.
    handles, threads = process.num_fds(), set(threading.enumerate())
    for count in range(30):
        node.fault = (
            (lambda _method, _params: Fault.drop())
            if count % 3 == 0
            else (lambda _method, _params: None)
        )
        if count % 3 == 0:
            with pytest.raises(MetagraphError):
                source.sync()
        else:
            source.sync()
    assert node.connections <= 1
    assert process.num_fds() <= handles + 1
    assert set(threading.enumerate()) <= threads
    source.close()


def test_a_head_that_is_not_its_own_number_is_refused(node, source, chain):
    """Believed once, it would be in force for ever: whatever comes after it lags."""
    node.fault = lambda method, _params: (
        Fault.change(lambda header: {**header, "number": "0xfffffff0"})
        if method == "chain_getHeader"
        else None
    )
    with pytest.raises(MetagraphError, match="newest block is 4294967280, and calls itself 3"):
        source.sync()
    node.fault = lambda _method, _params: None
    assert source.sync().block == chain.number
