"""The blacklist, and what an admin's signature is good for."""

import json
import socket
import time

import pytest

from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, sample_body, signed_headers
from warehouse.hotkeys import ZERO_HOTKEY

OLD, YOUNG, ADMIN = hotkey("old"), hotkey("young"), hotkey("admin")
SETTINGS = API_SETTINGS.model_copy(update={"admin_hotkeys": frozenset({ADMIN, hotkey("deputy")})})


@pytest.fixture
def fresh(warehouse_settings):
    """A server on a home of its own, with two admins."""
    publish_subnet(warehouse_settings)
    with Server(SETTINGS, warehouse_settings) as running:
        yield running


def add(server, target, name="admin", **fields):
    return server.signed(name, "POST", "/blacklist", {"hotkey": target, **fields})


def test_entry_is_answered_listed_and_removed(fresh):
    entry = add(fresh, OLD, reason="copied a model").json()
    assert entry == {
        "hotkey": OLD,
        "reason": "copied a model",
        "added_by": ADMIN,
        "created_at": entry["created_at"],
    }
    assert entry["created_at"].endswith("Z")
    assert fresh.get("/blacklist").json() == [entry]
    assert fresh.get("/blacklist/miners").json() == [OLD]
    assert fresh.get(f"/blacklist/{OLD}").json() == entry
    removed = fresh.signed("deputy", "DELETE", f"/blacklist/{OLD}")
    assert removed.json() == {
        "success": True,
        "message": f"{OLD} is no longer on the blacklist",
        "removed_by": hotkey("deputy"),
    }
    assert fresh.get("/blacklist").json() == []
    assert fresh.get(f"/blacklist/{OLD}").status_code == 404


def test_adding_again_updates_the_reason(fresh):
    first = add(fresh, OLD).json()
    assert first["reason"] is None
    again = add(fresh, OLD, name="deputy", reason="now we know").json()
    assert again == {**first, "reason": "now we know"}


def test_removing_what_is_not_there_is_404(fresh):
    assert fresh.signed("admin", "DELETE", f"/blacklist/{YOUNG}").status_code == 404


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["body", "hotkey"]),
        ({"hotkey": "x"}, ["body", "hotkey"]),
        ({"hotkey": ZERO_HOTKEY}, ["body", "hotkey"]),
        ({"hotkey": OLD, "reason": "x" * 256}, ["body", "reason"]),
        ({"hotkey": OLD, "reason": "\0"}, ["body", "reason"]),
        ({"hotkey": OLD, "reason": 5}, ["body", "reason"]),
        ([], ["body"]),
    ],
)
def test_addition_outside_the_schema(server, body, loc):
    response = server.signed("admin", "POST", "/blacklist", body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == loc


def test_unsigned_writes(server):
    assert server.http.post("/blacklist", json={"hotkey": OLD}).status_code == 401
    assert server.http.delete(f"/blacklist/{OLD}").status_code == 401


# Scheme 1 binds neither method nor path: what one signature could be used for.


def delete(server, headers, target=OLD):
    return server.http.delete(f"/blacklist/{target}", headers=headers)


def test_signature_of_a_delete_is_good_for_one(fresh):
    add(fresh, OLD)
    add(fresh, YOUNG)
    headers = signed_headers("admin")
    assert delete(fresh, headers).status_code == 200
    assert delete(fresh, headers).status_code == 409
    assert delete(fresh, headers, YOUNG).status_code == 409
    assert fresh.get("/blacklist/miners").json() == [YOUNG]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/weights"),
        ("GET", "/weights?at=x"),
        ("GET", "/samples/list"),
        ("GET", "/miners/valid"),
        ("GET", "/miners/x"),
        ("GET", "/nothing"),
        ("HEAD", "/weights"),
        ("HEAD", "/health"),
        ("PUT", "/weights"),
        ("OPTIONS", "/weights"),
        ("POST", "/nothing"),
        ("POST", "/samples"),
        ("POST", "/samples/batch"),
        ("DELETE", "/blacklist"),
        ("DELETE", "/blacklist/"),
        ("DELETE", "/nothing"),
    ],
)
def test_signature_seen_on_a_read_is_never_accepted_for_a_write(fresh, method, path):
    add(fresh, OLD)
    headers = signed_headers("admin")
    assert fresh.http.request(method, path, headers=headers).status_code < 500
    assert delete(fresh, headers).status_code == 409
    assert fresh.get("/blacklist/miners").json() == [OLD]


