"""What is counted and told of requests: by route and never by what anybody makes up; no secrets."""

import json
import logging
import time

import httpx
import pytest

from api.metrics import Metrics
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, sample_body, signed_headers
from tests.warehouse.builders import request
from warehouse.sqlite_log import SqliteLog

SECONDS_MAX = 30


@pytest.fixture
def server(warehouse_settings, monkeypatch):
    made = []

    class Noted(Metrics):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr("api.app.Metrics", Noted)
    publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        (running.metrics,) = made
        yield running


def settled(look, expected):
    """Wait for what is expected, at most: a request is counted after its answer is sent."""
    deadline = time.monotonic() + SECONDS_MAX
    while look() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert look() == expected


def counts(server, name):
    """The samples of a metric by its labels, those that are not zero."""
    return {
        tuple(one.labels.values()): one.value
        for metric in server.metrics.registry.collect()
        for one in metric.samples
        if one.name == name and one.value
    }


def test_requests_are_counted_by_route_method_and_status(server):
    for _ in range(3):
        server.get("/weights")
    etag = server.get("/weights").headers["ETag"]
    server.get("/weights", headers={"If-None-Match": etag})
    server.get("/tasks/7")
    server.get(f"/miners/{hotkey('old')}")
    server.signed("big", "POST", "/samples", sample_body())
    server.http.post("/samples", content=b"")
    settled(
        lambda: counts(server, "leoma_http_request_seconds_count"),
        {
            ("/weights", "GET", "200"): 4,
            ("/weights", "GET", "304"): 1,
            ("/tasks/{task_id}", "GET", "404"): 1,
            ("/miners/{miner_hotkey}", "GET", "200"): 1,
            ("/samples", "POST", "200"): 1,
            ("/samples", "POST", "401"): 1,
        },
    )


def test_nobody_can_make_labels_up(server):
    for number in range(20):
        server.get(f"/made-up/{number}")
        server.get(f"/tasks/{number}")
        server.http.request("HEAD", f"/tasks/{number}")
        server.http.request("HEAD", f"/made-up/{number}")
        server.http.request("PURGE", "/weights")  # one that the parser knows
        server.http.options(f"/made-up/{number}")
    settled(lambda: sum(counts(server, "leoma_http_request_seconds_count").values()), 120)
    found = counts(server, "leoma_http_request_seconds_count")
    assert {route for route, _, _ in found} <= {"/tasks/{task_id}", "/weights", "other"}
    assert {method for _, method, _ in found} <= {"GET", "HEAD", "OPTIONS", "other"}


def test_samples_and_commits_are_counted_once(server):
    body = json.dumps({"samples": [sample_body(task_id=task) for task in range(3)]}).encode()
    headers = signed_headers("big", body, method="POST", path="/samples/batch", scheme=2)
    for _ in range(2):
        assert server.http.post("/samples/batch", content=body, headers=headers).is_success
    settled(lambda: counts(server, "leoma_samples_stored_total"), {(): 3})
    settled(lambda: counts(server, "leoma_log_commit_submissions_count"), {(): 2})


def test_refusals_are_counted_by_reason(server):
    path = "/miners/valid"
    good = signed_headers("big", path=path)
    server.get(path)
    server.get(path, headers={**good, "X-Signature": "x"})
    server.get(path, headers={**good, "X-Timestamp": "1"})
    server.get(path, headers=signed_headers("nobody", path=path))
    server.get(path, headers={**good, "X-Signature": "00" * 64})
    server.signed("admin", "POST", "/blacklist", {"hotkey": hotkey("small")})
    server.signed("small", "GET", path)
    settled(
        lambda: counts(server, "leoma_auth_failures_total"),
        {
            ("missing",): 1,
            ("malformed",): 1,
            ("stale",): 1,
            ("unregistered",): 1,
            ("signature",): 1,
            ("blacklisted",): 1,
        },
    )


def test_a_refusal_by_the_commit_is_counted_once(server):
    assert server.signed("small", "POST", "/samples", sample_body()).is_success
    log = SqliteLog(server.warehouse_settings)
    log.add_to_blacklist(request("admin"), hotkey("small"), None).result(30)
    log.close()
    assert server.signed("small", "POST", "/samples", sample_body()).status_code == 401
    settled(lambda: counts(server, "leoma_auth_failures_total"), {("blacklisted",): 1})


def test_a_refusal_names_its_request_and_a_traceback_does_too(server, caplog, monkeypatch):
    refused = server.get("/tasks/7", headers={"X-Request-ID": "proxy-12345678"})
    assert refused.headers["X-Request-ID"] == "proxy-12345678"
    assert len(server.get("/tasks/7").headers["X-Request-ID"]) == 32
    assert "X-Request-ID" not in server.get("/weights").headers
    monkeypatch.setattr("api.routes.tasks.verdict", lambda *_: 1 / 0)
    server.signed("big", "POST", "/samples", sample_body(task_id=7))
    failed = httpx.get(f"http://127.0.0.1:{server.port}/tasks/7", trust_env=False)
    assert failed.status_code == 500
    (record,) = [one for one in caplog.records if one.name == "api.errors"]
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert record.request_id == failed.headers["X-Request-ID"]


def test_admins_acts_are_told_and_nothing_that_must_not_be(server, caplog):
    with caplog.at_level(logging.INFO, "api.requests"):
        headers = {"X-Request-ID": "proxy-12345678"}
        body = {"hotkey": hotkey("small"), "reason": "a secret of ours"}
        server.signed("admin", "POST", "/blacklist", body, headers=headers)
        server.signed("big", "POST", "/samples", sample_body(prompt="a secret of theirs"))
        server.http.post("/tasks", content=b"{}")
        server.get("/weights?token=hidden")
        settled(lambda: sum(counts(server, "leoma_http_request_seconds_count").values()), 4)
    (record,) = [one for one in caplog.records if one.name == "api.requests"]
    told = {name: getattr(record, name) for name in ("request_id", "method", "route", "status")}
    assert told == {
        "request_id": "proxy-12345678", "method": "POST", "route": "/blacklist", "status": 200,
    }  # fmt: skip
    assert record.hotkey == hotkey("admin")
    caplog.clear()

    def told_lines():
        return [vars(one) for one in caplog.records if one.name == "api.requests"]

    with caplog.at_level(logging.DEBUG, "api.requests"):
        headers = {"X-Request-ID": "x\x01" * 40}
        server.signed("big", "POST", "/samples", sample_body(prompt="a secret of theirs"))
        server.get("/scores?token=hidden", headers={"X-Request-ID": "not ours: {}"})
        settled(lambda: [line["route"] for line in told_lines()], ["/samples", "/scores"])
    lines = told_lines()
    assert "hidden" not in str(lines)
    assert "secret" not in str(lines)
    assert all(len(line["request_id"]) == 32 for line in lines)
