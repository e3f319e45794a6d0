"""From a simulated node and simulated services to tables, and through their failures."""

import hashlib
import json
import time

import dagster as dg
import pytest
from substrateinterface import Keypair

from api.settings import ApiSettings
from cli.main import run
from cli.simulated.chain import SimulatedChain
from cli.simulated.node import Fault, SimulatedNode
from cli.simulated.services import HttpFault, SimulatedServices
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.definitions import build_definitions
from pipelines.jobs import SYNC
from pipelines.recompute import recompute
from pipelines.run import MaterializationError, materialize
from pipelines.settings import PipelineSettings
from tests.api.servers import Server
from tests.builders import sample_body
from tests.warehouse.builders import request, settings
from warehouse.generation import Generations, open_generation
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

VALIDATOR, POOR, ALICE, BOB, CAROL = (
    Keypair.create_from_uri(f"//{name}").ss58_address
    for name in ("validator", "poor", "Alice", "Bob", "Carol")
)
REVISION = "a" * 40
SECRETS = {"chutes_api_key": "cpk-hidden", "hf_token": "hf-hidden"}


def weights(seed):
    return {"model.safetensors": hashlib.sha256(seed.encode()).hexdigest(), "README.md": None}


class Subnet:
    """A chain with two validators and three miners, and a home that follows it."""

    def __init__(self, home, chain, node, services):
        self.chain, self.node, self.services = chain, node, services
        self.warehouse = settings(home)
        self.settings = PipelineSettings(
            chain_source=node.url,
            chain_timeout_seconds=1,
            chutes_api_url=services.chutes_url,
            hf_endpoint=services.hf_url,
            validation_timeout_seconds=1,
            validation_attempts_max=1,
            scorer_task_window=5,
            **SECRETS,
        )
        chain.register(VALIDATOR, 6000, permit=True)
        chain.register(POOR, 4999)
        for hotkey in (ALICE, BOB, CAROL):
            chain.register(hotkey)
            self.commit(hotkey)
        chain.mine()

    def commit(self, hotkey, **changes):
        name = f"someone/Leoma-{hotkey}"
        commitment = {"model_name": name, "model_revision": REVISION, "chute_id": f"c-{hotkey}"}
        self.chain.reveal(hotkey, commitment | changes)
        self.services.add_chute(f"c-{hotkey}", f"slug-{hotkey[:4].lower()}", True, REVISION)
        self.services.add_model(name, REVISION, weights(hotkey))

    def run(self):
        self.chain.mine()
        return materialize(self.settings, self.warehouse)

    def ask(self, sql):
        with open_generation(Generations(self.warehouse).current()) as connection:
            return connection.execute(sql).fetchall()

    def verdicts(self):
        return dict(self.ask("SELECT hotkey, coalesce(invalid_reason, 'valid') FROM miners"))

    def validated_at(self, hotkey):
        sql = f"SELECT last_validated_at_ms FROM miners WHERE hotkey = '{hotkey}'"
        return self.ask(sql)[0][0]


@pytest.fixture
def subnet(tmp_path):
    chain = SimulatedChain()
    secrets = {"chutes_key": SECRETS["chutes_api_key"], "hf_token": SECRETS["hf_token"]}
    with SimulatedServices(**secrets) as services, SimulatedNode(chain) as node:
        yield Subnet(tmp_path / "data", chain, node, services)


def test_a_chain_and_its_miners_become_tables(subnet):
    subnet.run()

    assert subnet.ask("SELECT hotkey, is_registered FROM validators ORDER BY uid") == [
        (VALIDATOR, True),
        (POOR, False),
    ]
    assert subnet.verdicts() == {ALICE: "valid", BOB: "valid", CAROL: "valid"}
    ((uid, block, name, slug, digest),) = subnet.ask(
        "SELECT uid, block, model_name, chute_slug, model_hash FROM miners "
        f"WHERE hotkey = '{ALICE}'"
    )
    assert (uid, block, name) == (2, 1, f"someone/Leoma-{ALICE}")
    assert slug == f"slug-{ALICE[:4].lower()}"
    file = weights(ALICE)["model.safetensors"]
    assert digest == hashlib.sha256(file.encode()).hexdigest()
    assert subnet.ask("SELECT block, netuid FROM generation") == [(subnet.chain.number, 99)]


