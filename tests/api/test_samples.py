"""Samples over real HTTP: what is accepted, what is stored, what a repeated request gets."""

import json
import threading

import pytest
from pydantic import TypeAdapter

from api.models import SampleResponse
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, keypair, sample_body, signed_headers
from warehouse.evaluation import evaluation_entry, evaluation_payload
from warehouse.files import locked
from warehouse.sqlite_schema import lock_path

SAMPLES = TypeAdapter(list[SampleResponse])


@pytest.fixture
def fresh(warehouse_settings):
    """A server on a home of its own, for tests that count."""
    publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        yield running


def submit(server, name="big", **changes):
    response = server.signed(name, "POST", "/samples", sample_body(**changes))
    assert response.status_code == 200, response.text
    return response.json()


def problems(response):
    assert response.status_code == 422, response.text
    found = response.json()["detail"]
    assert all(set(problem) == {"type", "loc", "msg"} for problem in found)
    return {tuple(problem["loc"]) for problem in found}


def test_a_nul_is_refused_where_it_is_and_its_spelling_is_text(fresh):
    spelled, nul = r"\u0000", "a\0b"
    assert submit(fresh, prompt=spelled)["prompt"] == spelled
    assert submit(fresh, task_id=6, unknown_field=nul)["prompt"] == sample_body()["prompt"]
    one = sample_body(reasoning=nul, generated_artifacts="\0", prompt=spelled)
    refused = fresh.signed("big", "POST", "/samples", one)
    assert problems(refused) == {("body", "reasoning"), ("body", "generated_artifacts")}
    batch = {"samples": [sample_body(), sample_body(s3_bucket=nul)]}
    refused = fresh.signed("big", "POST", "/samples/batch", batch)
    assert problems(refused) == {("body", "samples", 1, "s3_bucket")}
    assert len(fresh.get("/samples/list").json()) == 2


def test_stored_sample_is_answered_and_listed_at_once(fresh):
    stored = submit(fresh, task_id=5, generated_artifacts="{}", unknown_field=1)
    SampleResponse.model_validate(stored)
    assert stored == {
        "id": stored["id"],
        "sample_id": "5",
        "validator_hotkey": hotkey("big"),
        "miner_hotkey": hotkey("miner"),
        "prompt": "A red kite over a grey sea",
        "s3_bucket": "samples",
        "s3_prefix": "1",
        "passed": True,
        "confidence": 80,
        "reasoning": "The kite moves as in the clip.",
        "evaluated_at": stored["evaluated_at"],
        "task_id": 5,
        "latency_ms": 1500,
    }
    assert stored["evaluated_at"].endswith("Z")
    assert len(stored["evaluated_at"]) == len("2026-11-22T10:00:00.123Z")
    lists = [
        fresh.get("/samples/list"),
        fresh.get(f"/samples/task?validator_hotkey={hotkey('big')}&task_id=5"),
        fresh.get(f"/samples/task?validator_hotkey={hotkey('big')}&sample_id=5"),
        fresh.signed("small", "GET", f"/samples/validator/{hotkey('big')}"),
        fresh.signed("small", "GET", f"/samples/miner/{hotkey('miner')}"),
    ]
    for response in lists:
        SAMPLES.validate_json(response.content)
        assert response.json() == [stored]


def test_optional_fields_may_be_left_out_or_null(fresh):
    for value in (..., None):
        stored = submit(fresh, confidence=value, reasoning=value, latency_ms=value)
        assert [stored[name] for name in ("confidence", "reasoning", "latency_ms")] == [None] * 3


def test_second_submission_is_a_new_version_and_lists_show_only_it(fresh):
    first, second = submit(fresh, passed=True), submit(fresh, passed=False)
    assert second["id"] > first["id"]
    assert fresh.get("/samples/list").json() == [second]


def test_batch_is_stored_in_order(fresh):
    miners = [hotkey(name) for name in ("a", "b", "c")]
    body = {"samples": [sample_body(miner_hotkey=miner) for miner in miners]}
    response = fresh.signed("big", "POST", "/samples/batch", body)
    stored = response.json()
    assert response.status_code == 200
    SAMPLES.validate_json(response.content)
    assert [sample["miner_hotkey"] for sample in stored] == miners
    assert [sample["id"] for sample in stored] == [stored[0]["id"] + n for n in range(3)]
    of_task = fresh.get(f"/samples/task?validator_hotkey={hotkey('big')}&task_id=1").json()
    assert of_task == sorted(stored, key=lambda sample: sample["miner_hotkey"])


