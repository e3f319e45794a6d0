"""What a generation answers: the figures, the entity tags, the switch to the next, and the past."""

import os
import socket
import time

import httpx
import pytest

from api import rendering
from api.instants import iso8601
from api.snapshot import Snapshot
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, publish
from warehouse.generation import GenerationError, Generations

OLD, YOUNG, BROKEN = hotkey("old"), hotkey("young"), hotkey("broken")
BIG, SMALL = hotkey("big"), hotkey("small")
PREBUILT = [
    "/weights", "/scores", "/scores/rank", "/scores/stats", "/scores/validators", "/miners/list",
]  # fmt: skip
BY_HOTKEY = [
    f"/miners/{OLD}", f"/miners/info/{OLD}", "/miners/uid/7", f"/miners/{OLD}/tasks",
    f"/tasks?miner_hotkey={OLD}", f"/scores/miner/{OLD}", f"/scores/validator/{BIG}",
]  # fmt: skip
SIGNED = ["/miners/all", "/miners/valid"]


def wait_for_snapshot(server, snapshot_id):
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if server.get("/health").json()["snapshot_id"] == snapshot_id:
            return
        time.sleep(0.02)
    raise AssertionError(f"{snapshot_id} was not picked up within two seconds")


def test_weights(server, module_home):
    answer = server.get("/weights").json()
    generation = Generations(module_home).current()
    assert answer == {
        "winner_uid": 7,
        "miners": [
            {"miner_hotkey": OLD, "uid": 7, "pass_rate": 0.75, "weight": 1.0},
            {"miner_hotkey": YOUNG, "uid": 8, "pass_rate": 0.25, "weight": 0.0},
        ],
        "winner_hotkey": OLD,
        "burn_reason": None,
        "snapshot_id": generation.snapshot_id,
        "netuid": 99,
        "block": 4_500_000,
        "computed_at": iso8601(generation.computed_at_ms),
        "valid_until": answer["valid_until"],
        "watermark": 0,
    }


def test_burn_says_why(warehouse_settings):
    publish(warehouse_settings, {"burn_reason": "window_incomplete"})
    with Server(API_SETTINGS, warehouse_settings) as running:
        answer = running.get("/weights").json()
    assert (answer["winner_uid"], answer["winner_hotkey"], answer["miners"]) == (0, None, [])
    assert answer["burn_reason"] == "window_incomplete"


def test_ranks(server):
    assert server.get("/scores/rank").json() == {
        "ranks": [
            {
                "miner_hotkey": OLD,
                "uid": 7,
                "rank": 1,
                "passed_count": 3,
                "pass_rate": 0.75,
                "block": 4_400_000,
                "eligible": True,
            },
            {
                "miner_hotkey": YOUNG,
                "uid": 8,
                "rank": 2,
                "passed_count": 1,
                "pass_rate": 0.25,
                "block": None,
                "eligible": False,
            },
        ]
    }


AGGREGATED = {
    "avg_score": 0.75,
    "total_samples": 4,
    "total_passed": 3,
    "pass_rate": 0.75,
    "validator_count": 2,
}


def test_scores_are_of_miners_with_a_score_entry(server):
    answer = server.get("/scores").json()
    assert set(answer["scores"]) == {OLD, YOUNG}
    assert answer["scores"][OLD] == AGGREGATED
    assert answer["total_validators"] == 2
    assert answer["updated_at"] == server.get("/weights").json()["computed_at"]


def test_score_stats(server):
    assert server.get("/scores/stats").json() == {
        "total_validators": 2,
        "total_miners": 2,
        "total_samples": 12,
        "total_score_entries": 3,
        "overall_pass_rate": 0.6,
    }


def test_validator_summaries(server):
    by_hotkey = {row["validator_hotkey"]: row for row in server.get("/scores/validators").json()}
    assert list(by_hotkey) == sorted((BIG, SMALL))
    assert by_hotkey[BIG] == {
        "validator_hotkey": BIG,
        "total_samples": 8,
        "total_passed": 4,
        "avg_score": 0.5,
        "pass_rate": 0.5,
        "last_updated": "2023-11-14T22:13:20.456Z",
    }


