"""No secret is shown anywhere, however much fails: a whole installation that holds many of them.

Every service that it asks repeats, in its refusal, all that it was sent. Afterwards the canaries
are looked for in every log, every file of the home, every answer and every page.
"""

import contextlib
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

import httpx
import pytest

from api.client import LeomaClient
from cli.main import run
from cli.processes import Processes, free_port
from cli.simulated.chain import SimulatedChain
from cli.simulated.node import SimulatedNode
from pipelines.settings import PipelineSettings
from tests.api.conftest import publish_subnet
from tests.builders import keypair, sample_body
from warehouse.settings import WarehouseSettings

CANARY = "canary"
SECRETS = {
    "S3_READ_ACCESS_KEY_ID": "canary-read-id",
    "S3_READ_SECRET_ACCESS_KEY": "canary-read-secret",
    "S3_WRITE_ACCESS_KEY_ID": "canary-write-id",
    "S3_WRITE_SECRET_ACCESS_KEY": "canary-write-secret",
    "CHUTES_API_KEY": "canary-chutes",
    "HF_TOKEN": "canary-huggingface",
}
START_SECONDS_MAX = 90.0
RUNS = """{ runsOrError { ... on Runs { results {
    runId status runConfigYaml tags { key value } stats { __typename }
    eventConnection { events {
        __typename
        ... on MessageEvent { message }
        ... on ErrorEvent { error { message stack causes { message stack } } }
        ... on MaterializationEvent { metadataEntries { label description } }
    } }
} } } }"""
REPOSITORIES = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
    name displayMetadata { key value }
    assetNodes { id description metadataEntries { label description } }
} } } }"""
INSTANCE = "{ instance { info } }"


class Echo(BaseHTTPRequestHandler):
    """Refuses, and repeats what it was told: the worst service there can be."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = f"{self.requestline}\n{self.headers}\n{body[:500]!r}"
        self.server.told.append(told)
        if "AWS4-HMAC" in told:
            text = f"<Error><Code>AccessDenied</Code><Message>{escape(told)}</Message></Error>"
        else:
            text = json.dumps({"error": told})
        self.send_response(403, told.replace("\r", " ").replace("\n", " ")[:2000])
        self.send_header("Content-Length", str(len(text.encode())))
        # Hugging Face's library tells people these.
        self.send_header("X-Error-Message", " ".join(told.split()))
        self.send_header("X-Request-Id", "1")
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - the library's names

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.told = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def node():
    """A chain with a miner that the services would have to be asked about."""
    chain = SimulatedChain()
    chain.register(keypair("big").ss58_address, 10_000, permit=True)
    chain.register(keypair("miner").ss58_address)
    name = f"someone/Leoma-{keypair('miner').ss58_address}"
    commitment = {"model_name": name, "model_revision": "a" * 40, "chute_id": "c"}
    chain.reveal(keypair("miner").ss58_address, commitment)
    chain.mine()
    with SimulatedNode(chain) as running:
        yield running


@pytest.fixture
def environment(tmp_path, echo, node):
    """All settings that a process of this installation gets."""
    home = tmp_path / "home"
    publish_subnet(WarehouseSettings(leoma_home=home))
    port = echo.server_port
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("LEOMA")},
        **SECRETS,
        "LEOMA_HOME": str(home),
        "LOG_FORMAT": "json",
        "METRICS_PORT": str(free_port(0)),
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "S3_SAMPLES_BUCKET": "samples",
        "OUTBOX_POLL_SECONDS": "0.1",
        "CHUTES_API_URL": f"http://127.0.0.1:{port}/chutes-of-somebody",
        "HF_ENDPOINT": f"http://127.0.0.1:{port}/hf",
        "VALIDATION_ATTEMPTS_MAX": "1",
        # The first node refuses, and repeats the address; the second answers.
        "CHAIN_SOURCE": f"ws://canary-user:canary-password@127.0.0.1:{port}/?key=canary-node,"
        f"{node.url}",
        "NETUID": str(PipelineSettings.model_fields["netuid"].default),
        "ADMIN_HOTKEYS": keypair("admin").ss58_address,
    }


def wait_for(is_so, what):
    deadline = time.monotonic() + START_SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def answered(http, url, query=None):
    with contextlib.suppress(httpx.TransportError):
        response = http.post(url, json={"query": query}) if query else http.get(url)
        if response.is_success:
            return response.text
    return ""


def test_whatever_fails_no_secret_is_shown(environment, echo, tmp_path, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    api, code, ui = (free_port(0) for _ in range(3))
    logs = tmp_path / "logs"
    logs.mkdir()
    shown = {}
    cli = ("-m", "cli.main", "-v")
    with (
        Processes(logs, environment, 20) as processes,
        httpx.Client(trust_env=False, timeout=30) as http,
    ):
        processes.start("api", [*cli, "serve", "--port", str(api), "--log-level", "debug"])
        processes.start("code", [*cli, "dagster", "code-server", "--port", str(code)])
        place = ["--code-port", str(code)]
        processes.start("ui", [*cli, "dagster", "webserver", "--port", str(ui), *place])
        processes.start("daemon", [*cli, "dagster", "daemon", *place])
        url, graphql = f"http://127.0.0.1:{api}", f"http://127.0.0.1:{ui}/graphql"
        wait_for(lambda: answered(http, f"{url}/health/live"), "the API is up")
        with LeomaClient(url, keypair("big")) as client:
            client.submit_sample(sample_body())
        with contextlib.suppress(httpx.HTTPError):
            http.post(f"{url}/samples", content=b"x", headers={"X-Signature": "canary"})
        wait_for(lambda: "AWS4-HMAC" in "".join(echo.told), "the courier tried")
        wait_for(lambda: "FAILURE" in answered(http, graphql, RUNS), "a sync failed")
        run(["outbox"])
        run(["-v", "materialize"])
        run(["-v", "restore", "--from", "s3://samples/leoma"])
        run(["-v", "fsck"])
        for name, where, query in (
            *((path, f"{url}{path}", None) for path in ("/health", "/openapi.json", "/docs")),
            ("metrics", f"http://127.0.0.1:{environment['METRICS_PORT']}/metrics", None),
            *((name, graphql, query) for name, query in
              (("runs", RUNS), ("repositories", REPOSITORIES), ("instance", INSTANCE))),
        ):  # fmt: skip
            shown[name] = answered(http, where, query)
            assert shown[name], name
    told = capsys.readouterr()
    shown |= {"commands": told.out + told.err}
    for path in (*logs.rglob("*"), *(tmp_path / "home").rglob("*")):
        if path.is_file():
            shown[str(path)] = path.read_bytes().decode("latin-1")
    # Each could have been shown: it reached who repeats it.
    heard = "".join(echo.told)
    for secret in ("canary-chutes", "canary-huggingface", "canary-write-id", "canary-node"):
        assert secret in heard, secret
    assert "STEP_FAILURE" in shown["runs"] or "ExecutionStepFailureEvent" in shown["runs"]
    leaks = {
        name: text[max(0, at - 200) : at + 100]
        for name, text in shown.items()
        if (at := text.find(CANARY)) >= 0
    }
    assert leaks == {}


def test_settings_show_no_secret(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for settings in (WarehouseSettings(), PipelineSettings(chain_source="x")):
        assert CANARY not in repr(settings)
        assert CANARY not in str(settings)