def test_a_service_that_does_not_answer_changes_no_verdict(subnet):
    subnet.run()
    before = subnet.validated_at(ALICE)
    for fault in (HttpFault("hang"), HttpFault("status", 503, {}, b""), HttpFault("garbage")):
        subnet.services.fault = lambda path, fault=fault: (
            fault if path.startswith("/chutes/") else None
        )
        subnet.run()
        assert set(subnet.verdicts().values()) == {"valid"}
        assert subnet.validated_at(ALICE) == before

    subnet.services.fault = lambda _path: None
    subnet.services.add_chute(f"c-{BOB}", "slug", False, REVISION)
    subnet.services.remove_chute(f"c-{CAROL}")
    subnet.run()
    assert subnet.verdicts() == {
        ALICE: "valid",
        BOB: "chute_not_running",
        CAROL: "chute_fetch_failed",
    }
    assert subnet.validated_at(ALICE) > before


def silent(_path):
    return HttpFault("status", 503, {}, b"")


def test_nobody_valid_because_nobody_answers_is_no_burn(subnet):
    subnet.services.fault = silent
    with pytest.raises(MaterializationError) as caught:
        subnet.run()
    assert (
        "no miner is valid, and 3 cannot be judged: Chutes left 3 of 3 questions unanswered, "
        "Hugging Face left 3 of 3 questions unanswered" in str(caught.value)
    )
    assert Generations(subnet.warehouse).current() is None
    # What is definite is published, also when it is that nobody is valid.
    subnet.services.fault = lambda _path: None
    for hotkey in (ALICE, BOB, CAROL):
        subnet.services.add_chute(f"c-{hotkey}", "slug", False, REVISION)
    subnet.run()
    assert set(subnet.verdicts().values()) == {"chute_not_running"}


def test_a_file_gives_way_to_a_silent_chain_only_when_somebody_can_be_judged(subnet, tmp_path):
    metagraph = tmp_path / "metagraph.json"
    metagraph.write_text(
        json.dumps(
            {
                "netuid": 99,
                "block": 1,
                "validators": [{"uid": 0, "hotkey": VALIDATOR, "stake": 6000}],
                "miners": [{"uid": 2, "hotkey": ALICE, "block": 1, "is_valid": True}],
            }
        )
    )
    live = subnet.settings
    subnet.settings = live.model_copy(update={"chain_source": str(metagraph)})
    subnet.run()
    subnet.settings, subnet.services.fault = live, silent
    with pytest.raises(MaterializationError, match="3 cannot be judged"):
        subnet.run()
    assert subnet.verdicts() == {ALICE: "valid"}


def test_a_damaged_snapshot_takes_nobodys_facts(subnet):
    subnet.run()
    subnet.run()
    snapshots = ChainSnapshots(subnet.warehouse)
    name, _ = snapshots.newest_name()
    path = snapshots.directory / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    subnet.services.fault = silent
    subnet.run()
    assert set(subnet.verdicts().values()) == {"valid"}


def test_who_commits_again_to_its_own_model_is_not_a_copy_of_its_copy(subnet):
    subnet.services.add_model(f"someone/Leoma-{CAROL}", REVISION, weights(ALICE))
    subnet.run()
    copied = {ALICE: "valid", BOB: "valid", CAROL: "duplicate_model:earliest_uid=2"}
    assert subnet.verdicts() == copied
    # Alice moves to another chute.
    subnet.commit(ALICE, chute_id="c-new")
    subnet.services.add_chute("c-new", "new", True, REVISION)
    subnet.run()
    assert subnet.verdicts() == copied
    # Carol commits to what she had first, and then to a copy: hers is no older for that.
    subnet.commit(CAROL, model_revision="b" * 40)
    subnet.services.add_model(f"someone/Leoma-{CAROL}", "b" * 40, weights(ALICE))
    subnet.services.add_chute(f"c-{CAROL}", "slug", True, None)
    subnet.run()
    assert subnet.verdicts() == copied


def test_who_commits_anew_while_the_service_is_silent_is_not_valid_on_old_answers(subnet):
    subnet.run()
    subnet.services.fault = lambda _path: HttpFault("status", 503, {}, b"")
    subnet.chain.reveal(
        ALICE,
        {"model_name": f"x/leoma-{ALICE}", "model_revision": "b" * 40, "chute_id": f"c-{ALICE}"},
    )
    subnet.run()
    assert subnet.verdicts()[ALICE] == f"revision_mismatch:chute={REVISION}"
    assert subnet.verdicts()[BOB] == "valid"


