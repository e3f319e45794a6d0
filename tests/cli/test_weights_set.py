"""`leoma weights set` against a served API and a node: what is sent, what is not, what is said."""

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from cli.main import run
from cli.simulated.node import Fault
from tests.api.conftest import API_SETTINGS
from tests.api.servers import Server
from tests.builders import hotkey, keypair, publish
from tests.cli.api_double import ApiDouble, answer, burn, iso
from tests.cli.weights_chain import WeightsChain, WeightsNode
from tests.cli.weights_runtime import ERRORS
from warehouse.settings import WarehouseSettings

OWN, OWN_UID, WINNER_UID = hotkey("own"), 3, 1
BEFORE = [(2, 65_535)]
SET = [(WINNER_UID, 65_535)]
NOBODY = "ws://127.0.0.1:9"
MNEMONIC = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"


@pytest.fixture
def api():
    with ApiDouble() as double:
        yield double


@pytest.fixture
def chain():
    """A chain on which `own` (uid 3) has set `other` (uid 2) long ago, and `winner` is uid 1."""
    chain = WeightsChain()
    for name in ("owner", "winner", "other"):
        chain.register(hotkey(name), coldkey=hotkey(f"{name}'s coldkey"))
    chain.owner = hotkey("owner's coldkey")
    chain.register(OWN, 10_000, permit=True)
    chain.weights[OWN_UID] = list(BEFORE)
    chain.mine(4)
    return chain


@pytest.fixture
def node(chain):
    with WeightsNode(chain) as listening:
        yield listening


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "hotkey"
    path.write_text("//own")
    path.chmod(0o600)
    return path


def call(capsys, *arguments):
    """Run `leoma weights set` in this process; return exit code, stdout and stderr."""
    code = run(["weights", "set", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def setting(capsys, api, node, key):
    """Set the weights; return exit code, stdout and stderr. Later options win over earlier ones."""

    def set_weights(*arguments):
        usual = ("--url", api.url, "--chain", node.url, "--key", key, "--timeout", 2, "--wait", 2)
        return call(capsys, *usual, *arguments)

    return set_weights


def submissions(node):
    return [method for method in node.calls if method.startswith("author_")]


def assert_kept(result, node, said):
    """Nothing was sent, what is on chain stays, and one line says why."""
    code, out, err = result
    assert (code, out, err.count("\n")) == (3, "", 1), err
    assert err.startswith("Error: Nothing was sent, and the weights on chain stay as they are: ")
    assert said in err
    assert submissions(node) == []
    assert node.chain.weights[OWN_UID] == BEFORE


def test_the_winner_is_set_and_read_back(setting, node):
    code, out, err = setting()
    assert (code, err) == (0, "")
    winner = hotkey("winner")
    assert out.startswith(f"Set: all the weight of uid 3 is on uid 1, {winner}; read back in block")
    assert "not final yet" in out
    assert node.chain.weights[OWN_UID] == SET
    assert submissions(node) == ["author_submitAndWatchExtrinsic"]
    deadline = time.monotonic() + 5
    while node.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert node.connections == 0


def test_programs_are_told_the_same_in_json(setting, node):
    node.chain.version_key = 7
    node.chain.mine()
    read_at = node.chain.number
    code, out, _ = setting("--json", "--finalize")
    told = json.loads(out)
    assert code == 0
    assert told["text"].startswith("Set: ")
    assert f"block {read_at + 1} (final)" in told["text"]
    assert len(bytes.fromhex(told["extrinsic_hash"][2:])) == 32
    assert {name: told[name] for name in told if name not in {"text", "extrinsic_hash"}} == {
        "outcome": "set",
        "call": "SubtensorModule.set_weights",
        "netuid": 99,
        "uids": [1],
        "weights": [65_535],
        "version_key": 7,
        "is_commit_reveal": False,
        "winner_hotkey": hotkey("winner"),
        "burn_reason": None,
        "snapshot_id": "20261123T095900Z",
        "own_uid": 3,
        "read_at_block": read_at,
        "weights_on_chain": [[2, 65_535]],
        "last_update_block": 0,
        "block": read_at + 1,
        "block_hash": node.chain.hash_of(read_at + 1),
    }


def test_a_wallet_and_a_real_api_are_enough(capsys, monkeypatch, node, tmp_path):
    path = tmp_path / "wallets" / "leo" / "hotkeys" / "hot"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"secretPhrase": f"{MNEMONIC}", "ss58Address": None}))
    path.chmod(0o600)
    node.chain.neurons[OWN_UID].hotkey = keypair_of(MNEMONIC).public_key
    node.chain.mine()
    settings = WarehouseSettings(leoma_home=tmp_path)
    winner = {"uid": 1, "miner_hotkey": hotkey("winner")}
    generation = {"winner_uid": 1, "winner_hotkey": hotkey("winner"), "burn_reason": None}
    publish(settings, {**generation, "block": node.chain.number}, weights=[winner])
    monkeypatch.setenv("CHAIN_SOURCE", node.url)
    with Server(API_SETTINGS, settings) as server:
        monkeypatch.setenv("LEOMA_URL", f"http://127.0.0.1:{server.port}")
        wallet = ("--wallet-path", tmp_path / "wallets", "--wallet", "leo", "--hotkey", "hot")
        code, out, err = call(capsys, *wallet)
    assert (code, err) == (0, "")
    assert out.startswith("Set: ")
    assert node.chain.weights[OWN_UID] == SET


