"""The short way answers as FastAPI's does, and whatever is not plain takes FastAPI's."""

import threading

import httpx
import pytest

from api import direct
from api.dependencies import PAGE_ROWS_MAX
from api.history import History
from api.snapshot import Snapshot
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, sample_body

TASK = 7
# A path whose query FastAPI ignores is judged by FastAPI.
ODD = "ignored=1"
OPEN = [
    "/samples/list",
    "/samples/list?limit=1",
    f"/samples/list?limit={PAGE_ROWS_MAX}",
    f"/tasks/{TASK}/miner/{hotkey('old')}",
    f"/tasks/0{TASK}/miner/{hotkey('old')}",
    f"/tasks/{TASK}/miner/{hotkey('young')}",
    f"/tasks/{TASK}/miner/nobody",
    f"/tasks/999/miner/{hotkey('old')}",
]
SIGNED = [
    f"/samples/validator/{hotkey('big')}",
    f"/samples/validator/{hotkey('big')}?limit=2",
    f"/samples/miner/{hotkey('old')}",
    f"/samples/miner/{hotkey('old')}?limit=1",
    "/samples/miner/nobody",
    "/samples/validator/%2e%2e",
]
STATUSES = {
    f"/tasks/{TASK}/miner/nobody": 400,
    f"/tasks/999/miner/{hotkey('old')}": 404,
    "/samples/miner/nobody": 400,
    "/samples/validator/%2e%2e": 400,
}


@pytest.fixture(scope="module")
def judged(server):
    for name in ("big", "middle"):
        for miner in ("old", "young"):
            body = sample_body(task_id=TASK, miner_hotkey=hotkey(miner))
            assert server.signed(name, "POST", "/samples", body).is_success
    return server


def told(answer: httpx.Response):
    # A request has a name of its own.
    left_out = {"date", "x-request-id"}
    headers = {name: value for name, value in answer.headers.items() if name not in left_out}
    return answer.status_code, headers, answer.content


def odd(path):
    return f"{path}{'&' if '?' in path else '?'}{ODD}"


@pytest.fixture
def ways(monkeypatch):
    """Which requests take the short way."""
    taken = []
    found = direct._found

    def noted(scope):
        result = found(scope)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(direct, "_found", noted)
    return taken


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", OPEN)
def test_both_ways_say_the_same(judged, ways, path, method):
    short = judged.http.request(method, path, headers={"Origin": "https://example.org"})
    long = judged.http.request(method, odd(path), headers={"Origin": "https://example.org"})
    assert ways == [True, False]
    assert told(short) == told(long)
    assert short.status_code == STATUSES.get(path, 200)


@pytest.mark.parametrize("name", ["big", "nobody"])
@pytest.mark.parametrize("path", SIGNED)
def test_both_ways_say_the_same_to_who_signs(judged, ways, path, name):
    answers = [judged.signed(name, "GET", one) for one in (path, odd(path))]
    assert ways == [True, False]
    assert told(answers[0]) == told(answers[1])
    expected = 401 if name == "nobody" else STATUSES.get(path, 200)
    assert answers[0].status_code == expected
    unsigned = [judged.get(one) for one in (path, odd(path))]
    assert told(unsigned[0]) == told(unsigned[1])
    assert unsigned[0].status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/samples/list?limit=0", 422),
        ("/samples/list?limit=501", 422),
        ("/samples/list?limit=1&limit=2", 200),
        ("/samples/list?limit=%31", 200),
        ("/samples/list/", 404),
        ("/tasks/-1/miner/x", 400),
        (f"/tasks/{2**63}/miner/{hotkey('old')}", 400),
        (f"/tasks/{TASK}/miner/{hotkey('old')}/", 404),
    ],
)
def test_what_is_odd_takes_the_long_way(judged, ways, path, status):
    assert judged.get(path).status_code == status
    assert ways == [False]


