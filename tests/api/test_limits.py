"""What one client, and all together, may have of a worker; and that others do not suffer."""

import asyncio
import contextlib
import json
import socket
import time

import httpx
import pytest

from api.limits import Bounds, Deadlines
from api.settings import ApiSettings
from tests.builders import hotkey, sample_body, signed_headers
from warehouse.files import locked
from warehouse.sqlite_schema import lock_path

SLOW = 1e-3
SECONDS_MAX = 30


def statuses(server, count, path="/health/live", **kwargs):
    return [server.get(path, **kwargs).status_code for _ in range(count)]


LIMITED = {"rate_per_address": SLOW, "rate_per_address_burst": 3, "trusted_proxies": ()}


@pytest.mark.parametrize("path", ["/health/live", "/weights", "/no-such-route"])
def test_an_address_has_a_rate_whatever_it_asks_for(serving, path):
    server = serving(**LIMITED)
    status = 404 if "no-such" in path else 200
    assert statuses(server, 5, path) == [status] * 3 + [429] * 2
    refused = server.get(path, headers={"Origin": "https://dashboard.example"})
    assert 990 < int(refused.headers["Retry-After"]) <= 1000
    assert "Retry-After" in refused.json()["detail"]
    assert refused.headers["Access-Control-Allow-Origin"] == "*"


def test_workers_count_together(serving):
    servers = [serving(**LIMITED), serving(**LIMITED)]
    assert [server.get("/weights").status_code for server in servers * 2] == [*[200] * 3, 429]


def test_only_a_trusted_proxy_says_who_its_client_is(serving):
    proxied = serving(**{**LIMITED, "trusted_proxies": ("127.0.0.1",)})
    # Its own requests have no limit; each of its clients has one, named by the last hop.
    assert statuses(proxied, 10) == [200] * 10
    for client in ("192.0.2.1", "192.0.2.2"):
        given = {"X-Forwarded-For": f"10.9.9.9, {client}"}
        assert statuses(proxied, 4, headers=given) == [200] * 3 + [429]
    direct = serving(**LIMITED)
    claims = [{"X-Forwarded-For": f"192.0.2.{number}"} for number in range(10, 15)]
    found = [direct.get("/weights", headers=claim).status_code for claim in claims]
    assert found == [*[200] * 3, *[429] * 2]


def test_no_rate_is_no_limit(serving):
    server = serving(**{**LIMITED, "rate_per_address": 0, "rate_per_hotkey": 0})
    assert statuses(server, 50) == [200] * 50


def test_a_hotkey_has_a_rate_that_nobody_else_can_use_up(serving):
    server = serving(rate_per_hotkey=SLOW, rate_per_hotkey_burst=3)
    path = "/miners/valid"
    # Not its own signature: refused, and not counted.
    for _ in range(10):
        headers = {**signed_headers("small", path=path), "X-Validator-Hotkey": hotkey("big")}
        assert server.get(path, headers=headers).status_code == 401
    found = [server.signed("big", "GET", path).status_code for _ in range(4)]
    assert found == [200, 200, 200, 429]
    assert server.signed("middle", "GET", path).status_code == 200


def test_what_was_refused_for_its_rate_is_good_later(serving):
    server = serving(rate_per_hotkey=SLOW, rate_per_hotkey_burst=1)
    assert server.signed("big", "GET", "/miners/valid").status_code == 200
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("big", body, method="POST", path="/samples", scheme=2)
    refused = server.http.post("/samples", content=body, headers=headers)
    assert refused.status_code == 429
    # On another machine, or after the wait: the signature was not used up.
    other = serving(rate_per_hotkey=0)
    assert other.http.post("/samples", content=body, headers=headers).status_code == 200
    assert len(other.get("/samples/list").json()) == 1


def head_of_post(name, body, length, **more):
    headers = signed_headers(name, body, method="POST", path="/samples", scheme=2) | more
    lines = [f"{key}: {value}" for key, value in headers.items()]
    return "\r\n".join(
        ["POST /samples HTTP/1.1", "Host: leoma", f"Content-Length: {length}", *lines, "", ""]
    ).encode()


