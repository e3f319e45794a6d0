"""Evaluation results on a real S3 server: all of them, the newest, verifiable, whatever fails."""

import hashlib
import json
import logging
import textwrap
import threading
from collections import Counter
from pathlib import Path

import apsw
import pytest

from api import uploader as uploader_module
from api.uploader import CLAIMED_AHEAD, Uploader
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, keypair, sample_body, wait_for
from tests.object_storage import KEYS, Faults
from tests.warehouse.builders import append, request, sample
from warehouse.backends import open_outbox, open_read_log
from warehouse.files import locked
from warehouse.log import LogUnavailableError
from warehouse.objects import ObjectStore
from warehouse.records import Evaluation
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_schema import lock_path

# Long enough for a busy machine; nothing here depends on how long it takes.
SECONDS_MAX = 60
README = Path(__file__).parent.parent.parent / "README.md"
SOON = {
    "outbox_poll_seconds": 0.02,
    "outbox_retry_seconds_max": 0.1,
    "outbox_probe_seconds_max": 0.1,
    "s3_timeout_seconds": 0.5,
    "s3_attempts_max": 1,
}


class Courier:
    """An uploader in a thread, with connections of its own, from `with` to the end of it."""

    def __init__(self, settings):
        self.outbox, self.log = open_outbox(settings), open_read_log(settings)
        self.store = ObjectStore(settings, settings.s3_samples_bucket)
        self.uploader = Uploader(settings, self.outbox, self.log, self.store)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.uploader.run, args=(self.stopping,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(SECONDS_MAX)
        assert not self.thread.is_alive()
        for one in (self.outbox, self.log, self.store):
            one.close()


@pytest.fixture
def faults(object_server):
    with Faults(object_server.port) as proxy:
        yield proxy


@pytest.fixture
def settings(object_server, home, bucket, faults):
    """Settings with the bucket behind the proxy, and short waits."""
    # The server makes room for a bucket with its first object, which takes its time.
    client = object_server.client()
    client.put_object(Bucket=bucket, Key="first", Body=b"1")
    client.delete_object(Bucket=bucket, Key="first")
    client.close()
    values = {"s3_samples_bucket": bucket, "s3_endpoint_url": faults.url, **SOON}
    return object_server.settings(home, **values)


@pytest.fixture
def patient(settings):
    """The same for uploads that are held up on purpose."""
    return settings.model_copy(update={"s3_timeout_seconds": 60.0})


@pytest.fixture
def log(settings):
    opened = SqliteLog(settings)
    yield opened
    opened.close()


@pytest.fixture
def stored(object_server, bucket):
    """What is in the bucket, read behind the courier's back: parsed JSON by key."""

    def read():
        client = object_server.client()
        listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
        found = {
            entry["Key"]: json.loads(
                client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            )
            for entry in listed
        }
        client.close()
        return found

    return read


def key(task, signer="validator"):
    return f"{task}/evaluation_results/{hotkey(signer)}.json"


def raw(log, question):
    return apsw.Connection(str(log.path)).execute(question).fetchall()


def is_drained(log):
    return log.backlog(1).depth == 0


def passed(document):
    return [entry["passed"] for entry in document["data"]]


def readme_snippet():
    section = README.read_text().split("### Evaluation results in a bucket")[1]
    begin, end = section.index("    import hashlib"), section.index("    # Cloudflare")
    return textwrap.dedent(section[begin:end])


def test_what_was_posted_is_stored_and_verifies_with_the_public_key(
    settings, object_server, bucket
):
    publish_subnet(settings)
    miners = ["old", "young", "broken"]
    texts = {"reasoning": "naïve \u2028 𝄞 \x07", "original_artifacts": '{"a": 1}'}
    samples = [
        sample_body(task_id=5, miner_hotkey=hotkey(miner), passed=miner != "young", **texts)
        for miner in miners
    ]
    data = [
        {
            "hotkey": hotkey(miner),
            "passed": miner != "young",
            "status": "failed" if miner == "young" else "passed",
            "confidence": 80,
            "reasoning": texts["reasoning"],
            "latency_ms": 1500,
            "original_artifacts": '{"a": 1}',
            "generated_artifacts": None,
            "presentation_order": None,
        }
        for miner in miners
    ]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()
    signature = "0x" + keypair("big").sign(digest).hex()
    with Server(API_SETTINGS, settings) as server, Courier(settings) as courier:
        batch = {"signature": signature, "samples": samples}
        answer = server.signed("big", "POST", "/samples/batch", batch)
        assert answer.headers["X-Evaluation-Verified"] == "true"
        wait_for(lambda: is_drained(courier.log))
    client = object_server.client()
    found = client.get_object(Bucket=bucket, Key=key(5, "big"))
    content = found["Body"].read()
    client.close()
    assert found["ContentType"] == "application/json"
    assert content == json.dumps({"signature": signature, "data": data}).encode()
    # As anybody does who has the object and the validator's address only.
    for validator, is_genuine in (("big", True), ("middle", False)):
        known = {"content": content, "validator_hotkey": hotkey(validator)}
        exec(readme_snippet(), known)
        assert known["is_genuine"] == is_genuine


def test_a_single_samples_signature_goes_with_it(settings, log, stored):
    judged = Evaluation("ab" * 64, is_verified=False)
    log.append_samples(request(), [sample(evaluation_signature="ab" * 64)], judged).result(30)
    with Courier(settings):
        wait_for(lambda: is_drained(log))
    assert stored()[key(1)]["signature"] == "ab" * 64


def test_an_unsigned_batch_gives_one_object_a_task(settings, log, stored):
    append(log, sample("b", 1), sample("a", 2), sample("a", "legacy"), sample("a", 1))
    with Courier(settings):
        wait_for(lambda: is_drained(log))
    miners = {
        name: [entry["hotkey"] for entry in document["data"]] for name, document in stored().items()
    }
    assert miners == {key(1): [hotkey("b"), hotkey("a")], key(2): [hotkey("a")]}
    assert {document["signature"] for document in stored().values()} == {None}


def test_the_newest_submission_wins(settings, log, stored):
    append(log, sample(passed=True))
    append(log, sample(passed=False))
    with Courier(settings):
        wait_for(lambda: is_drained(log))
        append(log, sample("a"), sample("b"))
        wait_for(lambda: is_drained(log))
    assert passed(stored()[key(1)]) == [True, True]


def test_what_comes_during_an_upload_waits_for_it_and_wins(patient, log, faults, stored):
    faults.mode = "hold"
    append(log, sample(passed=True))
    with Courier(patient), Courier(patient):
        wait_for(lambda: faults.puts)
        append(log, sample(passed=False))
        append(log, sample(passed=False), signer="other")
        # Of the other validator's the couriers take hold, of this one's not again.
        wait_for(lambda: len(faults.puts) == 2)
        assert len(set(faults.puts)) == 2
        faults.released.set()
        wait_for(lambda: is_drained(log))
    assert len(faults.puts) == 3
    assert passed(stored()[key(1)]) == [False]


def test_couriers_share_the_work_without_doing_anything_twice(patient, log, faults, stored):
    for task in range(120):
        append(log, sample(task=task))
    with Courier(patient), Courier(patient), Courier(patient):
        wait_for(lambda: is_drained(log))
    assert set(Counter(faults.puts).values()) == {1}
    assert set(stored()) == {key(task) for task in range(120)}


@pytest.mark.parametrize("mode", ["refuse", "stall", "unavailable", "cut", "lose"])
def test_whatever_fails_all_is_there_in_the_end(settings, log, faults, stored, mode):
    faults.mode = mode
    faults.cut_after = 700  # in the middle of a request
    for task in range(20):
        append(log, sample(task=task, passed=task % 2 == 0))
    with Courier(settings) as courier:
        wait_for(lambda: courier.uploader._pauses >= 2)
        if mode != "lose":
            assert stored() == {}
        assert raw(log, "SELECT count(*) FROM outbox WHERE last_error IS NOT NULL") > [(0,)]
        faults.mode = "pass"
        wait_for(lambda: is_drained(log))
    assert {name: passed(one) for name, one in stored().items()} == {
        key(task): [task % 2 == 0] for task in range(20)
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"s3_write_secret_access_key": "wrong-secret"}, "SignatureDoesNotMatch"),
        (
            {
                "s3_write_access_key_id": KEYS["reader"][0],
                "s3_write_secret_access_key": KEYS["reader"][1],
            },
            "AccessDenied",
        ),
        ({"s3_samples_bucket": "no-such-bucket"}, "NoSuchBucket|AccessDenied"),
    ],
    ids=["secret", "read-only", "bucket"],
)
def test_wrong_settings_lose_nothing_and_are_told(settings, log, stored, wrong, said):
    append(log, sample())
    # Through the validation that turns text into secrets.
    given = {**settings.model_dump(), **wrong}
    with Courier(WarehouseSettings(**given)) as courier:
        wait_for(lambda: courier.uploader._pauses >= 2)
    outbox = open_outbox(settings)
    status = outbox.status()
    outbox.close()
    assert any(word in status.last_error for word in said.split("|"))
    assert not any(secret in status.last_error for _, secret, _ in KEYS.values())
    assert "wrong-secret" not in status.last_error
    assert (status.depth, status.in_flight, stored()) == (1, 0, {})
    # Another process, with the settings that were meant.
    with Courier(settings):
        wait_for(lambda: is_drained(log))
    assert list(stored()) == [key(1)]


