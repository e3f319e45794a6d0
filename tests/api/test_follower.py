"""A machine that follows the bucket: what it brings, and what it says when it cannot."""

import json
import threading
import time

import pytest

from api.follower import Follower
from api.looks import answered_at_ms
from api.settings import ApiSettings
from tests.api.servers import Server
from tests.object_storage import Faults
from tests.warehouse.test_bucket import Publisher
from warehouse.files import locked
from warehouse.generation import Generations


@pytest.fixture
def publisher(object_server, bucket, tmp_path):
    made = Publisher(
        object_server.settings(tmp_path / "publisher", warehouse_url=f"s3://{bucket}/leoma")
    )
    made.vote()
    yield made
    made.log.close()


@pytest.fixture
def faults(object_server):
    with Faults(object_server.port) as proxy:
        yield proxy


@pytest.fixture
def settings(publisher, faults, tmp_path):
    return publisher.settings.model_copy(
        update={
            "leoma_home": tmp_path / "follower",
            "s3_endpoint_url": faults.url,
            "s3_attempts_max": 1,
            "s3_timeout_seconds": 2.0,
            "warehouse_poll_seconds": 0.02,
        }
    )


@pytest.fixture
def following(settings):
    """A follower at work."""
    follower, stopping = Follower(settings), threading.Event()
    thread = threading.Thread(target=follower.run, args=(stopping,))
    thread.start()
    yield follower
    stopping.set()
    thread.join(30)
    assert not thread.is_alive()


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def current_id(settings):
    current = Generations(settings).current()
    return current and current.snapshot_id


def test_what_is_published_is_brought(publisher, settings, following):
    wait_until(lambda: answered_at_ms(settings))
    assert current_id(settings) is None
    for task in (2, 3):
        publisher.vote(task)
        published = publisher.publish().snapshot_id
        wait_until(lambda wanted=published: current_id(settings) == wanted)


def test_an_outage_is_told_and_ends_by_itself(publisher, settings, faults, following):
    first = publisher.publish().snapshot_id
    wait_until(lambda: current_id(settings) == first)
    faults.mode = "refuse"
    wait_until(lambda: following.problem)
    answered = answered_at_ms(settings)
    publisher.vote(2)
    second = publisher.publish().snapshot_id
    asked = faults.connections
    wait_until(lambda: faults.connections > asked + 3)
    assert current_id(settings) == first
    assert answered_at_ms(settings) == answered
    faults.mode = "pass"
    wait_until(lambda: current_id(settings) == second)
    wait_until(lambda: following.problem is None)
    wait_until(lambda: answered_at_ms(settings) > answered)


def test_one_process_of_a_machine_asks_and_another_takes_its_place(publisher, settings, faults):
    published = publisher.publish().snapshot_id
    settings.warehouse_path.mkdir(parents=True)
    follower, stopping = Follower(settings), threading.Event()
    thread = threading.Thread(target=follower.run, args=(stopping,))
    with locked(settings.warehouse_path / "follow.lock", 1):
        thread.start()
        # It waits for its turn several times.
        thread.join(0.5)
        assert thread.is_alive()
        assert faults.connections == 0
    wait_until(lambda: current_id(settings) == published)
    stopping.set()
    thread.join(30)


def test_old_generations_are_removed_here_too(publisher, settings):
    settings = settings.model_copy(update={"generations_kept": 2, "generations_hourly_days": 0})
    follower = Follower(settings)
    for task in (2, 3, 4, 5):
        publisher.vote(task)
        publisher.publish()
        follower.look()
    assert follower.problem is None
    assert len(Generations(settings).kept()) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"answered_at_ms": "now"}'])
def test_a_note_that_cannot_be_read_says_nothing(settings, content):
    settings.warehouse_path.mkdir(parents=True)
    (settings.warehouse_path / "bucket.json").write_bytes(content)
    assert answered_at_ms(settings) == 0


def test_a_follower_needs_a_bucket(warehouse_settings):
    with pytest.raises(ValueError, match="not a bucket"):
        Follower(warehouse_settings)


def test_the_note_is_json_for_whoever_looks(publisher, settings):
    publisher.publish()
    Follower(settings).look()
    noted = json.loads((settings.warehouse_path / "bucket.json").read_bytes())
    assert abs(noted["answered_at_ms"] - time.time() * 1000) < 60_000


def test_health_says_since_when_the_bucket_is_silent(publisher, settings, monkeypatch):
    publisher.publish()
    with Server(ApiSettings(), settings) as server:

        def problems():
            return [text for text in server.get("/health").json()["problems"] if "bucket" in text]

        assert "not answered yet" in problems()[0]
        Follower(settings).look()
        assert problems() == []
        later = time.time_ns() + 61 * 10**9
        monkeypatch.setattr("api.instants.time.time_ns", lambda: later)
        assert "has not answered since 20" in problems()[0]


def test_a_generation_that_is_damaged_is_not_brought_again_and_again(publisher, settings, faults):
    publisher.publish()
    store = Publisher.store(publisher.settings)
    (key,) = [one.key for one in store.listed("generations/") if one.key.endswith(".duckdb")]
    store.put(key, b"other bytes")
    follower = Follower(settings)
    waits = []
    for _ in range(14):
        follower.look()
        waits.append(follower._wait_seconds())
    assert "is not what was published" in follower.problem
    assert waits == sorted(waits)
    assert waits[0] == 0.04
    assert waits[-1] == 20.48
    assert (
        Follower(settings.model_copy(update={"warehouse_poll_seconds": 2.0}))._wait_seconds() == 2
    )


def test_whatever_is_in_the_bucket_does_not_end_the_courier(publisher, settings, following):
    first = publisher.publish().snapshot_id
    wait_until(lambda: current_id(settings) == first)
    store = Publisher.store(publisher.settings)
    pointer = store.get("current.json").content
    for content in (b"[" * 50_000, b" " * 70_000, b"{}"):
        following.problem = None
        store.put("current.json", content)
        wait_until(lambda: following.problem)
    store.put("current.json", pointer)
    wait_until(lambda: following.problem is None)
