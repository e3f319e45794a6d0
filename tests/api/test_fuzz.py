"""The real server, fuzzed from its own OpenAPI document: validly signed, wrongly signed, and not.

Whatever is sent, the answer is one that the document lists, in the shape that it says, within a
time, and never a 500; afterwards the workers have no more than before, and the log holds what was
acknowledged. LEOMA_TORTURE=1 sends many more.
"""

import json
import time
import urllib.parse
import zlib
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_api
from tests.api.conftest import API_SETTINGS
from tests.api.fuzzing import (
    ANSWER_SECONDS_MAX,
    IS_LONG,
    SEED,
    Answer,
    Fuzzed,
    Line,
    at_once,
    refuse_failure,
)
from tests.api.made_requests import Maker
from tests.builders import hotkey, sample_body, signed_headers
from warehouse.generation import Generations
from warehouse.settings import WarehouseSettings

EXAMPLES = 700 if IS_LONG else 40
MADE = 2_500
LOOPS = 4 if IS_LONG else 1
LINES = 8
# Whose signature a request has, and in which scheme; the forged one is over another body.
SIGNERS = (
    (None, 0), ("forged", 1), ("forged", 2), ("big", 1), ("big", 2), ("big", 2), ("admin", 1),
    ("admin", 2), ("admin", 2),
)  # fmt: skip
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
AUTH_HEADERS = {
    "x-validator-hotkey", "x-signature", "x-timestamp", "x-signature-version", "x-nonce",
}  # fmt: skip
SUBMISSIONS = {("POST", "/samples"), ("POST", "/samples/batch")}
# What random text would hardly ever be: values that get past the first check.
KNOWN = {"miner_hotkey": hotkey("old"), "validator_hotkey": hotkey("big"), "hotkey": hotkey("x")}

# Valid and invalid requests alike: the default of both modes.
# Making the routes opens nothing; the server that is fuzzed documents the same ones.
DOCUMENT = create_api(API_SETTINGS, WarehouseSettings()).openapi()
api = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def fuzzed(module_home):
    with Fuzzed(module_home) as server:
        with Line(server.port, server.told) as line:
            assert send_vote(line).status == 200
            # It is the same document that the requests are made from.
            document = line.ask(b"GET /openapi.json HTTP/1.1\r\nHost: l\r\n\r\n")
            assert json.loads(document.content) == json.loads(json.dumps(DOCUMENT))
        yield server
        assert server.answers_properly()
        server.refuse_growth()


@pytest.fixture(autouse=True)
def counted(request, fuzzed):
    """Tell what a test sent, for the sum at the end."""
    before = fuzzed.told.requests
    yield
    sent = fuzzed.told.requests - before
    request.node.user_properties.append(("requests over HTTP", sent))


def send_vote(line):
    body = json.dumps(sample_body(task_id=4, miner_hotkey=hotkey("old"))).encode()
    headers = signed_headers("big", body, method="POST", path="/samples", scheme=2)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = f"Content-Length: {len(body)}\r\n\r\n"
    return line.ask(f"POST /samples HTTP/1.1\r\nHost: l\r\n{head}{length}".encode() + body)