def keypair_of(mnemonic):
    return type(keypair("own")).create_from_mnemonic(mnemonic)


def test_a_dry_run_shows_what_it_would_send_and_sends_nothing(setting, node):
    code, out, err = setting("--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith(
        "Would send SubtensorModule.set_weights: netuid 99, uids [1], weights [65535], version key "
        f"0. That is uid 1, {hotkey('winner')}. On chain at block {node.chain.number}, uid 3 has "
        "uid 2: 65535; set or committed last: never."
    )
    assert json.loads(setting("--dry-run", "--json")[1])["outcome"] == "would_send"
    assert submissions(node) == []
    assert node.chain.weights[OWN_UID] == BEFORE


NOW = datetime.now(UTC)
API_DOUBTS = {
    "two winners": (
        {"miners": [{"miner_hotkey": hotkey(name), "uid": uid, "pass_rate": 1, "weight": 1.0}
                    for name, uid in (("winner", 1), ("other", 2))]},
        "the weights are not 1.0 for it",
    ),
    "a winner that is elsewhere on chain": (
        {"winner_hotkey": hotkey("other"), "miners": [
            {"miner_hotkey": hotkey("other"), "uid": 1, "pass_rate": 1, "weight": 1.0}]},
        f"on chain that uid belongs to {hotkey('winner')}",
    ),
    "a uid that the chain does not have": (
        {"winner_uid": 40, "miners": [
            {"miner_hotkey": hotkey("winner"), "uid": 40, "pass_rate": 1, "weight": 1.0}]},
        "nobody is at uid 40",
    ),
    "expired": ({"valid_until": iso(NOW - timedelta(seconds=1))}, "expired"),
    "old": ({"computed_at": iso(NOW - timedelta(hours=1))}, "1800 s are allowed"),
    "another subnet": ({"netuid": 98}, "serves subnet 98"),
    "ahead of the chain": ({"block": 1_000}, "it lags, or the API reads another chain"),
    "a part missing": ({"burn_reason": ...}, "something else than the contract says"),
    "neither winner nor burn": (
        {"winner_hotkey": None, "winner_uid": 0, "miners": []}, "no reason to burn"),
}  # fmt: skip


@pytest.mark.parametrize("name", API_DOUBTS)
def test_an_api_in_doubt_keeps_what_is_on_chain(setting, api, node, name):
    changes, said = API_DOUBTS[name]
    api.document = answer(**changes)
    assert_kept(setting(), node, said)


def test_an_api_that_does_not_answer_keeps_what_is_on_chain(setting, api, node):
    api.status = 503
    assert_kept(setting(), node, "answered with 503")
    api.status, api.body = 200, b"<html>"
    assert_kept(setting(), node, "GET /weights")
    assert_kept(setting("--url", "http://127.0.0.1:9"), node, "Connection refused")
    api.body, api.date = None, -7200
    assert_kept(setting(), node, "clock")
    assert node.calls == []


def forget_permits(chain):
    chain.neurons[OWN_UID].has_permit = False


def hand_uid_over(chain):
    chain.register(hotkey("newcomer"), uid=WINNER_UID)


def set_just_now(chain):
    chain.last_updates[OWN_UID] = chain.number


CHAIN_DOUBTS = {
    "the uid changed hands": (hand_uid_over, f"belongs to {hotkey('newcomer')}"),
    "the winner left": (lambda chain: chain.deregister(WINNER_UID), "nobody is at uid 1"),
    "we left": (lambda chain: chain.deregister(OWN_UID), f"our hotkey {OWN} is not registered"),
    "no permit": (forget_permits, "(uid 3) has no validator permit"),
    "too soon": (set_just_now, "wait 98 more"),
    "far ahead of the API": (lambda chain: chain.mine(300), "blocks behind the chain's"),
}


