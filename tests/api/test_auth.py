"""Authentication over real HTTP: each check, in its order, and each trap of the signing library."""

import json
import re
import socket
import time

import apsw
import pytest

from api.settings import ApiSettings
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, keypair, sample_body, signed_headers
from warehouse.hotkeys import ZERO_HOTKEY
from warehouse.settings import WarehouseSettings

PATH = "/miners/valid"  # a validator route without a body


def detail_of(server, headers, path=PATH):
    response = server.get(path, headers=headers)
    assert response.status_code == 401, response.text
    return response.json()["detail"]


@pytest.mark.parametrize("scheme", [1, 2])
def test_registered_validator_is_let_in(server, scheme):
    assert server.signed("big", "GET", PATH, scheme=scheme).status_code == 200


def test_admin_may_use_validator_routes(server):
    assert server.signed("admin", "GET", PATH).status_code == 200


@pytest.mark.parametrize("name", ["X-Validator-Hotkey", "X-Signature", "X-Timestamp"])
@pytest.mark.parametrize("is_empty", [False, True])
def test_missing_header_is_named(server, name, is_empty):
    headers = signed_headers("big")
    del headers[name]
    if is_empty:
        headers[name] = ""
    assert detail_of(server, headers) == f"Missing header: {name}"


MALFORMED_HOTKEYS = {
    "zero key": ZERO_HOTKEY,
    "other network": "12bzRJfh7arnnfPPUZHeJUaE62QLEwhK48QnH9LXeK2m1iZU",
    "hex": "0x" + keypair("big").public_key.hex(),
    "hex without 0x": keypair("big").public_key.hex(),
    "bad checksum": hotkey("big")[:-1] + ("1" if hotkey("big")[-1] != "1" else "2"),
    "account index": "F7Hs",
    "too long": hotkey("big") * 2,
    "word": "hotkey",
}


@pytest.mark.parametrize("text", MALFORMED_HOTKEYS.values(), ids=MALFORMED_HOTKEYS)
def test_malformed_hotkey(server, text):
    headers = {**signed_headers("big"), "X-Validator-Hotkey": text}
    detail = detail_of(server, headers)
    assert "X-Validator-Hotkey" in detail


def test_zero_key_with_its_universal_signature(server):
    headers = {
        "X-Validator-Hotkey": ZERO_HOTKEY,
        "X-Signature": "00" * 63 + "80",
        "X-Timestamp": str(int(time.time())),
    }
    assert detail_of(server, headers) == "X-Validator-Hotkey: Invalid SS58 address format"


def test_enormous_hotkey_is_refused_by_its_length(server):
    headers = {**signed_headers("big"), "X-Validator-Hotkey": "5" * 15_000}
    assert detail_of(server, headers) == "X-Validator-Hotkey is malformed"


@pytest.mark.parametrize(
    "signature",
    ["00", "zz" * 64, "0x" + "0" * 127, "ab" * 63 + " a", "ab" * 65, "é" * 64, "0x0x" + "ab" * 63],
)
def test_malformed_signature(server, signature):
    headers = {**signed_headers("big"), "X-Signature": signature.encode()}
    assert "X-Signature" in detail_of(server, headers)


@pytest.mark.parametrize("timestamp", ["now", "1e9", "-1", "1.5", "+1", "9" * 16, "0x10", "١٢٣"])
def test_malformed_timestamp(server, timestamp):
    headers = {**signed_headers("big"), "X-Timestamp": timestamp.encode()}
    assert "X-Timestamp" in detail_of(server, headers)


@pytest.mark.parametrize(
    "name", ["X-Validator-Hotkey", "X-Signature", "X-Timestamp", "X-Signature-Version", "X-Nonce"]
)
def test_header_given_twice(server, name):
    headers = signed_headers("big", method="GET", path=PATH, scheme=2)
    twice = [*headers.items(), (name, headers[name])]
    assert detail_of(server, twice) == f"{name} is given more than once"


@pytest.mark.parametrize("offset", [-400, 400])
def test_stale_timestamp_lets_a_client_correct_its_clock(server, offset):
    now = int(time.time())
    response = server.get(PATH, headers=signed_headers("big", timestamp=str(now + offset)))
    assert response.status_code == 401
    detail = response.json()["detail"]
    found = re.search(r"server time is (\d+), the difference is (-?\d+) seconds", detail)
    assert found, detail
    assert abs(int(found[1]) - now) <= 5
    assert abs(int(found[2]) - offset) <= 5
    assert response.headers["X-Server-Time"] == found[1]