def send(case, server, signer, scheme):
    """Send a generated request as it is, or signed by a key in place of its own headers."""
    for name, known in KNOWN.items():
        for parameters in (case.path_parameters, case.query):
            # Every second request keeps the generated value, so that both ways are walked.
            if name in (parameters or {}) and len(str(parameters[name])) % 2:
                parameters[name] = known
    base_url = f"http://127.0.0.1:{server.port}"
    prepared = requests.Request(**case.as_transport_kwargs(base_url=base_url)).prepare()
    if signer is not None:
        for name in [name for name in prepared.headers if name.lower() in AUTH_HEADERS]:
            del prepared.headers[name]
        body = prepared.body or b""
        body = body.encode() if isinstance(body, str) else body
        parts = urlsplit(prepared.url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        is_forged = signer == "forged"
        signed = signed_headers(
            "big" if is_forged else signer,
            body + b" " * is_forged,
            method=prepared.method,
            path=path,
            scheme=scheme,
        )
        prepared.headers.update(signed)
    begun = time.monotonic()
    server.told.sent(1)
    with requests.Session() as session:
        session.trust_env = False
        response = session.send(prepared, timeout=ANSWER_SECONDS_MAX, allow_redirects=False)
    answer = Answer(response.status_code, {}, response.content)
    server.told.answered(answer, time.monotonic() - begun)
    assert response.status_code < 500, (prepared.method, urllib.parse.unquote(prepared.url))
    if signer == "forged" and "security" in case.operation.definition.raw:
        assert response.status_code >= 400, response.text
    if response.status_code == 200 and (case.method, case.path) in SUBMISSIONS:
        server.told.stored(response.content)
    return response


@api.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not IS_LONG,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_gets_an_answer_that_is_not_documented(case, fuzzed):
    # By the request itself, so that a failing one fails again.
    asked = repr((case.method, case.path_parameters, case.query, case.body))
    signer, scheme = SIGNERS[zlib.crc32(asked.encode("utf-8", "surrogatepass")) % len(SIGNERS)]
    case.validate_response(send(case, fuzzed, signer, scheme), checks=CHECKS)


def schemas():
    """Return what checks an answer's content, by method, route and status."""
    found = {}
    for path, methods in DOCUMENT["paths"].items():
        for method, described in methods.items():
            for status, answer in described["responses"].items():
                content = answer.get("content", {}).get("application/json")
                schema = {**content["schema"], "components": DOCUMENT["components"]}
                found[method.upper(), path, int(status)] = jsonschema_rs.validator_for(schema)
    return found


SCHEMAS = schemas()


def check(made, answer):
    """Fail where an answer to a request out of the maker is none that the document lists."""
    refuse_failure(answer, made)
    if made.method == "HEAD" or answer.status in {204, 304}:
        return
    if answer.status >= 400 and answer.status != 405:
        # CORS refuses a preflight in plain text, and the server what is no request.
        is_plain_text = answer.status == 400 and "text/plain" in answer.headers["content-type"]
        assert is_plain_text or json.loads(answer.content)["detail"], (made, answer)
    # What is said of a head that is too large comes before any route.
    if made.is_plain and answer.status != 431:
        key = (*made.operation, answer.status)
        assert key in SCHEMAS, (made, answer)
        assert answer.headers["content-type"] == "application/json", (made, answer)
        SCHEMAS[key].validate(json.loads(answer.content))


@pytest.mark.parametrize("loop", range(LOOPS))
def test_whatever_is_made_of_a_request_is_answered_as_documented(fuzzed, module_home, loop):
    current = Generations(module_home).current()
    maker = Maker(DOCUMENT, (current.snapshot_id,))
    told = fuzzed.told

    def work(numbers):
        with Line(fuzzed.port, told) as line:
            for number in numbers:
                made = maker.made(SEED + loop, number)
                answer = line.ask(made.raw(), is_head=made.method == "HEAD")
                try:
                    check(made, answer)
                except Exception as error:
                    raise AssertionError(f"{SEED + loop}:{number} {made}: {answer}") from error
                is_post = made.method == "POST" and made.operation in SUBMISSIONS
                if is_post and answer.status == 200:
                    told.stored(answer.content)

    at_once(LINES, MADE, work)
    # A fuzz that is refused at the door shows nothing.
    assert {200, 400, 401, 403, 404, 409, 413, 422} <= told.statuses.keys(), told.statuses
    assert len(told.acknowledged) > MADE // 20


def test_nothing_has_grown(fuzzed, record_property):
    """By what was sent until now; it is looked at once more when all is over."""
    fuzzed.refuse_growth()
    for name, count in fuzzed.figures().items():
        record_property(name, count)