@pytest.mark.parametrize("name", CHAIN_DOUBTS)
def test_a_chain_in_doubt_keeps_what_is_on_it(setting, node, name):
    change, said = CHAIN_DOUBTS[name]
    change(node.chain)
    node.chain.mine()
    assert_kept(setting(), node, said)


def test_what_the_limits_allow_is_the_validators_choice(setting, api, node):
    node.chain.mine(30)
    assert_kept(setting("--blocks-behind-max", 10), node, "and 10 are allowed")
    assert_kept(setting("--age-max", 1), node, "and 1 s are allowed")
    assert_kept(setting("--netuid", 98), node, "the API serves subnet 99, not 98")
    api.document = answer(netuid=98)
    assert_kept(setting("--netuid", 98), node, "no subnet 98")
    api.document = None
    genesis = "0x" + "12" * 32
    assert_kept(setting("--genesis", genesis), node, f"but {genesis} is wanted")
    assert setting("--genesis", node.chain.genesis_hash)[0] == 0


def test_a_node_that_fell_asleep_is_not_believed(setting, monkeypatch):
    asleep = WeightsChain(now_ms=lambda: time.time_ns() // 1_000_000 - 600_000)
    with WeightsNode(asleep) as node:
        for limit in ((), ("--block-age-max", 500)):
            code, _, err = setting("--chain", node.url, *limit)
            assert (code, "does not follow the chain" in err) == (3, True)
        monkeypatch.setenv("CHAIN_BLOCK_AGE_SECONDS_MAX", "3600")
        assert "nobody is at uid 1" in setting("--chain", node.url)[2]


def test_an_api_writes_no_lines_and_nothing_to_the_terminal(setting, api, node):
    api.document = burn("x\x1b[2J\nSet: all the weight")
    assert_kept(setting(), node, "the API says burn (x [2J Set: all the weight)")


def test_a_defect_before_the_sending_sends_nothing_and_says_so(setting, node, monkeypatch):
    def defect(*_):
        raise TypeError("'<' not supported\nbetween these")

    monkeypatch.setattr("cli.submission.read", defect)
    assert_kept(setting(), node, "broke off: TypeError: '<' not supported between these")


def test_a_defect_after_the_sending_is_an_unknown_outcome(setting, node, monkeypatch):
    def defect(*_):
        raise ValueError("too many values to unpack")

    monkeypatch.setattr("cli.submission.weights", defect)
    code, out, err = setting()
    assert (code, out) == (4, "")
    assert "was sent, and then: ValueError: too many values to unpack" in err
    assert node.chain.weights[OWN_UID] == SET


READS = (
    "chain_getHead", "chain_getHeader", "state_getRuntimeVersion", "state_getMetadata",
    "state_queryStorageAt", "chain_getFinalizedHead", "chain_getBlockHash",
)  # fmt: skip
FAULTS = {
    "drop": Fault.drop(),
    "hang": Fault.hang(),
    "error": Fault.error(-32603, "Internal error"),
    "null": Fault.result(None),
    "garbage": Fault.garbage("{"),
}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((method, kind) for method in READS for kind in ("drop", "null")),
        *(("chain_getFinalizedHead", kind) for kind in ("hang", "error", "garbage")),
        *(("state_queryStorageAt", kind) for kind in ("hang", "error", "garbage")),
    ],
)
def test_a_node_that_fails_before_the_sending_gets_nothing(setting, node, method, kind):
    node.fault = lambda asked, _: FAULTS[kind] if asked == method else None
    result = setting("--timeout", 0.3)
    assert_kept(result, node, "")


def test_the_next_node_is_asked_when_one_fails(setting, node):
    with WeightsNode(node.chain) as broken:
        broken.fault = lambda method, _: Fault.drop() if method == "chain_getHeader" else None
        both = f"{NOBODY}, {broken.url},{node.url}"
        assert setting("--chain", both)[0] == 0
    assert node.chain.weights[OWN_UID] == SET
    assert submissions(broken) == []


def test_no_node_at_all_is_said_for_each(setting, node):
    result = setting("--chain", f"{NOBODY},{NOBODY}")
    assert_kept(result, node, "the chain cannot be read: ws://127.0.0.1:9")
    assert result[2].count("127.0.0.1:9") == 2