def test_batch_of_one_hundred_and_not_one_more(fresh):
    samples = [sample_body(task_id=n) for n in range(101)]
    assert fresh.signed("big", "POST", "/samples/batch", {"samples": samples}).status_code == 400
    assert fresh.get("/samples/list").json() == []
    response = fresh.signed("big", "POST", "/samples/batch", {"samples": samples[:100]})
    assert len(response.json()) == 100


def test_batch_is_all_or_nothing(fresh):
    samples = [sample_body(task_id=1), sample_body(task_id=2, passed="yes")]
    response = fresh.signed("big", "POST", "/samples/batch", {"samples": samples})
    assert problems(response) == {("body", "samples", 1, "passed")}
    assert fresh.get("/samples/list").json() == []


@pytest.mark.parametrize("body", [{}, {"samples": []}, {"samples": {}}, [], None, "text", 1])
def test_batch_of_another_shape(server, body):
    problems(server.signed("big", "POST", "/samples/batch", body))


@pytest.mark.parametrize("name", ["sample_id", "task_id"])
def test_one_of_task_id_and_sample_id_is_required(server, name):
    given = {"task_id": ..., "sample_id": ..., name: {"task_id": 3, "sample_id": "x"}[name]}
    submit(server, **given)
    for neither in ({}, {"sample_id": ""}, {"sample_id": None, "task_id": None}):
        body = sample_body(task_id=...) | neither
        assert problems(server.signed("big", "POST", "/samples", body)) == {("body",)}


@pytest.mark.parametrize(
    ("given", "task_id", "sample_id"),
    [
        ({"sample_id": "17"}, 17, "17"),
        ({"sample_id": "017"}, 17, "017"),
        ({"sample_id": "17", "task_id": 18}, 18, "17"),
        ({"sample_id": "", "task_id": 18}, 18, "18"),
        ({"sample_id": "abc"}, None, "abc"),
        ({"sample_id": "\u0661\u0667"}, None, "\u0661\u0667"),
        ({"sample_id": "-17"}, None, "-17"),
        ({"sample_id": " 17"}, None, " 17"),
        ({"task_id": 2**63 - 1}, 2**63 - 1, str(2**63 - 1)),
        ({"task_id": 0}, 0, "0"),
    ],
)
def test_task_of_a_sample(server, given, task_id, sample_id):
    body = sample_body(task_id=...) | given
    stored = server.signed("middle", "POST", "/samples", body).json()
    assert (stored["task_id"], stored["sample_id"]) == (task_id, sample_id)
    query = {"validator_hotkey": hotkey("middle")}
    query |= {"task_id": task_id} if task_id is not None else {"sample_id": sample_id}
    assert server.get("/samples/task", params=query).json() == [stored]