def test_scores_of_one_miner(server):
    answer = server.get(f"/scores/miner/{OLD}").json()
    assert answer["aggregated"] == AGGREGATED
    assert [entry["validator_hotkey"] for entry in answer["by_validator"]] == sorted((BIG, SMALL))
    details = {entry["validator_hotkey"]: entry for entry in answer["by_validator"]}
    assert details[BIG] == {
        "validator_hotkey": BIG,
        "score": 0.75,
        "total_samples": 4,
        "total_passed": 3,
        "pass_rate": 0.75,
        "updated_at": "2023-11-14T22:13:20.456Z",
    }


def test_scores_of_one_validator(server):
    answer = server.get(f"/scores/validator/{SMALL}").json()
    assert answer == {
        "validator_hotkey": SMALL,
        "scores": [
            {
                "miner_hotkey": OLD,
                "score": 1.0,
                "total_samples": 2,
                "total_passed": 2,
                "pass_rate": 1.0,
                "updated_at": "2023-11-14T22:13:20.456Z",
            }
        ],
        "total_miners": 1,
    }


def test_unknown_hotkey_has_empty_scores_and_zeros(server):
    nobody = hotkey("nobody")
    assert server.get(f"/scores/miner/{nobody}").json() == {
        "miner_hotkey": nobody,
        "by_validator": [],
        "aggregated": {
            "avg_score": 0.0,
            "total_samples": 0,
            "total_passed": 0,
            "pass_rate": 0.0,
            "validator_count": 0,
        },
    }
    assert server.get(f"/scores/validator/{nobody}").json() == {
        "validator_hotkey": nobody,
        "scores": [],
        "total_miners": 0,
    }
    assert server.get(f"/miners/{nobody}/tasks").json() == []
    assert server.get(f"/tasks?miner_hotkey={nobody}").json() == []


def test_miners(server):
    everyone = server.get("/miners/list").json()
    assert [miner["uid"] for miner in everyone["miners"]] == [7, 8, 9]
    assert (everyone["total"], everyone["valid_count"]) == (3, 2)
    assert server.signed("big", "GET", "/miners/all").json() == everyone
    valid = server.signed("big", "GET", "/miners/valid").json()
    assert valid == {**everyone, "miners": everyone["miners"][:2]}
    for path in (f"/miners/{BROKEN}", f"/miners/info/{BROKEN}", "/miners/uid/9"):
        miner = server.get(path).json()
        assert miner == everyone["miners"][2]
        assert (miner["is_valid"], miner["invalid_reason"]) == (False, "chute_not_running")
        assert miner["last_validated_at"] is None


def test_unknown_miner(server):
    for path in (f"/miners/{hotkey('nobody')}", f"/miners/info/{hotkey('nobody')}"):
        assert server.get(path).status_code == 404
    for uid in (10, 99_999, 2**63 - 1):
        assert server.get(f"/miners/uid/{uid}").status_code == 404
    for uid in (-1, 2**63, 10**40, "x", "1.5"):
        answer = server.get(f"/miners/uid/{uid}")
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("uid: ")


