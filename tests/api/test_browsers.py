"""Headers that browsers obey: on every answer, refusals too."""

import pytest

from tests.api.conftest import API_SETTINGS
from tests.api.servers import Server

DATA = "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/weights", 200),
        ("HEAD", "/weights", 200),
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("POST", "/samples", 401),
        ("GET", "/samples/list?limit=0", 422),
        ("OPTIONS", "/weights", 405),
        ("GET", "/openapi.json", 200),
    ],
)
def test_nothing_is_more_than_data(server, method, path, status):
    answer = server.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers.get_list("Content-Security-Policy") == [DATA]
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_an_answer_that_is_used_again_gets_them_once(server):
    for _ in range(3):
        answer = server.get("/weights")
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]
    known = server.get("/weights", headers={"If-None-Match": answer.headers["ETag"]})
    assert known.status_code == 304
    assert known.headers.get_list("X-Content-Type-Options") == ["nosniff"]


def test_the_document_may_load_its_scripts_and_nothing_may_frame_it(server):
    answer = server.get("/docs")
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "https://cdn.jsdelivr.net" in policy
    assert "cdn.jsdelivr.net" in answer.text


def test_nobody_is_asked_for_credentials(server, module_home):
    origin = {"Origin": "https://evil.example"}
    open_to_all = server.get("/health", headers=origin).headers
    assert open_to_all["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in open_to_all
    named = API_SETTINGS.model_copy(update={"cors_origins": ("https://dashboard.example",)})
    with Server(named, module_home) as other:
        for path in ("/health", "/weights"):
            assert "Access-Control-Allow-Origin" not in other.get(path, headers=origin).headers
            own = other.get(path, headers={"Origin": "https://dashboard.example"}).headers
            assert own["Access-Control-Allow-Origin"] == "https://dashboard.example"
            assert "Access-Control-Allow-Credentials" not in own


@pytest.mark.parametrize("path", ["/health", "/samples/list", "/nothing"])
def test_a_cache_is_told_that_the_origin_matters(server, path):
    without = server.get(path).headers
    assert without.get_list("Vary") == ["Origin"]
    assert "Access-Control-Allow-Origin" not in without
    assert server.get(path, headers={"Origin": "https://a.example"}).headers["Vary"] == "Origin"