@pytest.mark.parametrize("reason", ["no_rank", "no_valid_miner", "window_incomplete"])
def test_a_burn_is_sent_only_with_leave_for_its_reason(setting, api, node, reason):
    api.document = burn(reason)
    said = f"the API says burn ({reason})"
    assert_kept(setting(), node, said)
    other = "no_rank" if reason != "no_rank" else "no_valid_miner"
    assert_kept(setting("--allow-burn", other), node, said)
    code, out, _ = setting("--allow-burn", other, "--allow-burn", reason)
    assert code == 0
    assert f"is on uid 0, a burn ({reason})" in out
    assert node.chain.weights[OWN_UID] == [(0, 65_535)]


def test_a_burn_needs_uid_0_to_be_the_subnet_owners(setting, api, node):
    api.document = burn("no_rank")
    node.chain.owner = None
    node.chain.mine()
    said = f"uid 0 belongs to {hotkey('owner')}, which is no hotkey of the subnet's owner"
    assert_kept(setting("--allow-burn", "no_rank"), node, said)
    node.chain.owner_hotkey = hotkey("owner")
    node.chain.mine()
    assert setting("--allow-burn", "no_rank")[0] == 0
    assert node.chain.weights[OWN_UID] == [(0, 65_535)]


@pytest.mark.parametrize("error", [*list(ERRORS)[::2], "BadOrigin"])
def test_what_the_chain_refuses_is_told_by_its_name(setting, node, error):
    node.chain.error = error
    code, out, err = setting()
    assert (code, out) == (1, "")
    assert f"Error: Not set: the chain answered {error} in block {5}." in err
    assert node.chain.weights[OWN_UID] == BEFORE


def test_what_changes_between_reading_and_taking_is_the_chains_to_refuse(setting, node):
    def change(method, _):
        if method.startswith("author_"):
            node.chain.has_commit_reveal = True

    node.fault = change
    code, _, err = setting()
    assert code == 1
    assert "the chain answered CommitRevealEnabled" in err


@pytest.mark.parametrize("has_commit_reveal", [False, True])
def test_a_subnet_that_wants_more_weights_gets_none(setting, node, has_commit_reveal):
    node.chain.weights_min, node.chain.has_commit_reveal = 2, has_commit_reveal
    node.chain.mine()
    assert_kept(setting(), node, "no fewer than 2 weights at a time (MinAllowedWeights)")
    assert node.chain.timelocked_commits == []


def answering(code, message, data=None):
    """A fault: the submission is answered with an error."""
    said = {"code": code, "message": message, "data": data}
    return lambda method, _: Fault("error", said) if method.startswith("author_") else None


def test_what_the_node_refuses_is_told_in_its_words(setting, node):
    node.fault = answering(1010, "Invalid Transaction", "Custom error: 6")
    code, out, err = setting("--json")
    told = json.loads(out)
    assert (code, err, told["outcome"]) == (1, "", "refused")
    assert told["error"] == "Invalid Transaction: Custom error: 6 (code 1010)"
    node.fault = answering(-32601, "Method not found")
    assert setting()[0] == 1
    assert node.chain.weights[OWN_UID] == BEFORE


@pytest.mark.parametrize("code", [1010, -32603])
def test_a_key_in_the_nodes_address_is_not_shown_when_a_gateway_quotes_it(setting, node, code):
    node.fault = answering(code, "denied: /v1/hidden-key?token=hidden-token")
    exit_code, out, err = setting("--chain", f"{node.url}/v1/hidden-key?token=hidden-token")
    assert exit_code in {1, 4}
    assert "denied: " in err
    assert "hidden" not in out + err


@pytest.mark.parametrize(
    ("code", "message"),
    [(1013, "Transaction Already Imported"), (1012, "Temporarily Banned"), (-32603, "Timeout")],
)
def test_an_error_that_does_not_say_no_is_no_refusal(setting, node, code, message):
    # A gateway in between may have handed it on, or handed it on twice.
    node.fault = answering(code, message)
    exit_code, _, err = setting()
    assert exit_code == 4
    assert f"{message} (code {code})" in err