@pytest.mark.parametrize(
    "path",
    [
        "/miners/{}", "/miners/info/{}", "/miners/{}/tasks", "/tasks?miner_hotkey={}",
        "/scores/miner/{}", "/scores/validator/{}", "/tasks/1/miner/{}", "/blacklist/{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "text",
    ["x", "5" * 48, "5" * 2000, "0x" + "00" * 32, OLD + "%0A", "%00", "%ff", "%F0%9F%AA%81", "%20"],
)
def test_malformed_hotkey_in_a_path_or_query(server, path, text):
    response = server.get(path.format(text))
    assert (response.status_code, response.json()) == (
        400,
        {"detail": "Invalid SS58 address format"},
    )


def test_tasks_of_a_miner_are_newest_first(server):
    expected = [
        {"task_id": 4, "passed": True, "latency_ms": None, "updated": "2023-11-14T22:13:20.789Z"},
        {"task_id": 3, "passed": False, "latency_ms": 1500, "updated": "2023-11-14T22:13:20.789Z"},
    ]
    assert server.get(f"/miners/{OLD}/tasks").json() == expected
    assert server.get(f"/tasks?miner_hotkey={OLD}").json() == expected


def test_tasks_need_a_miner(server):
    response = server.get("/tasks")
    assert response.status_code == 400
    assert response.json() == {"detail": "miner_hotkey: Field required"}


@pytest.mark.parametrize("path", PREBUILT + BY_HOTKEY)
def test_entity_tags(server, module_home, path):
    etag = f'"{Generations(module_home).current().snapshot_id}"'
    full = server.get(path)
    assert full.status_code == 200
    assert full.headers["ETag"] == etag
    assert full.headers["Cache-Control"] == "public, max-age=2"
    assert full.headers["Content-Type"] == "application/json"
    for known in (etag, f"W/{etag}", "*", f'"other", {etag}', f'W/"a",W/{etag},"b"'):
        answer = server.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
        assert answer.headers["Cache-Control"] == "public, max-age=2"
    for other in ('"other"', etag.strip('"'), "", f'"x{etag[1:]}'):
        assert server.get(path, headers={"If-None-Match": other}).content == full.content
    twice = [("If-None-Match", '"other"'), ("If-None-Match", etag)]
    assert server.get(path, headers=twice).status_code == 304


@pytest.mark.parametrize("path", SIGNED)
def test_signed_answers_are_not_for_shared_caches(server, path):
    answer = server.signed("big", "GET", path)
    assert answer.headers["Cache-Control"] == "private, max-age=2"
    known = {"If-None-Match": answer.headers["ETag"]}
    assert server.signed("big", "GET", path, headers=known).status_code == 304
    assert server.get(path, headers=known).status_code == 401


@pytest.mark.parametrize("path", PREBUILT)
def test_prebuilt_answer_and_route_say_the_same(server, path):
    """A query string leaves the fast path."""
    fast, full = server.get(path), server.get(path + "?unknown=1")
    assert fast.content == full.content
    # The route varies by Origin needlessly: every origin gets the same answer.
    dropped = {"date", "server", "vary"}
    assert {k: v for k, v in fast.headers.items() if k not in dropped}.items() >= {
        k: v for k, v in full.headers.items() if k not in dropped
    }.items()


@pytest.mark.parametrize("path", PREBUILT + BY_HOTKEY)
def test_before_the_first_generation_nothing_is_known(empty_server, path):
    response = empty_server.get(path)
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert "no generation has been published" in response.json()["detail"]


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory, module_home):
    home = module_home.model_copy(update={"leoma_home": tmp_path_factory.mktemp("empty")})
    with Server(API_SETTINGS, home) as running:
        yield running


def test_live_routes_work_before_the_first_generation(empty_server):
    assert empty_server.get("/samples/list").json() == []
    assert empty_server.get("/blacklist").json() == []
    assert empty_server.get("/tasks/latest").status_code == 404
    assert empty_server.get("/weights?at=2020-01-01").status_code == 503
    # A verdict needs stakes, and nobody knows them yet.
    assert empty_server.get("/tasks/1").status_code == 503


def test_new_generation_is_picked_up_without_a_restart(warehouse_settings):
    with Server(API_SETTINGS, warehouse_settings) as running:
        assert running.get("/weights").status_code == 503
        first = publish_subnet(warehouse_settings)
        wait_for_snapshot(running, first.snapshot_id)
        etag = running.get("/weights").headers["ETag"]
        assert running.get(f"/miners/{OLD}/tasks").json() != []
        second = publish(warehouse_settings, {"winner_uid": 0})
        wait_for_snapshot(running, second.snapshot_id)
        answer = running.get("/weights", headers={"If-None-Match": etag})
        assert answer.status_code == 200
        assert answer.json()["snapshot_id"] == second.snapshot_id
        assert running.get(f"/miners/{OLD}/tasks").json() == []
        assert running.get(f"/miners/{OLD}").status_code == 404