@pytest.mark.parametrize("offset", [-280, 280])
def test_timestamp_may_be_off_by_five_minutes(server, offset):
    stamp = str(int(time.time()) + offset)
    assert server.signed("big", "GET", PATH, timestamp=stamp).status_code == 200


@pytest.mark.parametrize("name", ["poor", "stranger"])
def test_only_registered_validators(server, name):
    assert detail_of(server, signed_headers(name)) == "this hotkey is not a registered validator"


def test_stranger_on_an_admin_route_is_401_not_403(server):
    response = server.signed("stranger", "POST", "/tasks", {"task_id": 1})
    assert response.status_code == 401


def test_validator_on_an_admin_route_is_403(server):
    for method, path in (
        ("POST", "/tasks"),
        ("POST", "/blacklist"),
        ("DELETE", f"/blacklist/{hotkey('old')}"),
    ):
        assert server.signed("big", method, path, {}).status_code == 403


def test_invalid_signature_of_a_validator_on_an_admin_route_is_401(server):
    headers = {**signed_headers("big"), "X-Signature": "ab" * 64}
    assert server.http.post("/tasks", json={"task_id": 1}, headers=headers).status_code == 401


def test_signature_of_another_body_hotkey_or_time(server):
    body = json.dumps(sample_body()).encode()
    other_time = signed_headers("big", body, timestamp=str(int(time.time()) - 1))["X-Signature"]
    for headers in (
        signed_headers("big", b"{}"),
        {**signed_headers("small", body), "X-Validator-Hotkey": hotkey("big")},
        {**signed_headers("big", body), "X-Signature": other_time},
    ):
        response = server.http.post("/samples", content=body, headers=headers)
        assert (response.status_code, response.json()["detail"]) == (
            401,
            "X-Signature does not verify",
        )


def test_signature_with_0x_and_in_capitals(server):
    headers = signed_headers("big")
    for text in ("0x" + headers["X-Signature"], headers["X-Signature"].upper()):
        assert server.get(PATH, headers={**headers, "X-Signature": text}).status_code == 200


def test_signature_in_a_wallet_extensions_envelope(server):
    headers = signed_headers("big")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    message = f"<Bytes>{digest}:{headers['X-Timestamp']}</Bytes>".encode()
    headers["X-Signature"] = keypair("big").sign(message).hex()
    assert server.get(PATH, headers=headers).status_code == 200


@pytest.mark.parametrize("field", ["method", "path", "nonce"])
def test_scheme_2_binds(server, field):
    signed = {"method": "GET", "path": PATH}
    signed[field] = {"method": "POST", "path": "/miners/all", "nonce": "f" * 16}[field]
    headers = signed_headers("big", scheme=2, **signed)
    if field == "nonce":
        headers["X-Nonce"] = "0" * 16
    assert detail_of(server, headers) == "X-Signature does not verify"


def test_scheme_2_binds_the_query_as_sent(server):
    path = f"/samples/miner/{hotkey('old')}?limit=3&x=%41"
    headers = signed_headers("big", method="GET", path=path, scheme=2)
    assert server.get(path, headers=headers).status_code == 200
    assert server.get(path.replace("3", "4"), headers=headers).status_code == 401


def test_scheme_2_needs_a_nonce(server):
    headers = signed_headers("big", method="GET", path=PATH, scheme=2)
    without = {name: value for name, value in headers.items() if name != "X-Nonce"}
    assert detail_of(server, without) == "Missing header: X-Nonce"
    for nonce in ("short", "x" * 65, "a nonce with\ta tab in it"):
        assert "X-Nonce is not" in detail_of(server, {**headers, "X-Nonce": nonce})


def test_unknown_scheme(server):
    headers = {**signed_headers("big"), "X-Signature-Version": "3"}
    assert "X-Signature-Version" in detail_of(server, headers)


def test_version_1_may_be_said(server):
    headers = {**signed_headers("big"), "X-Signature-Version": "1"}
    assert server.get(PATH, headers=headers).status_code == 200


@pytest.mark.parametrize("required", ["admin", "all"])
def test_scheme_2_may_be_required(warehouse_settings, required):
    publish_subnet(warehouse_settings)
    settings = API_SETTINGS.model_copy(update={"require_signature_v2": required})
    with Server(settings, warehouse_settings) as strict:
        for scheme, admin_status in ((1, 401), (2, 200)):
            answer = strict.signed("admin", "POST", "/tasks", {"task_id": 1}, scheme=scheme)
            assert answer.status_code == admin_status
        statuses = [strict.signed("big", "GET", PATH, scheme=n).status_code for n in (1, 2)]
        assert statuses == [401 if required == "all" else 200, 200]


