"""The running server, fuzzed from its own OpenAPI document, with valid signatures and without.

Whatever is sent, the answer is one that the document lists, in the shape that it says, and never
a 500. FUZZ_EXAMPLES raises the number of requests a route; the default keeps this short.
"""

import os
import urllib.parse
import zlib
from urllib.parse import urlsplit

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
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, sample_body, signed_headers
from warehouse.settings import WarehouseSettings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
TIMEOUT_SECONDS = 30
SIGNERS = (None, "big", "admin")
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
# What random text would hardly ever be: values that get past the first check.
KNOWN = {"miner_hotkey": hotkey("old"), "validator_hotkey": hotkey("big"), "hotkey": hotkey("x")}


@pytest.fixture(scope="module")
def fuzzed(module_home):
    publish_subnet(module_home)
    with Server(API_SETTINGS, module_home) as server:
        body = sample_body(task_id=4, miner_hotkey=hotkey("old"))
        assert server.signed("big", "POST", "/samples", body).status_code == 200
        yield server


# Valid and invalid requests alike: the default of both modes.
# Making the routes opens nothing; the server that is fuzzed documents the same ones.
DOCUMENT = create_api(API_SETTINGS, WarehouseSettings()).openapi()
api = schemathesis.openapi.from_dict(DOCUMENT)


def send(case, server, signer):
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
        signed = signed_headers(signer, body, method=prepared.method, path=path, scheme=2)
        prepared.headers.update(signed)
    with requests.Session() as session:
        session.trust_env = False
        response = session.send(prepared, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    assert response.status_code < 500, (prepared.method, urllib.parse.unquote(prepared.url))
    return response


@api.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_gets_an_answer_that_is_not_documented(case, fuzzed):
    # By the request itself, so that a failing one fails again.
    asked = repr((case.method, case.path_parameters, case.query, case.body))
    signer = SIGNERS[zlib.crc32(asked.encode("utf-8", "surrogatepass")) % len(SIGNERS)]
    case.validate_response(send(case, fuzzed, signer), checks=CHECKS)
