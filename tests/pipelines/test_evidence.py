"""Facts about all miners of a sync: real clients, real sockets, services that fail on cue."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cli.simulated.services import HttpFault, SimulatedServices
from pipelines.chutes import Chutes
from pipelines.evidence import Evidence, Facts, Tally, gather
from pipelines.huggingface import HuggingFace
from pipelines.neurons import Neuron, Revealed
from pipelines.settings import PipelineSettings
from pipelines.validation import verdict
from tests.pipelines.service_faults import ENDLESS, FAULTS, status

NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000
REVISION = "a" * 40


def miner(uid: int, **changed: object) -> Neuron:
    """A miner whose commitment is right unless something is changed."""
    fields = {"model_name": name_of(uid), "model_revision": REVISION, "chute_id": f"chute-{uid}"}
    body = json.dumps(fields | changed).encode()
    content = (len(body) << 2 | 1).to_bytes(2, "little") + body
    return Neuron(uid, f"5Hotkey{uid}", "5Cold", 0, (Revealed(10 + uid, content),))


def name_of(uid: int) -> str:
    return f"user/leoma-5Hotkey{uid}"


@dataclass
class Hasty:
    """A client that gives each answer a moment only."""

    client: Any

    def fact(self, *question: Any) -> Any:
        return self.client.fact(*question[:-1], 0.1)


@dataclass
class World:
    """Both services, a client of each, and the time that the clients put on their answers."""

    services: SimulatedServices
    chutes: Chutes | Hasty
    hugging_face: HuggingFace | Hasty
    settings: PipelineSettings
    now_ms: int = NOW_MS

    def add(self, *uids: int) -> list[Neuron]:
        """Have a hot chute and a model with weights of its own for each miner."""
        for uid in uids:
            self.services.add_chute(f"chute-{uid}", f"slug-{uid}", hot=True, revision=REVISION)
            self.services.add_model(name_of(uid), REVISION, {"a.bin": f"{uid:064x}"})
        return [miner(uid) for uid in uids]

    def gather(self, miners: list[Neuron], previous: Evidence | None = None) -> Evidence:
        facts = {} if previous is None else previous.facts
        return gather(
            miners,
            facts,
            self.chutes,
            self.hugging_face,
            self.settings,
            self.now_ms,
            sleep=lambda _seconds: None,
        )

    def impatient(self, service: str) -> "World":
        """Return the same world with a client of this service that soon gives up."""
        if service == "chutes":
            return replace(self, chutes=Hasty(self.chutes))
        return replace(self, hugging_face=Hasty(self.hugging_face))

    def asked(self, service: str) -> int:
        """How many requests a service had, `chutes` or `models`, since this was last asked."""
        count = sum(f"/{service}/" in request.path for request in self.services.requests)
        self.services.requests[:] = [
            request for request in self.services.requests if f"/{service}/" not in request.path
        ]
        return count


def settings(**changed: object) -> PipelineSettings:
    values: dict[str, object] = {
        "validation_attempts_max": 1,
        "validation_seconds_max": 60.0,
    }
    return PipelineSettings.model_validate(values | changed)


@pytest.fixture
def world() -> Iterator[World]:
    with SimulatedServices(chutes_key="key", hf_token="token") as services:
        chutes = Chutes(services.chutes_url, "key", 10, lambda: here.now_ms)
        hugging_face = HuggingFace(services.hf_url, "token", 10, lambda: here.now_ms)
        here = World(services, chutes, hugging_face, settings())
        with closing(chutes), closing(hugging_face):
            yield here


def reason(miner: Neuron, evidence: Evidence) -> str | None:
    facts = evidence.facts[miner.hotkey]
    return verdict(miner.hotkey, miner.revealed, facts.chute, facts.model).invalid_reason


def test_the_facts_about_all_miners(world: World) -> None:
    miners = world.add(1, 2, 3)
    evidence = world.gather(miners)
    assert set(evidence.facts) == {"5Hotkey1", "5Hotkey2", "5Hotkey3"}
    assert [reason(one, evidence) for one in miners] == [None, None, None]
    assert all(facts.is_complete for facts in evidence.facts.values())
    assert evidence.chutes == Tally(asked=3, answered=3, unanswered=0, reused=0)
    assert evidence.hugging_face == evidence.chutes


def test_who_has_no_commitment_is_left_out_and_who_has_a_bad_one_not_asked_about(
    world: World,
) -> None:
    silent = Neuron(4, "5Silent", "5Cold", 0)
    wrong = miner(5, model_name="other")
    twice = replace(miner(6), revealed=miner(6).revealed * 3)
    evidence = world.gather([silent, wrong, twice])
    nothing = Facts(chute=None, model=None, is_complete=True)
    assert evidence.facts == {"5Hotkey5": nothing, "5Hotkey6": nothing}
    assert world.services.requests == []
    assert world.gather([]).facts == {}


def test_the_same_question_is_put_once(world: World) -> None:
    world.add(1)
    other = miner(2, chute_id="chute-1")
    same_again = replace(miner(1), uid=7)
    evidence = world.gather([miner(1), other, same_again])
    assert world.asked("chutes") == 1
    assert world.asked("models") == 2
    assert evidence.facts["5Hotkey2"].chute == evidence.facts["5Hotkey1"].chute


@pytest.mark.parametrize("service", ["chutes", "models"])
def test_no_fault_changes_a_fact_and_each_is_counted(world: World, service: str) -> None:
    miners = world.add(1, 2)
    before = world.gather(miners)
    # Long after: an old answer is as good as a new one when there is no other.
    world.now_ms += 1_000_000 * MINUTE_MS
    impatient = world.impatient(service)
    for name, (fault, _cause) in FAULTS.items():
        world.services.fault = lambda path, fault=fault: fault if f"/{service}/" in path else None
        after = (impatient if name in ENDLESS else world).gather(miners, before)
        for hotkey, facts in after.facts.items():
            was = before.facts[hotkey]
            if service == "chutes":
                assert facts.chute == was.chute, name
            else:
                assert facts.model == was.model, name
            assert not facts.is_complete, name
        assert [reason(one, after) for one in miners] == [None, None], name
        failed, fine = after.chutes, after.hugging_face
        if service == "models":
            failed, fine = fine, failed
        assert (failed.asked, failed.answered, failed.unanswered) == (2, 0, 2), name
        assert sum(failed.reasons.values()) == 2, name
        assert (fine.asked, fine.answered, fine.unanswered) == (2, 2, 0), name


@pytest.mark.parametrize(
    ("service", "missing"), [("chutes", "chute_fetch_failed"), ("models", "hf_model_fetch_failed")]
)
def test_who_was_never_heard_of_becomes_valid_when_the_service_is_back(
    world: World, service: str, missing: str
) -> None:
    miners = world.add(1, 2)
    world.services.fault = lambda path: status(503) if f"/{service}/" in path else None
    evidence = world.gather(miners)
    assert [reason(one, evidence) for one in miners] == [missing, missing]
    world.services.fault = lambda _path: None
    evidence = world.gather(miners, evidence)
    assert [reason(one, evidence) for one in miners] == [None, None]
    assert all(facts.is_complete for facts in evidence.facts.values())


def test_a_definite_no_is_evidence_and_so_is_a_later_yes(world: World) -> None:
    miners = world.add(1, 2, 3)
    known = world.gather(miners)
    world.services.remove_chute("chute-1")
    world.services.add_chute("chute-2", "slug-2", hot=False, revision=REVISION)
    world.services.remove_model(name_of(3))
    world.now_ms += 61 * MINUTE_MS
    known = world.gather(miners, known)
    assert [reason(one, known) for one in miners] == [
        "chute_fetch_failed",
        "chute_not_running",
        "hf_model_fetch_failed",
    ]
    # An outage does not make them valid again.
    world.services.fault = lambda _path: status(503)
    known = world.gather(miners, known)
    assert reason(miners[1], known) == "chute_not_running"
    world.services.fault = lambda _path: None
    world.add(1, 2, 3)
    world.now_ms += 61 * MINUTE_MS
    known = world.gather(miners, known)
    assert [reason(one, known) for one in miners] == [None, None, None]


def deny_all(world: World, service: str, uids: tuple[int, ...]) -> None:
    for uid in uids:
        if service == "chutes":
            world.services.remove_chute(f"chute-{uid}")
        else:
            world.services.remove_model(name_of(uid))


@pytest.mark.parametrize("service", ["chutes", "models"])
def test_who_has_lost_everything_at_once_is_not_believed_for_a_day(
    world: World, service: str
) -> None:
    miners = world.add(1, 2)
    known = world.gather(miners)
    deny_all(world, service, (1, 2))
    # A stranger to the service all along, whose "no" is as doubtful.
    miners.append(miner(3))
    world.now_ms += 61 * MINUTE_MS
    after = world.gather(miners, known)
    tally = after.chutes if service == "chutes" else after.hugging_face
    assert (tally.answered, tally.unanswered) == (0, 3)
    assert tally.reasons == {"everything is gone at once: not believed": 3}
    assert [reason(one, after) for one in miners[:2]] == [None, None]
    assert not any(facts.is_complete for facts in after.facts.values())

    world.now_ms += 24 * 60 * MINUTE_MS
    after = world.gather(miners, after)
    assert all(reason(one, after) for one in miners)


@pytest.mark.parametrize("service", ["chutes", "models"])
def test_as_long_as_one_is_there_or_only_one_was_a_no_is_a_no(world: World, service: str) -> None:
    miners = world.add(1, 2, 3)
    known = world.gather(miners)
    deny_all(world, service, (1, 2))
    world.now_ms += 61 * MINUTE_MS
    after = world.gather(miners, known)
    assert [reason(one, after) is None for one in miners] == [False, False, True]
    deny_all(world, service, (3,))
    world.now_ms += 61 * MINUTE_MS
    after = world.gather(miners, after)
    assert [reason(one, after) is None for one in miners] == [False, False, False]


def test_hugging_faces_answer_is_used_again_for_its_time_and_chutes_is_not(world: World) -> None:
    miners = world.add(1, 2)
    known = world.gather(miners)
    assert (world.asked("chutes"), world.asked("models")) == (2, 2)

    world.now_ms += 60 * MINUTE_MS - 1
    known = world.gather(miners, known)
    assert (world.asked("chutes"), world.asked("models")) == (2, 0)
    assert known.hugging_face == Tally(asked=0, answered=0, unanswered=0, reused=2)
    assert all(facts.is_complete for facts in known.facts.values())

    world.now_ms += 1
    known = world.gather(miners, known)
    assert (world.asked("chutes"), world.asked("models")) == (2, 2)


def test_an_answer_from_the_future_is_not_used_again(world: World) -> None:
    miners = world.add(1)
    known = world.gather(miners)
    world.asked("models")
    world.now_ms -= 1
    world.gather(miners, known)
    assert world.asked("models") == 1


def test_with_no_time_for_it_nothing_is_used_again(world: World) -> None:
    world.settings = settings(model_recheck_seconds=0)
    known = world.gather(world.add(1))
    world.gather([miner(1)], known)
    assert world.asked("models") == 2


def test_facts_are_about_what_is_committed_now(world: World) -> None:
    world.add(1)
    known = world.gather([miner(1)])
    world.services.fault = lambda _path: status(503)
    moved = miner(1, chute_id="chute-new", model_revision="b" * 40)
    after = world.gather([moved], known)
    assert after.facts["5Hotkey1"] == Facts(chute=None, model=None, is_complete=False)
    assert reason(moved, after) == "chute_fetch_failed"
    # Half of it moved: the other half is still known.
    half = miner(1, chute_id="chute-new")
    after = world.gather([half], known)
    assert after.facts["5Hotkey1"].chute is None
    assert after.facts["5Hotkey1"].model == known.facts["5Hotkey1"].model


def test_what_is_under_way_is_limited(world: World) -> None:
    world.settings = settings(validation_concurrency_max=3)
    world.services.latency_seconds = 0.01
    miners = world.add(*range(12))
    evidence = world.gather(miners)
    assert (evidence.chutes.answered, evidence.hugging_face.answered) == (12, 12)
    assert 1 < world.services.in_flight_max <= 3


def test_an_outage_is_asked_again_within_the_sync(world: World) -> None:
    world.settings = settings(validation_attempts_max=3)
    miners = world.add(1)
    seen: list[str] = []

    def twice(path: str) -> HttpFault | None:
        seen.append(path)
        return status(503) if seen.count(path) < 3 else None

    world.services.fault = twice
    evidence = world.gather(miners)
    assert reason(miners[0], evidence) is None
    assert evidence.chutes == Tally(asked=1, answered=1, unanswered=0, reused=0)
    assert (world.asked("chutes"), world.asked("models")) == (3, 3)


def test_retry_after_is_obeyed_by_the_clock(world: World) -> None:
    # One at a time, and a clock that passes only by waiting: then each question's time is known.
    world.settings = settings(validation_concurrency_max=1, validation_attempts_max=2)
    seconds = [0.0]
    asked_at: list[float] = []
    lock = threading.Lock()

    def sleep(pause_seconds: float) -> None:
        with lock:
            seconds[0] += pause_seconds

    def once(path: str) -> HttpFault | None:
        if "/chutes/" not in path:
            return None
        asked_at.append(seconds[0])
        return status(429, Retry_After="20") if len(asked_at) == 1 else None

    world.services.fault = once
    evidence = gather(
        world.add(1, 2, 3),
        {},
        world.chutes,
        world.hugging_face,
        world.settings,
        NOW_MS,
        clock=lambda: seconds[0],
        sleep=sleep,
    )
    assert evidence.chutes.answered == evidence.hugging_face.answered == 3
    first, *later = asked_at
    assert len(later) == 3
    assert min(later) >= first + 20


def test_a_service_that_is_down_is_not_asked_about_everyone(world: World) -> None:
    world.settings = settings(validation_concurrency_max=2)
    miners = world.add(*range(60))
    known = world.gather(miners)
    world.asked("chutes")
    world.services.fault = lambda path: status(500) if "/chutes/" in path else None
    after = world.gather(miners, known)
    assert world.asked("chutes") < 10
    assert after.chutes.unanswered == 60
    assert {reason(one, after) for one in miners} == {None}


def test_when_the_time_is_over_the_rest_keeps_its_facts(world: World) -> None:
    world.settings = settings(validation_concurrency_max=1, validation_seconds_max=95)
    miners = world.add(*range(30))
    evidence = gather(
        miners,
        {},
        world.chutes,
        world.hugging_face,
        world.settings,
        NOW_MS,
        # Each request takes ten seconds, however fast the machine is.
        clock=lambda: 10.0 * len(world.services.requests),
    )
    assert evidence.chutes.answered + evidence.hugging_face.answered == 10
    for tally in (evidence.chutes, evidence.hugging_face):
        assert tally.asked == tally.answered + tally.unanswered == 30
        assert sum(tally.reasons.values()) == tally.unanswered
    facts = evidence.facts.values()
    assert sum(one.chute is not None for one in facts) == evidence.chutes.answered
    assert sum(one.model is not None for one in facts) == evidence.hugging_face.answered


def test_no_thread_outlives_a_sync_and_progress_is_told(world: World) -> None:
    miners = world.add(1, 2)
    world.services.fault = lambda path: HttpFault("hang") if "/chutes/" in path else None
    told: list[tuple[int, int]] = []
    gather(
        miners,
        {},
        Hasty(world.chutes),
        world.hugging_face,
        world.settings,
        NOW_MS,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not [one for one in threading.enumerate() if one.name.startswith("inquiry")]
