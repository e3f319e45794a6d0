import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from api.answers import MinerWeight, instant, retry_after_seconds, server_time
from api.client import (
    BODY_BYTES_MAX,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    LeomaClient,
    MalformedAnswerError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    Weights,
    chunks,
)
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.faulty_proxy import DROP, DROP_AFTER, Answer, FaultyProxy
from tests.api.servers import Server
from tests.builders import hotkey, keypair, sample_body
from warehouse.settings import WarehouseSettings

UNAVAILABLE = Answer(503, b'{"detail": "later"}', {"Retry-After": "3"})


class Hours:
    """A clock that is wrong by some seconds, and a sleep that only writes down for how long."""

    def __init__(self, wrong_by_seconds: float = 0) -> None:
        self.wrong_by_seconds = wrong_by_seconds
        self.slept: list[float] = []

    def clock(self) -> float:
        return time.time() + self.wrong_by_seconds


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server whose log is empty."""
    settings = WarehouseSettings(leoma_home=tmp_path)
    publish_subnet(settings)
    with Server(API_SETTINGS, settings) as running:
        yield running


def client(url: str, name: str = "big", hours: Hours | None = None, **options: int) -> LeomaClient:
    hours = hours or Hours()
    return LeomaClient(
        url, keypair(name), sleep=hours.slept.append, clock=hours.clock, **options
    )  # fmt: skip


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def head(server: Server) -> int:
    return max((sample["id"] for sample in server.get("/samples/list").json()), default=0)


@pytest.mark.parametrize("scheme", [1, 2])
def test_a_sample_is_stored_and_returned(own_server: Server, scheme: int) -> None:
    with client(url_of(own_server), scheme=scheme) as validator:
        stored = validator.submit_sample(sample_body(task_id=4))
    assert stored["task_id"] == 4
    assert stored["validator_hotkey"] == hotkey("big")
    assert own_server.get("/samples/list").json() == [stored]


@pytest.mark.parametrize("scheme", [1, 2])
def test_a_lost_answer_is_given_again_and_stored_once(own_server: Server, scheme: int) -> None:
    batch = [sample_body(miner_hotkey=hotkey(name)) for name in ("old", "young")]
    with FaultyProxy(own_server.port, [DROP_AFTER, DROP_AFTER]) as proxy:
        with client(proxy.url, scheme=scheme) as validator:
            stored = validator.submit_batch(batch)
        first, *retries = proxy.seen
    assert len(retries) == 2
    assert all((retry.body, retry.headers) == (first.body, first.headers) for retry in retries)
    # The submission has position 1, its samples 2 and 3; nothing came after them.
    assert [sample["id"] for sample in stored] == [2, 3]
    assert head(own_server) == 3
    with client(url_of(own_server)) as validator:
        assert validator.submit_sample(sample_body())["id"] == 5


def test_a_request_that_never_arrived_is_sent_again(own_server: Server) -> None:
    hours = Hours()
    with FaultyProxy(own_server.port, [DROP]) as proxy, client(proxy.url, hours=hours) as validator:
        assert validator.submit_sample(sample_body())["id"] == 2
    assert len(hours.slept) == 1


def test_retry_after_is_honoured(own_server: Server) -> None:
    hours = Hours()
    with (
        FaultyProxy(own_server.port, [UNAVAILABLE, UNAVAILABLE]) as proxy,
        client(proxy.url, hours=hours) as validator,
    ):
        validator.submit_sample(sample_body())
        assert proxy.seen[0] == proxy.seen[1] == proxy.seen[2]
    assert hours.slept == [3.0, 3.0]


def test_retries_end(own_server: Server) -> None:
    with FaultyProxy(own_server.port, [UNAVAILABLE] * 9) as proxy:
        with (
            client(proxy.url, retries=2) as validator,
            pytest.raises(UnavailableError, match="POST /samples was answered with 503: later"),
        ):
            validator.submit_sample(sample_body())
        assert len(proxy.seen) == 3


def test_a_wrong_clock_is_corrected_once(own_server: Server) -> None:
    hours = Hours(wrong_by_seconds=-4000)
    with (
        FaultyProxy(own_server.port, []) as proxy,
        client(proxy.url, hours=hours) as validator,
    ):
        validator.submit_sample(sample_body(task_id=1))
        validator.submit_sample(sample_body(task_id=2))
        sent = [int(seen.headers["X-Timestamp"]) for seen in proxy.seen]
    # The first attempt was stale; what it taught serves the next request as well.
    assert [round((stamp - time.time()) / 1000) for stamp in sent] == [-4, 0, 0]
    assert hours.slept == []


def test_a_clock_is_corrected_from_the_time_route_where_the_401_says_nothing(
    own_server: Server,
) -> None:
    stale = Answer(401, b'{"detail": "Timestamp expired"}')
    with (
        FaultyProxy(own_server.port, [stale]) as proxy,
        client(proxy.url, hours=Hours(wrong_by_seconds=9000)) as validator,
    ):
        validator.submit_sample(sample_body())
        assert [seen.path for seen in proxy.seen] == ["/samples", "/time", "/samples"]


def test_a_clock_that_cannot_be_corrected_fails(own_server: Server) -> None:
    stale = Answer(401, b'{"detail": "X-Timestamp is stale: server time is 1700000000"}')
    with (
        FaultyProxy(own_server.port, [stale, stale]) as proxy,
        client(proxy.url) as validator,
        pytest.raises(UnauthorizedError, match="stale"),
    ):
        validator.submit_sample(sample_body())


def test_an_old_signature_is_renewed_before_a_retry(own_server: Server) -> None:
    with (
        FaultyProxy(own_server.port, [DROP]) as proxy,
        client(proxy.url, signature_seconds_max=-1) as validator,
    ):
        validator.submit_sample(sample_body())
        nonces = {seen.headers["X-Nonce"] for seen in proxy.seen}
    assert len(nonces) == 2


def test_nobody_listens() -> None:
    with (
        LeomaClient("http://127.0.0.1:9", retries=1, sleep=lambda _: None) as anybody,
        pytest.raises(UnreachableError, match="got no answer in 2 attempts"),
    ):
        anybody.weights()


def test_more_than_a_hundred_samples_go_in_several_batches(own_server: Server) -> None:
    samples = [sample_body(task_id=task, miner_hotkey=hotkey(f"m{task}")) for task in range(205)]
    with FaultyProxy(own_server.port, []) as proxy, client(proxy.url) as validator:
        stored = validator.submit_batch(samples, sign_evaluation=False)
        assert [len(json.loads(seen.body)["samples"]) for seen in proxy.seen] == [100, 100, 5]
    assert [sample["task_id"] for sample in stored] == list(range(205))


def test_a_signed_evaluation_verifies_and_has_one_task(own_server: Server) -> None:
    samples = [sample_body(task_id=task, reasoning="fünf Möwen") for task in (1, 1, 2)]
    samples[1]["miner_hotkey"] = hotkey("young")
    verified: list[str] = []
    with client(url_of(own_server)) as validator:
        validator._http.event_hooks["response"] = [  # what the service thought of the signature
            lambda response: verified.append(response.headers["X-Evaluation-Verified"])
        ]
        validator.submit_batch(samples)
    assert verified == ["true", "true"]


def test_a_later_batch_that_fails_says_what_was_stored(own_server: Server) -> None:
    samples = [sample_body(task_id=task) for task in (1, 2)]
    samples[1]["passed"] = None
    with client(url_of(own_server)) as validator, pytest.raises(InvalidRequestError) as caught:
        validator.submit_batch(samples)
    assert caught.value.status == 422
    assert caught.value.__notes__ == ["1 of 2 samples were stored before this"]


def test_batches_are_cut_by_size_too() -> None:
    big = sample_body(prompt="p" * 4096, original_artifacts="o" * 8192, reasoning="ä" * 4096)
    cut = list(chunks([big] * 100, one_task_each=True))
    assert sum(map(len, cut)) == 100
    assert len(cut) > 1
    assert all(len(json.dumps({"samples": chunk})) < BODY_BYTES_MAX for chunk in cut)


def test_batches_are_cut_by_task() -> None:
    samples = [{"task_id": 0}, {"task_id": 0, "sample_id": "x"}, {"sample_id": "x"}, {"task_id": 0}]
    assert list(map(len, chunks(samples, one_task_each=True))) == [2, 1, 1]
    assert list(map(len, chunks(samples, one_task_each=False))) == [4]
    assert list(chunks([], one_task_each=True)) == []


def test_weights_and_ranks_are_typed(server: Server) -> None:
    with LeomaClient(url_of(server)) as anybody:
        weights, ranks = anybody.weights(), anybody.rank()
        assert anybody.weights(weights.snapshot_id) == weights
    assert (weights.winner_uid, weights.winner_hotkey) == (7, hotkey("old"))
    assert {entry.miner_hotkey: entry.weight for entry in weights.miners} == {
        hotkey("old"): 1.0,
        hotkey("young"): 0.0,
    }
    assert weights.is_usable(weights.valid_until - timedelta(seconds=1))
    assert not weights.is_usable(weights.valid_until)
    assert [(entry.rank, entry.uid, entry.block, entry.eligible) for entry in ranks] == [
        (1, 7, 4_400_000, True),
        (2, 8, None, False),
    ]


def test_a_burn_without_a_reason_is_not_usable() -> None:
    now = datetime.now(UTC)
    fields = {"miners": (), "snapshot_id": "s", "netuid": 99, "block": 1, "watermark": 0}
    fields["computed_at"] = now
    later = now + timedelta(hours=1)
    unknown = Weights(0, None, None, valid_until=later, **fields)
    burn = Weights(0, None, "no_rank", valid_until=later, **fields)
    assert not unknown.is_usable(now)
    assert burn.is_usable(now)


def test_weights_that_contradict_themselves_are_not_usable() -> None:
    now = datetime.now(UTC)
    fields = {"snapshot_id": "s", "netuid": 99, "block": 1, "computed_at": now, "watermark": 0}
    later = now + timedelta(hours=1)

    def is_usable(uid: int, winner: str | None, reason: str | None, *weights: float) -> bool:
        miners = tuple(
            MinerWeight(f"miner-{uid}", uid, 0.5, weight) for uid, weight in enumerate(weights)
        )
        return Weights(uid, winner, reason, miners, valid_until=later, **fields).is_usable(now)

    assert is_usable(1, "miner-1", None, 0.0, 1.0)
    assert is_usable(0, "miner-0", None, 1.0, 0.0)  # a winner may have uid 0
    assert is_usable(0, None, "no_rank", 0.0, 0.0)
    assert not is_usable(1, "miner-1", "no_rank", 0.0, 1.0)  # a winner, and a reason to burn
    assert not is_usable(0, "miner-1", None, 0.0, 1.0)  # whoever goes by the uid would burn
    assert not is_usable(1, None, "no_rank", 0.0, 0.0)
    assert not is_usable(0, None, "no_rank", 0.0, 1.0)
    assert not is_usable(0, None, "", 0.0, 0.0)
    assert not is_usable(1, "miner-1", None, 0.0, float("nan"))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"winner_uid": 0, "miners": []}', b"null"])
def test_weights_that_are_not_what_the_contract_says_are_refused(
    server: Server, body: bytes
) -> None:
    with (
        FaultyProxy(server.port, [Answer(200, body)]) as proxy,
        client(proxy.url) as anybody,
        pytest.raises(MalformedAnswerError, match="GET /weights"),
    ):
        anybody.weights()


def test_admins_announce_and_keep_the_blacklist(own_server: Server) -> None:
    with client(url_of(own_server), "admin") as admin:
        assert admin.latest_task() is None
        admin.announce_task(9)
        assert admin.latest_task() == 9
        with pytest.raises(ConflictError, match="latest task is already 9"):
            admin.announce_task(8)
        assert admin.blacklist_add(hotkey("young"), "copies")["reason"] == "copies"
        assert [entry["hotkey"] for entry in admin.blacklist()] == [hotkey("young")]
        admin.blacklist_remove(hotkey("young"))
        assert admin.blacklist() == []
        with pytest.raises(NotFoundError):
            admin.blacklist_remove(hotkey("young"))
        assert admin.health()["database"] is True


def test_an_admins_write_survives_a_lost_answer(own_server: Server) -> None:
    plan = [DROP_AFTER, "pass"] * 3  # each write: lost, refused as used, signed anew
    with FaultyProxy(own_server.port, plan[:2]) as proxy, client(proxy.url, "admin") as admin:
        assert admin.announce_task(5)["task_id"] == 5
    with FaultyProxy(own_server.port, plan[:2]) as proxy, client(proxy.url, "admin") as admin:
        assert admin.blacklist_add(hotkey("young"))["hotkey"] == hotkey("young")
    with FaultyProxy(own_server.port, plan[:2]) as proxy, client(proxy.url, "admin") as admin:
        admin.blacklist_remove(hotkey("young"))
        assert len(proxy.seen) == 3
    assert own_server.get("/blacklist").json() == []


def test_who_is_no_admin_is_told_so(own_server: Server) -> None:
    with client(url_of(own_server)) as validator, pytest.raises(ForbiddenError):
        validator.announce_task(1)


def test_signatures_may_come_as_hex(own_server: Server) -> None:
    class Wallet:
        ss58_address = hotkey("big")

        def sign(self, data: bytes) -> str:
            return f"0x{keypair('big').sign(data).hex()}"

    with LeomaClient(url_of(own_server), Wallet()) as validator:
        assert validator.submit_batch([sample_body()])[0]["id"] == 2


def test_signing_needs_a_key(server: Server) -> None:
    with LeomaClient(url_of(server)) as anybody, pytest.raises(ValueError, match="keypair"):
        anybody.submit_sample(sample_body())


def test_retry_after_reads_seconds_dates_and_garbage() -> None:
    def given(text: str) -> float:
        return retry_after_seconds(httpx.Response(503, headers={"Retry-After": text}))

    assert given("2") == 2.0
    assert given("86400") == 20.0
    assert given("soon") == given("-1") == given("") == 0.0
    assert given("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert given("Wed, 21 Oct 2099 07:28:00 GMT") == 20.0


def test_the_servers_time_is_found_in_a_detail() -> None:
    assert server_time("X-Timestamp is stale: server time is 1795384792, the") == 1795384792.0
    assert server_time('{"server_time": 1795384792.5, "difference": 400}') == 1795384792.5
    assert server_time("the timestamp is 5 minutes old") is None


def test_an_instant_without_an_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="no offset"):
        instant("2026-11-22T10:00:00")