def test_a_bucket_that_is_made_later_is_found(settings, object_server, log):
    name = "made-later"
    append(log, sample())
    with Courier(settings.model_copy(update={"s3_samples_bucket": name})) as courier:
        wait_for(lambda: courier.uploader._pauses >= 2)
        client = object_server.client()
        client.create_bucket(Bucket=name)
        wait_for(lambda: is_drained(log))
        assert client.get_object(Bucket=name, Key=key(1))["Body"].read()
        client.close()


def test_a_dead_bucket_gets_one_request_now_and_then(settings, log, faults, monkeypatch):
    monkeypatch.setattr(uploader_module.random, "uniform", lambda _low, _high: 3_600.0)
    settings = settings.model_copy(update={"outbox_retry_seconds_max": 3_600.0})
    faults.mode = "unavailable"
    for task in range(200):
        append(log, sample(task=task))
    with Courier(settings) as courier:
        wait_for(lambda: courier.uploader._pauses and not courier.uploader._in_hand)
        sent = len(faults.puts)
        # No more than were in hand; all others were given back untried.
        assert settings.outbox_concurrency_max <= sent <= 32
        assert raw(log, "SELECT count(*) FROM outbox WHERE attempts > 0") == [(sent,)]
        assert raw(log, "SELECT count(*) FROM outbox WHERE claim IS NOT NULL") == [(0,)]
        for pauses in (2, 3):
            courier.uploader._resume_at = 0.0
            wait_for(lambda: courier.uploader._pauses == pauses)  # noqa: B023
            assert len(faults.puts) == sent + pauses - 1
        faults.mode = "pass"
        courier.uploader._resume_at = 0.0
        # What was not tried does not wait; what failed has its own time.
        wait_for(lambda: log.backlog(200).depth == sent + 2)