def test_last_good_generation_stays_when_the_next_cannot_be_loaded(warehouse_settings):
    good = publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        generations = Generations(warehouse_settings)
        pointer = generations.pointer.read_bytes()
        broken = good.snapshot_id.replace("Z-", "Z-0")[:-1]
        (generations.directory / f"{broken}.duckdb").write_bytes(b"not a database")
        for content in (
            f'{{"snapshot_id": "{broken}"}}'.encode(),
            b"{",
            b'{"snapshot_id": "../x"}',
        ):
            generations.pointer.write_bytes(content)
            problems = wait_for_problem(running)
            assert running.get("/weights").json()["snapshot_id"] == good.snapshot_id
            assert any("cannot be loaded" in problem for problem in problems)
            generations.pointer.write_bytes(pointer)
            wait_until_healthy(running)
        generations.pointer.unlink()
        assert "the pointer to the current generation is gone" in wait_for_problem(running)
        assert running.get("/scores/rank").status_code == 200
        assert running.get("/health/ready").status_code == 200


def wait_for_problem(server):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        health = server.get("/health").json()
        if health["problems"]:
            assert health["status"] == "degraded"
            return health["problems"]
        time.sleep(0.02)
    raise AssertionError("no problem was reported")


def wait_until_healthy(server):
    deadline = time.monotonic() + 5
    while server.get("/health").json()["status"] != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def history(tmp_path_factory, module_home):
    """A server with three generations, oldest first."""
    home = module_home.model_copy(update={"leoma_home": tmp_path_factory.mktemp("history")})
    generations = []
    for uid in (1, 2, 3):
        info = {"winner_uid": uid, "winner_hotkey": OLD, "watermark": uid}
        generations.append(publish(home, info, weights=[{"miner_hotkey": OLD, "uid": uid}]))
        time.sleep(0.005)
    with Server(API_SETTINGS, home) as running:
        yield running, generations


def winner_at(server, at):
    response = server.get("/weights", params={"at": at})
    assert response.status_code == 200, response.text
    return response.json()["winner_uid"]


def test_weights_of_a_named_snapshot_are_kept_for_long(history):
    server, generations = history
    for uid, generation in enumerate(generations, 1):
        response = server.get("/weights", params={"at": generation.snapshot_id})
        assert response.json()["winner_uid"] == uid
        assert response.json()["snapshot_id"] == generation.snapshot_id
        assert response.headers["Cache-Control"] == "public, max-age=86400, immutable"
        known = {"If-None-Match": f'"{generation.snapshot_id}"'}
        again = server.get("/weights", params={"at": generation.snapshot_id}, headers=known)
        assert again.status_code == 304


def test_weights_at_a_time(history):
    server, generations = history
    for uid, generation in enumerate(generations, 1):
        at_ms = generation.computed_at_ms
        naive = iso8601(at_ms).removesuffix("Z")
        for at in (iso8601(at_ms), naive, naive + "+00:00", f"{at_ms / 1000:.3f}"):
            assert winner_at(server, at) == uid
        # As a client sends it that forgot to encode the plus.
        assert server.get(f"/weights?at={naive}+00:00").json()["winner_uid"] == uid
    before_the_second = iso8601(generations[1].computed_at_ms - 1)
    response = server.get("/weights", params={"at": before_the_second})
    assert response.json()["winner_uid"] == 1
    assert response.headers["Cache-Control"] == "public, max-age=2"
    assert winner_at(server, "2999-01-01") == 3


@pytest.mark.parametrize(
    "at",
    [
        "2020-01-01", "1577836800", "0", "-5", "0001-01-01T00:00:00+14:00",
        "20200101T000000000Z-00000000",
    ],
)  # fmt: skip
def test_weights_before_the_oldest_kept(history, at):
    server, generations = history
    response = server.get("/weights", params={"at": at})
    assert response.status_code == 404
    assert generations[0].snapshot_id in response.json()["detail"]