BAD_FIELDS = [
    ("task_id", -1), ("task_id", 2**63), ("task_id", 10**30), ("task_id", "1"), ("task_id", True),
    ("task_id", 1.0), ("sample_id", "x" * 256), ("sample_id", "9" * 30), ("sample_id", 5),
    ("sample_id", "a\0b"), ("miner_hotkey", "5"), ("miner_hotkey", ...), ("miner_hotkey", None),
    ("miner_hotkey", "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"),
    ("miner_hotkey", hotkey("miner") + "\n"), ("miner_hotkey", "5" * 100_000),
    ("prompt", "x" * 4097), ("prompt", "\0"), ("prompt", ...), ("prompt", 1),
    ("s3_bucket", "x" * 256), ("s3_prefix", "x" * 513), ("passed", 1), ("passed", "true"),
    ("passed", None), ("passed", ...), ("confidence", 101), ("confidence", -1),
    ("confidence", 50.5), ("confidence", False), ("reasoning", "x" * 4097), ("reasoning", "\0"),
    ("latency_ms", -1), ("latency_ms", 2**63), ("latency_ms", "10"),
    ("original_artifacts", "x" * 8193), ("generated_artifacts", "x" * 8193),
    ("generated_artifacts", {}), ("presentation_order", "x" * 65),
    ("evaluation_signature", "x" * 257), ("evaluation_signature", "\0"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_field_outside_the_schema(server, field, value):
    body = sample_body() | {field: value}
    body = {name: given for name, given in body.items() if given is not ...}
    assert problems(server.signed("big", "POST", "/samples", body)) == {("body", field)}


LONGEST = {
    "prompt": 4096, "s3_bucket": 255, "s3_prefix": 512, "reasoning": 4096,
    "original_artifacts": 8192, "generated_artifacts": 8192, "presentation_order": 64,
    "evaluation_signature": 256,
}  # fmt: skip


def test_longest_texts_are_stored_whole(server):
    # Characters, not bytes: each of these takes four.
    stored = submit(server, task_id=60, **{name: "🪁" * n for name, n in LONGEST.items()})
    assert stored["prompt"] == "🪁" * 4096


RAW = {
    "empty": b"",
    "not JSON": b"{",
    "NaN in a field": b'{"confidence": NaN}',
    "NaN in an unknown field": json.dumps(sample_body(extra=float("nan"))).encode(),
    "infinity": json.dumps(sample_body(extra=float("inf"))).encode(),
    "invalid UTF-8": json.dumps(sample_body(prompt="?")).encode().replace(b"?", b"\xff\xfe"),
    "UTF-16": json.dumps(sample_body()).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(sample_body()).encode(),
    "lone surrogate": json.dumps(sample_body(prompt="\ud800")).encode(),
    "digits without end": b'{"task_id": ' + b"9" * 100_000 + b"}",
    "nested without end": b"[" * 100_000,
    "half a character": b'{"\\ud800": 1}',
    "nested in an unknown field": (
        b'{"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"," + json.dumps(sample_body()).encode()[1:]
    ),
    "duplicate key": b'{"passed": false, ' + json.dumps(sample_body()).encode()[1:],
    "control character": json.dumps(sample_body(prompt="?")).encode().replace(b"?", b"\x01"),
    "trailing text": json.dumps(sample_body()).encode() + b"{}",
}


@pytest.mark.parametrize("route", ["/samples", "/samples/batch"])
@pytest.mark.parametrize("content", RAW.values(), ids=RAW)
def test_body_that_is_not_strictly_json(server, route, content):
    if route == "/samples/batch" and content.startswith(b"{"):
        content = b'{"samples": [' + content + b"]}"
    response = server.signed("big", "POST", route, content=content)
    assert all(place[0] == "body" for place in problems(response))


def test_unknown_fields_are_ignored_with_whatever_they_hold(server):
    body = b'{"\\ud83e\\ude81": {"\\u0000": [1e999]}, ' + json.dumps(sample_body()).encode()[1:]
    assert server.signed("big", "POST", "/samples", content=body).status_code == 200


def test_422_does_not_repeat_the_input(server):
    response = server.signed("big", "POST", "/samples", sample_body(prompt="secret" * 1000))
    assert "secret" not in response.text


def test_task_above_the_latest_announced_one(fresh):
    submit(fresh, task_id=1_000_000_000)  # nothing was announced yet
    fresh.signed("admin", "POST", "/tasks", {"task_id": 7})
    submit(fresh, task_id=7)
    for route, body in (
        ("/samples", sample_body(task_id=8)),
        ("/samples", sample_body(task_id=..., sample_id="8")),
        ("/samples/batch", {"samples": [sample_body(task_id=7), sample_body(task_id=8)]}),
    ):
        response = fresh.signed("big", "POST", route, body)
        assert response.status_code == 400
        assert "latest announced task 7" in response.json()["detail"]
    submit(fresh, task_id=..., sample_id="legacy")


@pytest.mark.parametrize("limit", [0, -1, 501, "x", 10**30])
def test_limit_out_of_range(server, limit):
    validator, miner = hotkey("big"), hotkey("old")
    for path in (
        f"/samples/list?limit={limit}",
        f"/samples/validator/{validator}?limit={limit}",
        f"/samples/miner/{miner}?limit={limit}",
    ):
        assert problems(server.signed("big", "GET", path)) == {("query", "limit")}


def test_limit_takes_the_newest(fresh):
    stored = [submit(fresh, task_id=n) for n in range(3)]
    newest = stored[:0:-1]
    assert fresh.get("/samples/list?limit=2").json() == newest
    for path in (f"validator/{hotkey('big')}", f"miner/{hotkey('miner')}"):
        assert fresh.signed("big", "GET", f"/samples/{path}?limit=2").json() == newest


def test_malformed_hotkeys_and_missing_parameters(server):
    for path in ("/samples/validator/x", "/samples/miner/x"):
        response = server.signed("big", "GET", path)
        assert (response.status_code, response.json()) == (
            400,
            {"detail": "Invalid SS58 address format"},
        )
    assert server.get("/samples/task?validator_hotkey=x&task_id=1").status_code == 400
    query = f"/samples/task?validator_hotkey={hotkey('big')}"
    for path, named in (
        ("/samples/task?task_id=1", "validator_hotkey"),
        (query, "sample_id"),
        (f"{query}&task_id={2**63}", "task_id"),
    ):
        answer = server.get(path)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith(f"{named}: ")
    assert server.get(f"{query}&sample_id=%00%ff").json() == []


def test_unsigned_reads_of_signed_routes(server):
    for path in (f"/samples/validator/{hotkey('big')}", f"/samples/miner/{hotkey('old')}"):
        assert server.get(path).status_code == 401


# A signature is good for one write.


def resend(server, request, path=None, method="POST"):
    content, headers = request
    return server.http.request(method, path or "/samples", content=content, headers=headers)


def prepared(name="big", *, scheme=1, path="/samples", document=None):
    body = json.dumps(document or sample_body()).encode()
    return body, signed_headers(name, body, method="POST", path=path, scheme=scheme)


@pytest.mark.parametrize("scheme", [1, 2])
def test_resent_request_gets_the_original_answer_and_stores_nothing(warehouse_settings, scheme):
    publish_subnet(warehouse_settings)
    request = prepared(scheme=scheme)
    with (
        Server(API_SETTINGS, warehouse_settings) as one,
        Server(API_SETTINGS, warehouse_settings) as other,
    ):
        first = resend(one, request)
        newer = submit(one, passed=False)
        assert newer["id"] > first.json()["id"]
        for worker in (one, other):
            again = resend(worker, request)
            assert (again.status_code, again.content) == (200, first.content)
    with Server(API_SETTINGS, warehouse_settings) as restarted:
        again = resend(restarted, request)
        assert (again.status_code, again.content) == (200, first.content)
        # A replay of the old vote never overwrites the newer one.
        assert restarted.get("/samples/list").json() == [newer]


def test_resent_batch_gets_the_original_answer(fresh):
    document = {"samples": [sample_body(task_id=n) for n in (3, 1, 2)]}
    request = prepared(path="/samples/batch", document=document)
    first = resend(fresh, request, "/samples/batch")
    again = resend(fresh, request, "/samples/batch")
    assert (again.status_code, again.content) == (200, first.content)
    assert len(fresh.get("/samples/list").json()) == 3


def test_same_request_sent_many_times_at_once_is_stored_once(fresh):
    request = prepared()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(resend(fresh, request))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (200, answers[0].content)
    }
    assert submit(fresh)["id"] == answers[0].json()["id"] + 2  # one submission, one sample


def test_signature_of_an_admins_write_does_not_do_for_samples(fresh):
    """The body suits both routes; only the signature tells that it was meant for one of them."""
    document = {**sample_body(), "hotkey": hotkey("old")}
    request = prepared("admin", document=document)
    assert resend(fresh, request, "/blacklist").status_code == 200
    assert resend(fresh, request, "/samples").status_code == 409
    assert fresh.get("/samples/list").json() == []


def test_signature_of_a_sample_does_not_do_for_an_admins_write(fresh):
    document = {**sample_body(), "hotkey": hotkey("old")}
    request = prepared("admin", document=document)
    assert resend(fresh, request, "/samples").status_code == 200
    assert resend(fresh, request, "/blacklist").status_code == 409
    assert fresh.get("/blacklist").json() == []


@pytest.mark.parametrize("path", ["/samples", "/samples/batch"])
def test_signature_of_a_refused_sample_is_used_up(fresh, path):
    """Else the vote that was refused could be replayed later, over the one that was counted."""
    fresh.signed("admin", "POST", "/tasks", {"task_id": 7})
    old, new = sample_body(task_id=8, passed=False), sample_body(task_id=8, passed=True)
    request = prepared(path=path, document={"samples": [old]} if path.endswith("batch") else old)
    for _ in range(2):
        assert resend(fresh, request, path).status_code == 400
    fresh.signed("admin", "POST", "/tasks", {"task_id": 8})
    newer = fresh.signed("big", "POST", "/samples", new).json()
    assert resend(fresh, request, path).status_code == 409
    assert fresh.get("/samples/list").json() == [newer]


def test_an_accepted_submission_is_answered_again_whatever_was_announced_since(fresh):
    request = prepared(document=sample_body(task_id=8))
    first = resend(fresh, request, "/samples")
    fresh.signed("admin", "POST", "/tasks", {"task_id": 7})
    again = resend(fresh, request, "/samples")
    assert (again.status_code, again.json()) == (200, first.json())


def test_same_samples_signed_anew_are_a_new_version(fresh):
    assert submit(fresh)["id"] < submit(fresh)["id"]


# The evaluation payload.


def evaluation_signature(name, samples):
    entries = [evaluation_entry(sample) for sample in samples]
    return keypair(name).sign(evaluation_payload(entries)).hex()


def test_evaluation_signature_is_verified_and_kept(fresh):
    samples = [sample_body(miner_hotkey=hotkey(name), reasoning="naïve ✓") for name in "abc"]
    right = evaluation_signature("big", samples)
    for signature, is_verified in (
        (right, "true"),
        ("0x" + right, "true"),
        (evaluation_signature("small", samples), "false"),
        (evaluation_signature("big", samples[::-1]), "false"),
        ("ab", "false"),
    ):
        body = {"signature": signature, "samples": samples}
        response = fresh.signed("big", "POST", "/samples/batch", body)
        assert response.status_code == 200
        assert response.headers["X-Evaluation-Verified"] == is_verified


def test_evaluation_signature_of_a_single_sample(server):
    signature = evaluation_signature("big", [sample_body()])
    for given, is_verified in ((signature, "true"), ("not hex at all", "false"), ("", None)):
        body = sample_body(evaluation_signature=given)
        response = server.signed("big", "POST", "/samples", body)
        assert response.headers.get("X-Evaluation-Verified") == is_verified


def test_samples_under_one_evaluation_signature_are_of_one_task(server):
    for samples, status in (
        ([sample_body(task_id=1), sample_body(task_id=2)], 400),
        ([sample_body(task_id=1), sample_body(task_id=..., sample_id="1")], 200),
        ([sample_body(task_id=..., sample_id=n) for n in ("a", "b")], 400),
    ):
        body = {"signature": "ab", "samples": samples}
        assert server.signed("big", "POST", "/samples/batch", body).status_code == status


@pytest.mark.parametrize("signature", ["xyz", "ab" * 129, 5, "ab\n"])
def test_batch_signature_that_is_no_hex(server, signature):
    body = {"signature": signature, "samples": [sample_body()]}
    response = server.signed("big", "POST", "/samples/batch", body)
    assert problems(response) == {("body", "signature")}


# The log that cannot be written.


def test_too_much_waiting_is_503_and_loses_nothing(warehouse_settings):
    publish_subnet(warehouse_settings)
    crowded = warehouse_settings.model_copy(update={"log_queue_bytes_max": 2000})
    with Server(API_SETTINGS, crowded) as running:
        response = running.signed("big", "POST", "/samples", sample_body(prompt="x" * 4000))
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert running.signed("big", "POST", "/samples", sample_body()).status_code == 200


def test_log_that_cannot_be_written_is_503_and_the_same_request_may_be_sent_again(
    warehouse_settings,
):
    publish_subnet(warehouse_settings)
    hasty = warehouse_settings.model_copy(update={"log_lock_seconds_max": 0.1})
    request = prepared()
    delete = signed_headers("admin")
    with Server(API_SETTINGS, hasty) as running:
        submit(running, task_id=2)
        with locked(lock_path(hasty.log_path), 1):
            response = resend(running, request)
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
            # An admin's read is not answered before its signature is remembered.
            assert running.get("/weights", headers=delete).status_code == 503
            assert running.get("/samples/list").status_code == 200
        assert resend(running, request).status_code == 200
        assert [row["task_id"] for row in running.get("/samples/list").json()] == [1, 2]