def test_with_commit_reveal_the_weights_go_out_sealed(setting, node):
    node.chain.has_commit_reveal, node.chain.commit_version = True, 5
    node.chain.mine()
    before = datetime.now(UTC)
    code, out, err = setting("--json")
    told = json.loads(out)
    assert (code, err, told["outcome"], told["call"]) == (
        0, "", "committed", "SubtensorModule.commit_timelocked_weights",
    )  # fmt: skip
    ((who, block, commit, reveal_round),) = node.chain.timelocked_commits
    assert (who, block, reveal_round) == (OWN, told["block"], told["reveal_round"])
    opens_at = datetime.fromtimestamp(1_692_803_367 + 3 * reveal_round, UTC)
    assert before < opens_at < before + timedelta(seconds=12 * 400)
    # Sealed: neither our key nor the weights can be read in it.
    assert keypair("own").public_key not in commit
    assert len(commit) > 200
    assert node.chain.weights[OWN_UID] == BEFORE
    assert_kept(setting(), QuietNode(node), "too soon")


class QuietNode:
    """A node from now on: what was submitted before does not count."""

    def __init__(self, node):
        self.chain, self.calls, self._node = node.chain, [], node


def test_without_the_extra_a_commit_is_not_sent(setting, monkeypatch, node):
    node.chain.has_commit_reveal = True
    node.chain.mine()
    monkeypatch.setitem(sys.modules, "bittensor_drand", None)
    assert_kept(setting(), node, "pip install 'bittensor-drand>=2.0'")
    code, out, _ = setting("--dry-run")
    assert code == 0
    assert "commit-reveal is on: they would go out encrypted" in out