@contextlib.contextmanager
def begun_post(server, name="big", sent=b"{", **headers):
    """A POST whose body does not come, in mid-request."""
    with socket.create_connection(("127.0.0.1", server.port), SECONDS_MAX) as connection:
        connection.sendall(head_of_post(name, b"", 1_000, **headers) + sent)
        yield connection


def answered(connection):
    """All that a connection answers until it is closed."""
    found = b""
    while content := connection.recv(65_536):
        found += content
    return found


def test_a_body_that_does_not_come_is_not_waited_for(serving):
    server = serving(request_seconds_max=0.3)
    with begun_post(server) as connection:
        found = answered(connection)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b'{"detail":"the request did not arrive within 0.3 seconds"}' in found
    assert server.get("/health/live").status_code == 200


def test_one_timer_ends_each_in_its_turn():
    ended = []

    async def run(deadlines, name, seconds):
        try:
            async with asyncio.timeout(None) as limit:
                deadlines.begin(limit)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    deadlines.end(limit)
            ended.append(f"{name} in time")
        except TimeoutError:
            assert limit.expired()
            ended.append(f"{name} too late")

    async def run_all():
        deadlines = Deadlines(0.2)
        tasks = [asyncio.create_task(run(deadlines, "first", SECONDS_MAX))]
        tasks.append(asyncio.create_task(run(deadlines, "brief", 0)))
        await asyncio.sleep(0.1)
        tasks.append(asyncio.create_task(run(deadlines, "second", SECONDS_MAX)))
        await tasks[0]
        assert not tasks[2].done()
        await tasks[2]
        # After a time without any.
        await asyncio.create_task(run(deadlines, "third", SECONDS_MAX))

    asyncio.run(run_all())
    assert ended == ["brief in time", "first too late", "second too late", "third too late"]


def test_a_commit_that_does_not_end_is_answered_and_may_be_repeated(serving, warehouse_settings):
    server, other = serving(request_seconds_max=0.3), serving()
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("big", body, method="POST", path="/samples", scheme=2)
    with locked(lock_path(warehouse_settings.log_path), SECONDS_MAX):
        answer = server.http.post("/samples", content=body, headers=headers)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "no answer within 0.3 seconds; try again"
    assert answer.headers["Retry-After"] == "2"
    # It may be stored by now or not; its repetition is stored once.
    first = other.http.post("/samples", content=body, headers=headers)
    second = other.http.post("/samples", content=body, headers=headers)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert [one["id"] for one in other.get("/samples/list").json()] == [first.json()["id"]]


def test_requests_under_way_are_bounded_and_what_is_rendered_goes_on(serving):
    server = serving(concurrent_requests_max=2)
    with begun_post(server, "big") as first, begun_post(server, "small"):
        until(lambda: server.get("/health/live").status_code == 503)
        refused = server.get("/health/live", headers={"Origin": "https://dashboard.example"})
        assert refused.json() == {"detail": "too many requests are under way; try again"}
        assert refused.headers["Retry-After"] == "2"
        assert refused.headers["Access-Control-Allow-Origin"] == "*"
        assert server.get("/weights").status_code == 200
        first.close()
        until(lambda: server.get("/health/live").status_code == 200)


def test_bodies_under_way_are_bounded_in_bytes(serving):
    server = serving(body_bytes_under_way_max=2_000)
    large = sample_body(prompt="x" * 3_000)
    refused = server.signed("big", "POST", "/samples", large)
    assert refused.status_code == 503
    assert refused.json() == {"detail": "too many bodies are under way; try again"}
    assert refused.headers["Retry-After"] == "2"
    # What was held is given back, whatever became of it.
    for task in range(20):
        assert server.signed("big", "POST", "/samples", sample_body(task_id=task)).is_success
    with begun_post(server, sent=b"x" * 999):
        with begun_post(server, sent=b"x" * 999):
            until(lambda: bounds_of(server).held.body_bytes == 2 * 999)
            assert server.signed("small", "POST", "/samples", sample_body()).status_code == 503
        until(lambda: bounds_of(server).held.body_bytes == 999)
        assert server.signed("small", "POST", "/samples", sample_body()).is_success