def test_blacklisting_takes_effect_at_once_on_every_worker(warehouse_settings):
    publish_subnet(warehouse_settings)
    with (
        Server(API_SETTINGS, warehouse_settings) as one,
        Server(API_SETTINGS, warehouse_settings) as other,
    ):
        assert other.signed("small", "GET", PATH).status_code == 200
        one.signed("admin", "POST", "/blacklist", {"hotkey": hotkey("small")})
        for worker in (one, other):
            response = worker.signed("small", "GET", PATH)
            assert (response.status_code, response.json()["detail"]) == (
                401,
                "this hotkey is blacklisted",
            )
        other.signed("admin", "DELETE", f"/blacklist/{hotkey('small')}")
        assert one.signed("small", "GET", PATH).status_code == 200


def test_a_submission_is_judged_by_what_another_worker_has_just_stored(warehouse_settings):
    publish_subnet(warehouse_settings)
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("small", body, method="POST", path="/samples", scheme=2)
    with (
        Server(API_SETTINGS, warehouse_settings) as one,
        Server(API_SETTINGS, warehouse_settings) as other,
    ):
        # From here it knows the blacklist as it was.
        assert other.signed("small", "POST", "/samples", sample_body()).status_code == 200
        one.signed("admin", "POST", "/blacklist", {"hotkey": hotkey("small")})
        refused = other.http.post("/samples", content=body, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["detail"] == "this hotkey is blacklisted"
        assert other.signed("small", "POST", "/samples", sample_body()).status_code == 401
        assert other.signed("big", "POST", "/samples", sample_body()).status_code == 200
        one.signed("admin", "DELETE", f"/blacklist/{hotkey('small')}")
        # The refusal has used it up: its sender may have changed its mind.
        assert other.http.post("/samples", content=body, headers=headers).status_code == 409
        assert other.signed("small", "POST", "/samples", sample_body()).status_code == 200
        # Of each validator the newest.
        assert len(one.get("/samples/list").json()) == 2


def test_a_refusal_by_the_commit_needs_no_credit(serving):
    """Or its signature would be good once its sender is off the blacklist."""
    rates = {"rate_per_hotkey": 0.001, "rate_per_hotkey_burst": 5, "rate_refused_cost": 5}
    one, other = serving(), serving(**rates)
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("small", body, method="POST", path="/samples", scheme=2)
    assert other.signed("big", "POST", "/samples", sample_body()).status_code == 200
    one.signed("admin", "POST", "/blacklist", {"hotkey": hotkey("small")})
    assert other.http.post("/samples", content=body, headers=headers).status_code == 401
    one.signed("admin", "DELETE", f"/blacklist/{hotkey('small')}")
    assert one.http.post("/samples", content=body, headers=headers).status_code == 409


def test_a_submission_is_stored_once_whatever_an_admin_does_meanwhile(warehouse_settings):
    publish_subnet(warehouse_settings)
    with (
        Server(API_SETTINGS, warehouse_settings) as one,
        Server(API_SETTINGS, warehouse_settings) as other,
    ):
        assert other.signed("small", "POST", "/samples", sample_body()).status_code == 200
        assert one.signed("admin", "POST", "/tasks", {"task_id": 9}).status_code == 200
        stored = other.signed("big", "POST", "/samples", sample_body())
        assert stored.status_code == 200
        # A task, and two submissions of a sample each: nothing else has taken a number.
        assert stored.json()["id"] == 6


def test_a_log_that_is_read_and_not_written_is_told(warehouse_settings):
    """It was replaced by a copy below a running worker, which its readers do not notice."""
    publish_subnet(warehouse_settings)
    path = warehouse_settings.log_path
    with Server(API_SETTINGS, warehouse_settings) as running:
        blacklist(running, "old")
        source = apsw.Connection(str(path))
        source.execute("VACUUM INTO ?", (str(path.with_name("copy")),))
        source.close()
        blacklist(running, "young")
        assert running.signed("big", "POST", "/samples", sample_body()).status_code == 200
        path.with_name("copy").replace(path)
        for name in ("-wal", "-shm"):
            path.with_name(path.name + name).unlink()
        statuses = [
            running.signed("big", "POST", "/samples", sample_body()).status_code for _ in range(3)
        ]
    assert statuses == [503] * 3


def test_authentication_comes_before_validation(server):
    headers = {**signed_headers("stranger", b"{"), "Content-Type": "application/json"}
    assert server.http.post("/samples", content=b"{", headers=headers).status_code == 401
    path = f"/samples/miner/{hotkey('old')}?limit=0"
    assert server.get(path).status_code == 401
    assert server.signed("big", "GET", path).status_code == 422


def test_before_the_first_generation_nobody_knows_who_is_registered(warehouse_settings):
    with Server(API_SETTINGS, warehouse_settings) as empty:
        response = empty.signed("big", "POST", "/samples", sample_body())
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert empty.signed("admin", "POST", "/tasks", {"task_id": 1}).status_code == 200


@pytest.fixture(scope="module")
def small_bodies(module_home):
    publish_subnet(module_home)
    with Server(API_SETTINGS.model_copy(update={"max_body_size": 3000}), module_home) as running:
        yield running


def test_body_of_the_greatest_size(small_bodies):
    body = json.dumps(sample_body()).encode()
    padded = body + b" " * (3000 - len(body))
    assert small_bodies.signed("big", "POST", "/samples", content=padded).status_code == 200
    assert small_bodies.signed("big", "POST", "/samples", content=padded + b" ").status_code == 413


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_body_is_counted_as_it_streams_in(small_bodies, method):
    path = {"GET": PATH, "DELETE": f"/blacklist/{hotkey('old')}", "POST": "/tasks"}[method]
    body = b"x" * 3001
    headers = signed_headers("admin", body, method=method, path=path, scheme=2)

    def chunks():
        yield body[:2000]
        yield body[2000:]

    response = small_bodies.http.request(method, path, content=chunks(), headers=headers)
    assert response.status_code == 413
    assert "3000" in response.json()["detail"]


def test_declared_length_above_the_limit_is_refused_before_the_body_comes(small_bodies):
    with socket.create_connection(("127.0.0.1", small_bodies.port), timeout=10) as connection:
        connection.sendall(
            b"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_client_that_leaves_in_the_middle_of_its_body_harms_nobody(server):
    headers = signed_headers("big", b"{}", method="POST", path="/samples", scheme=2)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n{lines}\r\n{{"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request.encode())
    assert server.signed("big", "GET", PATH).status_code == 200


def test_bad_admin_hotkey_stops_the_start(monkeypatch):
    monkeypatch.setenv("ADMIN_HOTKEYS", f"{hotkey('admin')}, nonsense")
    with pytest.raises(ValueError, match="ADMIN_HOTKEYS: 'nonsense' is not an SS58 address"):
        ApiSettings()


def test_settings_take_lists_by_comma(monkeypatch):
    monkeypatch.setenv("ADMIN_HOTKEYS", f"{hotkey('admin')}, {hotkey('other')}")
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example,https://b.example")
    settings = ApiSettings()
    assert settings.admin_hotkeys == {hotkey("admin"), hotkey("other")}
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    monkeypatch.setenv("CORS_ORIGINS", "*")
    assert ApiSettings().cors_origins == ()


def test_one_more_worker_on_the_same_home(module_home: WarehouseSettings, server):
    """The module's home serves two applications at once, as several workers of one machine."""
    with Server(API_SETTINGS, module_home) as other:
        assert other.signed("big", "GET", PATH).status_code == 200


def blacklist(server, name):
    answer = server.signed("admin", "POST", "/blacklist", {"hotkey": hotkey(name)})
    assert answer.status_code == 200


def answer_to_a_body_in_two_parts(server, between):
    """Send half a sample, call `between`, send the rest; return the status line."""
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("small", body, method="POST", path="/samples", scheme=2)
    lines = "".join(f"{header}: {value}\r\n" for header, value in headers.items())
    head = f"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + body[:10])
        # The answer of another request: by then this one has been let in.
        assert server.get("/time").status_code == 200
        time.sleep(0.1)
        between()
        connection.sendall(body[10:])
        return connection.recv(12)


def test_who_is_blacklisted_while_the_body_is_on_its_way_is_refused(warehouse_settings):
    publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        assert answer_to_a_body_in_two_parts(running, lambda: None) == b"HTTP/1.1 200"
        status = answer_to_a_body_in_two_parts(running, lambda: blacklist(running, "small"))
        assert status == b"HTTP/1.1 401"
        assert len(running.get("/samples/list").json()) == 1


def test_signature_that_expires_while_the_body_is_on_its_way_is_refused(warehouse_settings):
    publish_subnet(warehouse_settings)
    settings = API_SETTINGS.model_copy(update={"signature_expiry_seconds": 1})
    with Server(settings, warehouse_settings) as running:
        status = answer_to_a_body_in_two_parts(running, lambda: time.sleep(2.1))
        assert status == b"HTTP/1.1 401"
        assert running.get("/samples/list").json() == []