def test_one_object_that_cannot_be_made_holds_up_no_other(settings, log, stored):
    apsw.Connection(str(log.path)).execute(
        "INSERT INTO outbox (task_id, validator_hotkey, submission_seq, queued_at_ms, due_at_ms) "
        "VALUES (77, 'gone', 999, 0, 0)"
    )
    with Courier(settings) as courier:
        wait_for(lambda: raw(log, "SELECT attempts FROM outbox") >= [(3,)])
        for task in range(20):
            append(log, sample(task=task))
        wait_for(lambda: log.backlog(9).depth == 1)
        assert courier.uploader._pauses == 0
    assert len(stored()) == 20
    assert raw(log, "SELECT last_error FROM outbox") == [("submission 999 is not in the log",)]


def test_nothing_is_locked_while_an_upload_is_under_way(patient, log, faults):
    append(log, sample(task=1))
    faults.mode = "hold"
    # It has nothing to do, and will not even look, until what it sent was answered.
    with Courier(patient.model_copy(update={"outbox_poll_seconds": 5.0})):
        wait_for(lambda: faults.puts)
        # Readers see the claim: it was committed before anything was sent.
        assert raw(log, "SELECT claim IS NOT NULL FROM outbox") == [(1,)]
        with locked(lock_path(log.path), 0):
            pass
        assert append(log, sample(task=2)).submission_seq == 3
        assert raw(log, "SELECT task_id FROM outbox WHERE claim IS NOT NULL") == [(1,)]
        faults.released.set()
        wait_for(lambda: is_drained(log))