ONE, OTHER = ({"X-Forwarded-For": address} for address in ("192.0.2.1", "198.51.100.1"))


def test_one_address_cannot_take_all_requests_under_way(serving):
    server = serving(requests_per_address_max=2)
    with begun_post(server, "big", **ONE), begun_post(server, "small", **ONE):
        until(lambda: server.get("/health/live", headers=ONE).status_code == 503)
        refused = server.get("/health/live", headers=ONE).json()["detail"]
        assert refused == "too many requests of this address are under way; try again"
        assert server.get("/weights", headers=ONE).status_code == 200
        stored = server.signed("big", "POST", "/samples", sample_body(), headers=OTHER)
        assert stored.status_code == 200
    until(lambda: server.get("/health/live", headers=ONE).status_code == 200)
    # Nothing is kept of who has nothing under way.
    until(lambda: bounds_of(server)._held_by == {})


def test_one_address_cannot_fill_the_room_for_bodies(serving):
    server = serving(body_bytes_per_address_max=2_000)
    with (
        begun_post(server, sent=b"x" * 999, **ONE),
        begun_post(server, sent=b"x" * 999, **ONE),
    ):
        until(lambda: bounds_of(server).held.body_bytes == 2 * 999)
        post = ("small", "POST", "/samples", sample_body())
        assert server.signed(*post, headers=ONE).status_code == 503
        assert server.signed(*post, headers=OTHER).status_code == 200
    until(lambda: bounds_of(server).held.body_bytes == 0)
    assert server.signed("big", "POST", "/samples", sample_body(), headers=ONE).is_success


def test_writes_that_are_refused_for_now_cost_more(serving):
    server = serving(rate_per_hotkey=SLOW, rate_per_hotkey_burst=10, rate_refused_cost=5)
    ahead = int(time.time()) + 3_600

    def early(number):
        body = json.dumps(sample_body(task_id=number)).encode()
        headers = signed_headers(
            "big", body, method="POST", path="/samples", scheme=2, timestamp=str(ahead)
        )
        return server.http.post("/samples", content=body, headers=headers).status_code

    assert [early(number) for number in range(3)] == [401, 401, 429]
    # Of strangers nothing is remembered, and so nothing counted.
    assert server.signed("small", "GET", "/miners/valid").status_code == 200


def test_an_admins_read_that_is_remembered_counts(serving):
    server = serving(rate_per_hotkey=SLOW, rate_per_hotkey_burst=2)
    found = [server.signed("admin", "GET", "/health", scheme=1).status_code for _ in range(3)]
    assert found == [200, 200, 429]


def test_an_admins_read_is_bounded_as_well(serving):
    server = serving(body_bytes_under_way_max=2_000)
    answer = server.signed("admin", "GET", "/health", content=b"x" * 3_000, scheme=1)
    assert answer.status_code == 503


def bounds_of(server):
    """The layer that counts, to know when a request that is held back has been read."""
    layer = server._server.config.app
    while not isinstance(layer, Bounds):
        layer = layer._app
    return layer


def until(is_so):
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        with contextlib.suppress(httpx.TransportError):
            if is_so():
                return
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.01)


def test_a_network_of_proxies_may_be_trusted(serving):
    server = serving(**{**LIMITED, "trusted_proxies": ("127.0.0.0/8", "2001:db8::/32")})
    assert statuses(server, 10) == [200] * 10
    given = {"X-Forwarded-For": "192.0.2.1, 127.0.0.9"}
    assert statuses(server, 4, headers=given) == [200] * 3 + [429]


@pytest.mark.parametrize("address", ["proxy.example", "10.0.0.1/8", "*"])
def test_a_trusted_proxy_is_an_address(address):
    with pytest.raises(ValueError, match="TRUSTED_PROXIES"):
        ApiSettings(trusted_proxies=address)