@pytest.mark.parametrize(
    "at",
    [
        "",
        "yesterday",
        "1e9",
        "NaN",
        "2026-13-01",
        "../current",
        "x" * 100,
        "\0",
        "9" * 40,
        "٣",
        " ",
    ],
)
def test_weights_at_no_time_at_all(history, at):
    server, _ = history
    response = server.get("/weights", params={"at": at})
    assert response.status_code == 400
    assert isinstance(response.json()["detail"], str)


def test_weights_of_a_snapshot_whose_file_is_broken(warehouse_settings):
    first = publish_subnet(warehouse_settings)
    publish_subnet(warehouse_settings)
    os.truncate(first.path, 100)
    with Server(API_SETTINGS, warehouse_settings) as running:
        response = running.get("/weights", params={"at": first.snapshot_id})
        assert response.status_code == 503
        assert first.snapshot_id in response.json()["detail"]


def test_query_on_weights_without_at_is_ignored(history):
    server, _ = history
    assert server.get("/weights?cache=1").json()["winner_uid"] == 3


# The edge: CORS, HEAD, other methods.


def test_every_origin_may_read_without_credentials(server):
    for path in ("/weights", "/samples/list"):
        answer = server.get(path, headers={"Origin": "https://dashboard.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "ETag" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("path", ["/weights", "/samples/list"])
def test_chosen_origins_may_read_and_are_not_asked_for_credentials(cors_server, path):
    allowed = cors_server.get(path, headers={"Origin": "https://a.example"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Credentials" not in allowed.headers
    assert "Origin" in allowed.headers["Vary"]
    other = cors_server.get(path, headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    assert "Access-Control-Allow-Origin" not in cors_server.get(path).headers


@pytest.fixture(scope="module")
def cors_server(module_home, server):
    settings = API_SETTINGS.model_copy(update={"cors_origins": ("https://a.example",)})
    with Server(settings, module_home) as running:
        yield running


def test_preflight(server, cors_server):
    headers = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-signature,content-type",
    }
    for running, origin in ((server, "*"), (cors_server, "https://a.example")):
        answer = running.http.options("/samples", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "x-signature" in answer.headers["Access-Control-Allow-Headers"].lower()


@pytest.mark.parametrize("path", [*PREBUILT, *BY_HOTKEY, "/health", "/samples/list"])
def test_head_is_get_without_the_body(server, path):
    answer = server.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == "application/json"
    assert int(answer.headers["Content-Length"]) > 0


def test_unknown_paths_and_methods(server):
    for path in ("/", "/nothing", "/weights/x", "/miners", "/samples"):
        response = server.get(path)
        assert response.status_code in (404, 405)
        assert isinstance(response.json()["detail"], str)
    for method, path in (("PUT", "/weights"), ("DELETE", "/samples"), ("PATCH", "/tasks")):
        response = server.http.request(method, path)
        assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})


def test_bytes_that_are_no_http_url(server):
    for target in (
        b"/\xff\xfe",
        b"/weights\x00",
        b"/%",
        b"/miners/%zz",
        b"//",
        b"/weights;x",
        b"*",
    ):
        answer = raw(server.port, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 4"), (target, answer)


def raw(port, request):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(4096)


def test_client_may_keep_its_connection_over_all_kinds_of_answers(server):
    with httpx.Client(base_url=server.http.base_url, trust_env=False) as client:
        for _ in range(3):
            for path in ("/weights", "/nothing", "/samples/list", "/miners/x"):
                client.get(path)
            client.post("/samples", content=b"x" * 100_000)
            assert client.get("/weights").status_code == 200


def test_an_answer_that_takes_too_much_memory_is_refused_and_nothing_is_called_damaged(
    warehouse_settings,
):
    snapshot = Snapshot(publish(warehouse_settings))
    large = "SELECT string_agg(repeat(?, 1_000_000), '') FROM range(1_000)"

    def question(connection, text):
        return connection.execute(large, [text]).fetchall()[0][0].encode()

    with pytest.raises(GenerationError, match="Out of Memory"):
        snapshot.render(question, "x")
    assert snapshot.problem() is None
    assert snapshot.render(rendering.miner_tasks, OLD) == b"[]"