def test_an_upload_under_way_keeps_its_lease(patient, log, faults):
    append(log, sample())
    faults.mode = "hold"
    due = "SELECT due_at_ms, claim FROM outbox"
    with Courier(patient.model_copy(update={"outbox_lease_seconds": 1})):
        wait_for(lambda: faults.puts)
        ((first, token),) = raw(log, due)
        wait_for(lambda: raw(log, due)[0][0] > first)
        assert raw(log, due)[0][1] == token
        faults.released.set()
        wait_for(lambda: is_drained(log))
    assert len(faults.puts) == 1


def test_a_log_that_does_not_answer_is_asked_again(settings, log, stored, monkeypatch, caplog):
    courier = Courier(settings)
    failures = [LogUnavailableError("disk on fire"), ZeroDivisionError()] * 2

    def failing(method):
        def call(*arguments):
            if failures:
                raise failures.pop()
            return method(*arguments)

        return call

    append(log, sample())
    for name in ("claim", "done"):
        monkeypatch.setattr(courier.outbox, name, failing(getattr(courier.outbox, name)))
    with caplog.at_level(logging.WARNING), courier:
        wait_for(lambda: is_drained(log))
        failures.append(LogUnavailableError("disk on fire"))
        append(log, sample(task=2))
        wait_for(lambda: is_drained(log))
    assert len(stored()) == 2
    assert "disk on fire; trying again" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_defect_in_one_upload_is_a_failure_of_it(settings, log, stored, monkeypatch, caplog):
    courier = Courier(settings)
    put, broken = courier.store.put, [ZeroDivisionError()]

    def once(*arguments, **values):
        if broken:
            raise broken.pop()
        return put(*arguments, **values)

    monkeypatch.setattr(courier.store, "put", once)
    append(log, sample())
    with courier:
        wait_for(lambda: is_drained(log))
    assert len(stored()) == 1
    assert "a defect in the upload" in caplog.text


def test_stopping_finishes_what_is_under_way_and_gives_back_the_rest(patient, log, faults, stored):
    faults.mode = "hold"
    at_once = patient.outbox_concurrency_max
    for task in range(CLAIMED_AHEAD * at_once + 5):
        append(log, sample(task=task))
    with Courier(patient) as courier:
        wait_for(lambda: len(faults.puts) == at_once)
        courier.stopping.set()
        wait_for(courier.uploader._to_send.empty)
        faults.released.set()
    # A sender that had just taken another one sends it as well.
    assert at_once <= len(stored()) == len(faults.puts) < 2 * at_once
    assert raw(log, "SELECT count(*) FROM outbox WHERE claim IS NOT NULL") == [(0,)]
    with Courier(patient):
        wait_for(lambda: is_drained(log))
    assert len(stored()) == len(faults.puts) == CLAIMED_AHEAD * at_once + 5


def test_stopping_waits_only_so_long(patient, log, faults, stored, monkeypatch):
    monkeypatch.setattr(uploader_module, "GRACE_SECONDS", 0.05)
    append(log, sample())
    faults.mode = "hold"
    with Courier(patient):
        wait_for(lambda: faults.puts)
    # It is nobody's until the lease has run out.
    assert raw(log, "SELECT claim IS NOT NULL FROM outbox") == [(1,)]
    assert stored() == {}
    faults.mode = "pass"
    apsw.Connection(str(log.path)).execute("UPDATE outbox SET due_at_ms = 0")
    with Courier(patient):
        wait_for(lambda: is_drained(log))
    assert list(stored()) == [key(1)]


def test_an_older_copy_of_the_log_uploads_nothing(settings, log, stored, caplog):
    append(log, sample(task=1))
    counted = [log.head() + 1]
    with caplog.at_level(logging.ERROR):
        made = Courier(settings)
        made.uploader._counted_seq = lambda: counted[0]
        with made:
            wait_for(lambda: "older than what is published" in caplog.text)
            assert stored() == {}
            counted[0] = log.head()
            wait_for(lambda: is_drained(log))
    assert len(stored()) == 1