def test_nodes_that_cannot_follow_the_last_snapshot_are_passed_over(subnet):
    subnet.chain.mine(3)
    subnet.run()
    lagging, stranger = SimulatedChain(), SimulatedChain(genesis="another")
    stranger.register(VALIDATOR, 6000)
    stranger.mine(9)
    with SimulatedNode(lagging) as late, SimulatedNode(stranger) as strange:
        places = f"{late.url},{strange.url},{subnet.node.url}"
        subnet.settings = subnet.settings.model_copy(update={"chain_source": places})
        subnet.run()
        assert subnet.ask("SELECT block FROM generation") == [(subnet.chain.number,)]
        # Not a word about its neurons is read from a chain that is not meant.
        assert "state_call" not in late.calls + strange.calls
        places = f"{late.url},{strange.url}"
        subnet.settings = subnet.settings.model_copy(update={"chain_source": places})
        with pytest.raises(MaterializationError) as caught:
            subnet.run()
    assert "it lags; " in str(caught.value)
    assert "set CHAIN_GENESIS to the one that is meant" in str(caught.value)


def test_copies_are_judged_with_the_blacklist_of_the_log(subnet):
    subnet.services.add_model(f"someone/Leoma-{CAROL}", REVISION, weights(ALICE))
    subnet.run()
    assert subnet.verdicts()[CAROL] == "duplicate_model:earliest_uid=2"
    log = SqliteLog(subnet.warehouse)
    log.add_to_blacklist(request("admin"), ALICE, "it took Carol's model").result(30)
    log.close()
    subnet.run()
    assert subnet.verdicts() == {ALICE: "blacklisted", BOB: "valid", CAROL: "valid"}


def test_an_early_commitment_to_a_branch_takes_nobodys_later_model(subnet):
    name = f"someone/Leoma-{ALICE}"
    branch = {"model_name": name, "model_revision": "main", "chute_id": f"c-{ALICE}"}
    subnet.chain.reveal(ALICE, branch, block=0)
    subnet.services.add_chute(f"c-{ALICE}", "slug", True, None)
    # Carol's model is public by now, and Alice lets her branch be a copy of it.
    subnet.services.add_model(name, "c" * 40, weights(CAROL), "main")
    subnet.run()
    assert subnet.verdicts() == {
        ALICE: f"revision_mismatch:hf={'c' * 40}",
        BOB: "valid",
        CAROL: "valid",
    }


def test_a_validator_that_leaves_and_a_uid_that_changes_hands(subnet):
    subnet.run()
    subnet.chain.set_stake(VALIDATOR, 4999)
    subnet.chain.set_stake(POOR, 5000)
    subnet.chain.register(BOB, uid=2)  # Bob takes Alice's uid, and his own becomes empty
    subnet.chain.deregister(3)
    subnet.run()
    assert dict(subnet.ask("SELECT hotkey, is_registered FROM validators")) == {
        VALIDATOR: False,
        POOR: True,
    }
    # Neurons without a commitment are no miners, and Alice is none any more.
    assert subnet.verdicts() == {CAROL: "valid"}


def test_whom_the_chain_no_longer_bears_out_is_refused_after_the_next_sync(subnet):
    number = iter(range(100))

    def submitted(server, name):
        """The status of a vote about Alice's first task, once the newest generation is served."""
        newest = Generations(subnet.warehouse).current().snapshot_id
        deadline = time.monotonic() + 20
        while server.http.get("/health").json()["snapshot_id"] != newest:
            assert time.monotonic() < deadline, "the generation is not served"
            time.sleep(0.02)
        sample = sample_body(task_id=1, miner_hotkey=ALICE, passed=name == "validator")
        sample["confidence"] = next(number)
        return server.signed(name, "POST", "/samples", sample).status_code

    def verdict():
        return subnet.ask("SELECT is_passed, stake_passed_rao, stake_total_rao FROM verdicts")

    subnet.run()
    with Server(ApiSettings(snapshot_poll_seconds=0.05), subnet.warehouse) as server:
        assert (submitted(server, "validator"), submitted(server, "poor")) == (200, 401)
        assert server.http.get("/health").json()["metagraph_synced"] is True
        subnet.run()
        assert verdict() == [(True, 6000 * 10**9, 6000 * 10**9)]

        subnet.chain.set_stake(VALIDATOR, 4999)
        subnet.chain.set_stake(POOR, 7000)
        subnet.run()
        assert (submitted(server, "validator"), submitted(server, "poor")) == (401, 200)
        subnet.run()
        # The past vote of who is no longer registered counts, with no weight.
        assert verdict() == [(False, 0, 7000 * 10**9)]

        subnet.chain.set_stake(VALIDATOR, 6000)
        subnet.chain.deregister(1)
        subnet.run()
        assert (submitted(server, "validator"), submitted(server, "poor")) == (200, 401)