UNSEEN = {
    "a drop before it is in a block": (("ready", "drop"), "closed"),
    "a drop after it": (("ready", "mine", "drop"), "closed"),
    "a hang": (("ready",), "timed out"),
    "dropped by the node": (("ready", "dropped"), "'dropped'"),
    "invalid": (("invalid",), "'invalid'"),
    "replaced": (("ready", "usurped"), "'usurped'"),
    "never final": (("ready", "finalityTimeout"), "'finalityTimeout'"),
    "a block that has it not": (("ready", "inBlock"), "not what became of it"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_was_not_seen_is_not_called_success(setting, node, name):
    node.story, said = UNSEEN[name]
    code, out, err = setting("--wait", 0.5, "--timeout", 1)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert err.startswith("Error: The outcome is unknown: the extrinsic 0x")
    assert said in err
    assert "can be in a block before 18 and only once" in err


@pytest.mark.parametrize("kind", ["drop", "hang", "garbage"])
def test_a_submission_that_is_not_answered_is_not_called_a_failure(setting, node, kind):
    node.fault = lambda method, _: FAULTS[kind] if method.startswith("author_") else None
    code, out, err = setting("--wait", 0.4)
    assert (code, out) == (4, "")
    assert "unknown" in err
    assert len(submissions(node)) == 1


def test_states_without_end_end(setting, node):
    node.story = ("ready", "pause") * 100
    assert setting("--wait", 0.3)[0] == 4
    assert 0 < len(node.told) < 100


def test_a_block_that_was_replaced_is_waited_out(setting, node):
    node.story = ("future", "ready", "broadcast", "mine", "retracted", "inBlock")
    assert setting()[0] == 0
    assert node.chain.weights[OWN_UID] == SET


EVENTS = "0x26aa394eea5630e07c48ae0c9558cef780d41e5e16056765bc8461851072c9d7"


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("method", ["chain_getBlock", "state_getStorageAt"])
def test_a_block_that_cannot_be_read_is_no_success(setting, node, method, kind):
    def fault(asked, params):
        is_events = asked == "state_getStorageAt" and params[0] == EVENTS
        return FAULTS[kind] if is_events or asked == method == "chain_getBlock" else None

    node.fault = fault
    code, _, err = setting("--timeout", 0.3)
    assert code == 4
    assert "unknown" in err


def test_other_weights_than_were_sent_are_no_success(setting, node):
    node.chain.mangle = lambda pairs: [(uid, value - 1) for uid, value in pairs]
    code, _, err = setting()
    assert code == 4
    assert "the chain reports success, but has [(1, 65534)] instead of [(1, 65535)]" in err


def test_weights_that_cannot_be_read_back_are_no_success(setting, node):
    def fault(method, _):
        is_sent = submissions(node) != []
        return Fault.drop() if is_sent and method == "state_queryStorageAt" else None

    node.fault = fault
    assert setting()[0] == 4


def test_after_a_loss_it_may_be_run_again_and_applies_once(setting, node):
    node.story = ("ready", "drop")
    assert setting("--wait", 0.5)[0] == 4
    # The first one still waits in the node's queue: a second has its nonce, and does not join it.
    node.story = ("ready", "mine", "inBlock")
    code, _, err = setting()
    assert code == 1
    assert "Priority is too low" in err
    node.chain.mine()
    assert node.chain.weights[OWN_UID] == SET
    assert node.chain.nonces[keypair("own").public_key] == 1
    code, _, err = setting()
    assert code == 3
    assert "too soon" in err


def test_what_the_hotkey_did_before_is_counted(setting, node):
    node.chain.nonces[keypair("own").public_key] = 5
    node.chain.mine()
    assert setting()[0] == 0
    assert node.chain.nonces[keypair("own").public_key] == 6
    node.chain.mine(100)
    assert setting()[0] == 0
    assert node.chain.nonces[keypair("own").public_key] == 7


def test_no_output_has_the_key_in_it(setting, node, key):
    key.write_text(MNEMONIC)
    node.chain.neurons[OWN_UID].hotkey = keypair_of(MNEMONIC).public_key
    node.chain.mine()
    seed = keypair_of(MNEMONIC).private_key.hex()
    node.story = ("ready", "drop")
    shown = [*setting("--dry-run", "--json"), *setting("--wait", 0.5), *setting("--json")]
    text = " ".join(map(str, shown))
    assert "outcome is unknown" in text
    assert not any(secret in text for secret in (seed, "bottom", "fit walk"))


def test_the_loop_outlives_every_failure(api, node, key):
    api.status = 500
    command = [sys.executable, "-m", "cli.main", "weights", "set", "--every", "1", "--json"]
    options = ["--url", api.url, "--chain", node.url, "--key", str(key)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert json.loads(process.stdout.readline())["outcome"] == "kept"
        api.status = 200
        told = json.loads(process.stdout.readline())
        assert (told["outcome"], told["uids"]) == ("set", [1])
        assert datetime.fromisoformat(told["at"]).tzinfo
        later = json.loads(process.stdout.readline())
        assert (later["outcome"], "too soon" in later["reason"]) == ("kept", True)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_its_help_names_exit_codes_and_burning(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert out.startswith("Usage: leoma weights set")
    assert "3 in doubt, nothing was sent" in text
    assert "By default nothing is burnt" in text


def test_showing_weights_still_works_and_needs_no_library_of_the_chain(api):
    code = (
        "import sys; from cli.main import run; "
        f"code = run(['weights', '--url', {api.url!r}, '--json']);"
        "print(code, sorted({'substrateinterface', 'bittensor_drand'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = shown.stdout.splitlines()
    assert json.loads("\n".join(lines[:-1]))["winner_hotkey"] == hotkey("winner")
    assert lines[-1] == "0 []"


WRONG_CALLS = {
    "no chain": ([], "Missing option '--chain'"),
    "a file as the chain": (["--chain", "metagraph.json"], "give ws:// or wss:// addresses"),
    "one of two no node": (["--chain", f"{NOBODY},http://x"], "give ws:// or wss:// addresses"),
    "no address at all": (["--chain", ","], "give ws:// or wss:// addresses"),
    "no key": (["--chain", NOBODY], "Give --wallet and --hotkey, or --key"),
    "half a genesis": (["--chain", NOBODY, "--genesis", "0x12"], "give 0x and 64 hex digits"),
    "an unknown reason": (["--chain", NOBODY, "--allow-burn", "fun"], "'fun' is not one of"),
    "no subnet": (["--chain", NOBODY, "--netuid", "70000"], "70000 is not in the range"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, monkeypatch, name):
    for variable in ("CHAIN_SOURCE", "LEOMA_WALLET", "LEOMA_HOTKEY"):
        monkeypatch.delenv(variable, raising=False)
    arguments, said = WRONG_CALLS[name]
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_options_of_set_that_come_too_early_are_not_lost_in_silence(capsys, api):
    for early in (["--url", api.url], ["--json"], ["--at", "x"]):
        code = run(["weights", *early, "set", "--chain", NOBODY])
        err = capsys.readouterr().err
        assert (code, api.requests) == (2, [])
        assert "Give the options of `set` after it" in err


def test_a_key_that_cannot_be_used_stops_before_anything_is_asked(capsys, api, key):
    key.chmod(0o644)
    code, _, err = call(capsys, "--url", api.url, "--chain", NOBODY, "--key", key)
    assert (code, err.count("\n"), api.requests) == (1, 1, [])
    assert f"chmod 600 {key}" in err
    key.chmod(0o600)
    key.write_text("correct horse battery staple")
    code, _, err = call(capsys, "--url", api.url, "--chain", NOBODY, "--key", key)
    assert (code, api.requests) == (1, [])
    assert "holds no key" in err
    assert "horse" not in err