def test_a_write_takes_the_short_way_alone(judged, ways):
    body = sample_body(task_id=TASK, miner_hotkey=hotkey("old"))
    assert judged.signed("big", "POST", "/samples", body).is_success
    assert judged.signed("big", "POST", "/samples/batch", {"samples": [body]}).is_success
    assert judged.signed("big", "POST", "/samples", {}).status_code == 422
    assert judged.http.post("/samples/batch").status_code == 401
    assert judged.http.put("/samples").status_code == 405
    assert ways == [True, True, True, True, False]


def test_what_nobody_expects_is_a_500_and_told_once(judged, caplog, monkeypatch):
    monkeypatch.setattr(History, "as_json", lambda *_: 1 / 0)
    url = f"http://127.0.0.1:{judged.port}/samples/list"
    failed = httpx.get(url, trust_env=False)
    assert (failed.status_code, failed.json()) == (500, {"detail": "Internal Server Error"})
    (record,) = [one for one in caplog.records if one.exc_info]
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert record.request_id == failed.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/samples/list", 200),
        (f"/tasks/{TASK}/miner/{hotkey('old')}", 503),
        (f"/tasks/{TASK}/miner/nobody", 400),
    ],
)
def test_both_ways_say_the_same_before_the_first_generation(warehouse_settings, path, status):
    with Server(API_SETTINGS, warehouse_settings) as server:
        short, long = server.get(path), server.get(odd(path))
    assert told(short) == told(long)
    assert short.status_code == status


def test_what_waits_to_be_rendered_holds_up_nothing_else(warehouse_settings, monkeypatch):
    publish_subnet(warehouse_settings)
    rendering, go_on = threading.Event(), threading.Event()
    render = Snapshot.render

    def slow(snapshot, question, miner):
        if miner != hotkey("old"):
            rendering.set()
            assert go_on.wait(30)
        return render(snapshot, question, miner)

    monkeypatch.setattr(Snapshot, "render", slow)
    with Server(API_SETTINGS, warehouse_settings) as server:
        kept = f"/miners/{hotkey('old')}/tasks"
        assert server.get(kept).status_code == 200

        def ask(name):
            url = f"http://127.0.0.1:{server.port}/miners/{hotkey(name)}/tasks"
            assert httpx.get(url, trust_env=False, timeout=60).status_code == 200

        asking = [threading.Thread(target=ask, args=(f"m{number}",)) for number in range(5)]
        for one in asking:
            one.start()
        assert rendering.wait(30)
        for path in (kept, "/health", "/health/ready", "/blacklist", "/tasks/latest"):
            assert server.get(path).status_code in {200, 404}
        assert server.get("/samples/list").json() == []
        go_on.set()
        for one in asking:
            one.join()


def test_as_many_read_the_log_as_are_set_and_the_tables_are_read_meanwhile(
    warehouse_settings, monkeypatch
):
    publish_subnet(warehouse_settings)
    settings = API_SETTINGS.model_copy(update={"log_read_threads": 2})
    reading, most, lock = 0, 0, threading.Lock()
    two, go_on = threading.Event(), threading.Event()

    def slow(_history, _limit):
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
            if reading == 2:
                two.set()
        assert go_on.wait(30)
        with lock:
            reading -= 1
        return b"[]"

    monkeypatch.setattr(History, "as_json", slow)
    with Server(settings, warehouse_settings) as server:

        def ask():
            answer = httpx.get(f"http://127.0.0.1:{server.port}/samples/list", trust_env=False)
            assert answer.json() == []

        asking = [threading.Thread(target=ask) for _ in range(5)]
        for one in asking:
            one.start()
        assert two.wait(30)
        # Neither the tables nor what was rendered waits for them.
        for path in ("/weights", f"/tasks?miner_hotkey={hotkey('old')}", "/health/ready"):
            assert server.get(path).status_code == 200
        go_on.set()
        for one in asking:
            one.join()
    assert most == 2