def test_a_chain_that_cannot_be_read_leaves_everything_as_it_is(subnet):
    published = subnet.run()
    kept = ChainSnapshots(subnet.warehouse).newest_name()
    for fault in (Fault.drop(), Fault.hang(), Fault.error(1, "no"), Fault.result(None)):
        subnet.node.fault = lambda _method, _params, fault=fault: fault
        with pytest.raises(MaterializationError, match="the chain cannot be read"):
            subnet.run()
    assert Generations(subnet.warehouse).current().snapshot_id == published.snapshot_id
    assert ChainSnapshots(subnet.warehouse).newest_name() == kept
    subnet.node.fault = lambda _method, _params: None
    subnet.run()


def test_a_generation_made_from_a_chain_can_be_computed_again(subnet):
    subnet.run()
    generation = Generations(subnet.warehouse).current()
    subnet.services.remove_chute(f"c-{CAROL}")
    subnet.run()
    log = SqliteKeeper(subnet.warehouse)
    assert recompute(generation, log, ChainSnapshots(subnet.warehouse)).differences == ()
    log.close()


def test_one_miner_is_explained_rule_by_rule(subnet, monkeypatch, capsys):
    subnet.services.add_chute(f"c-{BOB}", "slug", False, REVISION)
    subnet.services.add_model(f"someone/Leoma-{CAROL}", REVISION, weights(ALICE))
    subnet.run()
    monkeypatch.setenv("LEOMA_HOME", str(subnet.warehouse.leoma_home))

    def check(hotkey):
        code = run(["miners", "check", hotkey, "--json"])
        told = capsys.readouterr()
        if not told.out:
            return code, told.err
        explained = json.loads(told.out)
        assert (explained["invalid_reason"] or "valid") == subnet.verdicts()[hotkey]
        return code, {one["rule"]: one["is_passed"] for one in explained["rules"]}

    code, rules = check(ALICE)
    assert (code, set(rules.values())) == (0, {True})
    assert [*rules][0::13] == ["blacklisted", "duplicate_model"]
    code, rules = check(BOB)
    assert code == 1
    assert rules["chute_fetch_failed"] is True
    assert rules["chute_not_running"] is False
    assert rules["hf_model_fetch_failed"] is None
    assert rules["duplicate_model"] is None
    code, rules = check(CAROL)
    assert (code, rules["revision_mismatch:hf"], rules["duplicate_model"]) == (1, True, False)
    assert check(VALIDATOR)[1].endswith("it is no miner\n")
    assert (
        "is not registered at block" in check(Keypair.create_from_uri("//nobody").ss58_address)[1]
    )
    assert "not an SS58 address" in check("5abc")[1]

    assert run(["miners", "check", BOB]) == 1
    assert "invalid: chute_not_running" in capsys.readouterr().out


def test_no_secret_reaches_dagsters_records_or_the_snapshot(subnet):
    subnet.run()
    subnet.services.fault = lambda path: (
        HttpFault("status", 401, {}, b"") if path.startswith("/chutes") else None
    )
    definition = build_definitions(subnet.settings, subnet.warehouse).resolve_job_def(SYNC)
    with dg.DagsterInstance.ephemeral() as instance:
        finished = definition.execute_in_process(instance=instance)
        recorded = " ".join(str(entry) for entry in instance.all_logs(finished.run_id))
    assert "chutes_unanswered" in recorded
    assert "hidden" not in recorded
    neurons = ChainSnapshots(subnet.warehouse).newest().metagraph.neurons
    assert "hidden" not in json.dumps(neurons.to_dicts())


def test_what_a_miner_wrote_does_not_reach_the_terminal_as_it_is(subnet, monkeypatch, capsys):
    commitment = {"model_name": "a\x1b[2J\nb", "model_revision": "\x07", "chute_id": "\x9b"}
    subnet.chain.reveal(BOB, commitment)
    subnet.run()
    monkeypatch.setenv("LEOMA_HOME", str(subnet.warehouse.leoma_home))
    assert run(["miners", "check", BOB]) == 1
    out = capsys.readouterr().out
    assert "model_name      a\ufffd[2J\ufffdb" in out
    assert all(line.isprintable() for line in out.splitlines())