def test_signature_seen_on_a_read_is_remembered_by_all_and_over_a_restart(warehouse_settings):
    publish_subnet(warehouse_settings)
    headers = signed_headers("admin")
    with (
        Server(SETTINGS, warehouse_settings) as one,
        Server(SETTINGS, warehouse_settings) as other,
    ):
        add(one, OLD)
        one.get("/weights", headers=headers)
        assert delete(other, headers).status_code == 409
    with Server(SETTINGS, warehouse_settings) as restarted:
        assert delete(restarted, headers).status_code == 409
        assert restarted.get("/blacklist/miners").json() == [OLD]


def test_signature_from_an_admins_fast_clock_is_remembered_too(fresh):
    """It is no good yet, but would be by the time that somebody replays it."""
    add(fresh, OLD)
    headers = signed_headers("admin", timestamp=str(int(time.time()) + 302))
    assert fresh.get("/miners/valid", headers=headers).status_code == 401
    while (answer := delete(fresh, headers)).status_code == 401:
        time.sleep(0.2)
    assert answer.status_code == 409


def test_signature_of_a_read_with_a_body_does_not_do_for_a_write_with_it(fresh):
    body = json.dumps({"hotkey": OLD}).encode()
    headers = signed_headers("admin", body)
    assert fresh.http.request("GET", "/weights", content=body, headers=headers).status_code == 200
    answer = fresh.http.post("/blacklist", content=body, headers=headers)
    assert answer.status_code == 409
    assert fresh.get("/blacklist").json() == []


def test_signature_of_a_refused_write_is_used_up(fresh):
    add(fresh, OLD)
    for method, path in (
        ("DELETE", f"/blacklist/{YOUNG}"),  # 404
        ("DELETE", "/blacklist/x"),  # 400
        ("POST", "/tasks"),  # 422
        ("POST", "/blacklist"),  # 422
    ):
        headers = signed_headers("admin")
        assert fresh.http.request(method, path, headers=headers).status_code in (400, 404, 422)
        assert delete(fresh, headers).status_code == 409
    assert fresh.get("/blacklist/miners").json() == [OLD]


def test_reads_of_others_are_not_remembered(fresh):
    """A validator's read with a body may not use up the signature of its sample."""
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("big", body)
    assert fresh.http.request("GET", "/weights", content=body, headers=headers).status_code == 200
    assert fresh.http.post("/samples", content=body, headers=headers).status_code == 200


def test_forged_reads_use_nothing_up(fresh):
    add(fresh, OLD)
    headers = signed_headers("admin")
    forged = {**headers, "X-Timestamp": str(int(headers["X-Timestamp"]) - 1)}
    assert fresh.get("/weights", headers=forged).status_code == 200
    assert delete(fresh, headers).status_code == 200


def test_scheme_2_signature_of_a_read_does_for_nothing_else(fresh):
    add(fresh, OLD)
    headers = signed_headers("admin", method="GET", path="/weights", scheme=2)
    assert fresh.get("/weights", headers=headers).status_code == 200
    assert delete(fresh, headers).status_code == 401


def test_read_of_an_admin_with_an_enormous_body(fresh):
    headers = signed_headers("admin")
    content = b"x" * (2 * 2**20 + 1)
    answer = fresh.http.request("GET", "/weights", content=content, headers=headers)
    assert answer.status_code == 413


def test_head_signed_with_scheme_2_is_signed_as_head(fresh):
    for method, status in (("HEAD", 200), ("GET", 401)):
        headers = signed_headers("big", method=method, path="/miners/valid", scheme=2)
        assert fresh.http.head("/miners/valid", headers=headers).status_code == status


def test_admin_that_leaves_in_the_middle_of_a_reads_body_is_no_error(fresh, caplog):
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed_headers("admin").items())
    head = f"GET /weights HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n{lines}\r\nx"
    with socket.create_connection(("127.0.0.1", fresh.port), timeout=10) as connection:
        connection.sendall(head.encode())
        time.sleep(0.1)
    time.sleep(0.1)
    assert fresh.get("/weights").status_code == 200
    assert caplog.records == []
