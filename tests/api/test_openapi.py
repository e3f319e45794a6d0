"""The OpenAPI document says what the routes do: shapes, errors, and who may call them."""

import json

import pytest
from pydantic import TypeAdapter

from api import models
from api.app import create_api
from tests.api.conftest import API_SETTINGS
from tests.builders import hotkey, sample_body

OLD, BIG = hotkey("old"), hotkey("big")
SIGNED = {
    ("get", "/miners/all"), ("get", "/miners/valid"), ("post", "/samples"),
    ("post", "/samples/batch"), ("get", "/samples/validator/{validator_hotkey}"),
    ("get", "/samples/miner/{miner_hotkey}"),
}  # fmt: skip
ADMIN = {("post", "/tasks"), ("post", "/blacklist"), ("delete", "/blacklist/{hotkey}")}
PUBLIC = {
    ("get", path)
    for path in (
        "/health", "/health/live", "/health/ready", "/time", "/miners/list", "/miners/uid/{uid}",
        "/miners/{miner_hotkey}", "/miners/info/{miner_hotkey}", "/miners/{miner_hotkey}/tasks",
        "/samples/list", "/samples/task", "/scores", "/scores/validators", "/scores/rank",
        "/scores/stats", "/scores/miner/{miner_hotkey}", "/scores/validator/{validator_hotkey}",
        "/tasks/latest", "/tasks", "/tasks/{task_id}", "/tasks/{task_id}/miner/{miner_hotkey}",
        "/weights", "/blacklist", "/blacklist/miners", "/blacklist/{hotkey}",
    )
}  # fmt: skip
BODIES = {
    ("post", "/samples"): "SampleSubmission",
    ("post", "/samples/batch"): "SampleBatch",
    ("post", "/tasks"): "TaskAnnouncement",
    ("post", "/blacklist"): "BlacklistAddition",
}


@pytest.fixture(scope="module")
def document(module_home):
    return create_api(API_SETTINGS, module_home).openapi()


@pytest.fixture(scope="module")
def operations(document):
    return {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_of_the_contract_is_there_and_no_other(operations):
    assert set(operations) == SIGNED | ADMIN | PUBLIC


def test_who_must_sign(document, operations):
    for key, operation in operations.items():
        if key in PUBLIC:
            assert "security" not in operation
            continue
        scheme_1, scheme_2 = operation["security"]
        assert set(scheme_1) == {"Hotkey", "Signature", "Timestamp"}
        assert set(scheme_2) == set(scheme_1) | {"SignatureVersion", "Nonce"}
    headers = {
        scheme["name"]: (scheme["type"], scheme["in"])
        for scheme in document["components"]["securitySchemes"].values()
    }
    names = ("Validator-Hotkey", "Signature", "Timestamp", "Signature-Version", "Nonce")
    assert headers == {f"X-{name}": ("apiKey", "header") for name in names}


def test_every_error_has_a_shape(operations):
    for key, operation in operations.items():
        statuses = set(operation["responses"])
        assert "200" in statuses
        if key in SIGNED | ADMIN:
            assert {"401", "413", "503"} <= statuses
        if key in ADMIN:
            assert {"403", "409"} <= statuses
        if "hotkey" in key[1]:
            assert "400" in statuses
        for status, response in operation["responses"].items():
            schema = response["content"]["application/json"]["schema"]
            if status == "422":
                assert schema["$ref"].endswith("/ValidationErrorResponse")
            elif status != "200":
                assert schema["$ref"].endswith("/ErrorResponse")


def test_answers_and_bodies_have_schemas(document, operations):
    schemas = document["components"]["schemas"]
    for key, operation in operations.items():
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert ("requestBody" in operation) is (key in BODIES)
    for key, name in BODIES.items():
        body = operations[key]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{name}"}
        assert name in schemas
    references = {
        part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]
    }
    assert references <= set(schemas)


def test_document_is_served(server, document):
    assert server.get("/openapi.json").json() == json.loads(json.dumps(document))
    assert server.get("/docs").status_code == 200


ANSWERS = [
    ("/health", models.HealthResponse),
    ("/health/live", models.StatusResponse),
    ("/health/ready", models.StatusResponse),
    ("/time", models.TimeResponse),
    ("/miners/list", models.MinersListResponse),
    ("/miners/all", models.MinersListResponse),
    ("/miners/valid", models.MinersListResponse),
    ("/miners/uid/7", models.MinerResponse),
    (f"/miners/{OLD}", models.MinerResponse),
    (f"/miners/info/{OLD}", models.MinerResponse),
    (f"/miners/{OLD}/tasks", list[models.MinerTaskEntry]),
    ("/samples/list", list[models.SampleResponse]),
    (f"/samples/task?validator_hotkey={BIG}&task_id=1", list[models.SampleResponse]),
    (f"/samples/validator/{BIG}", list[models.SampleResponse]),
    (f"/samples/miner/{OLD}", list[models.SampleResponse]),
    ("/scores", models.AggregatedScoreResponse),
    ("/scores/validators", list[models.ValidatorSummaryResponse]),
    ("/scores/rank", models.RankResponse),
    ("/scores/stats", models.ScoreStatsResponse),
    (f"/scores/miner/{OLD}", models.MinerScoresResponse),
    (f"/scores/validator/{BIG}", models.ValidatorScoresResponse),
    ("/tasks/latest", models.LatestTaskResponse),
    (f"/tasks?miner_hotkey={OLD}", list[models.MinerTaskEntry]),
    ("/tasks/1", models.TaskDetailResponse),
    (f"/tasks/1/miner/{OLD}", models.TaskMinerDetailResponse),
    ("/weights", models.WeightsResponse),
    ("/blacklist", list[models.BlacklistEntryResponse]),
    ("/blacklist/miners", list[str]),
    (f"/blacklist/{hotkey('young')}", models.BlacklistEntryResponse),
]


@pytest.fixture(scope="module")
def filled(server):
    sample = sample_body(miner_hotkey=OLD, generated_artifacts='{"overall_score": 5}')
    assert server.signed("big", "POST", "/samples", sample).status_code == 200
    body = {"hotkey": hotkey("young"), "reason": "a copy"}
    assert server.signed("admin", "POST", "/blacklist", body).status_code == 200
    return server


@pytest.mark.parametrize(("path", "shape"), ANSWERS, ids=[path for path, _ in ANSWERS])
def test_answer_has_the_documented_shape(filled, path, shape):
    response = filled.signed("big", "GET", path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    answer = TypeAdapter(shape).validate_json(response.content, strict=True)
    assert answer not in ([], {})
    assert_instants(response.json())


def assert_instants(value):
    """Every instant is UTC with milliseconds and Z."""
    if isinstance(value, dict):
        for name, field in value.items():
            instants = {
                "evaluated_at", "updated", "updated_at", "created_at", "computed_at",
                "valid_until", "last_sync", "last_updated", "last_validated_at",
            }  # fmt: skip
            if name in instants and field is not None:
                assert len(field) == 24, field
                assert field[19] == "."
                assert field[-1] == "Z"
            assert_instants(field)
    elif isinstance(value, list):
        for item in value:
            assert_instants(item)
