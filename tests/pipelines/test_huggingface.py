"""What Hugging Face says about a revision, and everything that is no answer."""

import hashlib
import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cli.simulated.services import HttpFault, SimulatedServices
from pipelines.huggingface import HuggingFace
from pipelines.outside import Cause, NoAnswer
from pipelines.validation import ModelFact
from tests.pipelines.service_faults import ENDLESS, FAULTS, described, status

TOKEN = "hf_9b2e_a_token_that_must_not_be_seen"
NAME = "someone/leoma-5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
REVISION = "a" * 40
ONE, TWO = "1" * 64, "2" * 64
HASH = hashlib.sha256((ONE + TWO).encode()).hexdigest()
FILES = {"x/two.BIN": TWO, "one.safetensors": ONE, "a.onnx": "3" * 64, "small.pt": None}
NOW_MS = 1_700_000_000_000


@pytest.fixture
def services() -> Iterator[SimulatedServices]:
    with SimulatedServices(hf_token=TOKEN) as services:
        services.add_model(NAME, REVISION, FILES, "main", "refs/pr/1")
        yield services


@pytest.fixture
def hugging_face(services: SimulatedServices) -> Iterator[HuggingFace]:
    with closing(HuggingFace(services.hf_url, TOKEN, 10, clock_ms=lambda: NOW_MS)) as client:
        yield client


def absent(name: str = NAME, revision: str = REVISION) -> ModelFact:
    return ModelFact(name, revision, False, None, None, NOW_MS)


def found(revision: str, model_hash: str | None = HASH) -> ModelFact:
    return ModelFact(
        NAME,
        revision,
        is_found=True,
        sha=REVISION,
        model_hash=model_hash,
        answered_at_ms=NOW_MS,
    )


def test_a_revision(hugging_face: HuggingFace, services: SimulatedServices) -> None:
    assert hugging_face.fact(NAME, REVISION) == found(REVISION)
    (request,) = services.requests
    assert request.path == f"/api/models/{NAME}/revision/{REVISION}?blobs=true"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"


def test_a_branch_names_its_commit(hugging_face: HuggingFace, services: SimulatedServices) -> None:
    assert hugging_face.fact(NAME, "main") == found("main")
    assert hugging_face.fact(NAME, "refs/pr/1") == found("refs/pr/1")
    assert services.requests[1].path.endswith("/revision/refs%2Fpr%2F1?blobs=true")


def test_only_weights_in_lfs_are_hashed(
    hugging_face: HuggingFace, services: SimulatedServices
) -> None:
    services.add_model(NAME, REVISION, {"small.pt": None, "README.md": "4" * 64})
    assert hugging_face.fact(NAME, REVISION) == found(REVISION, model_hash=None)
    services.add_model(NAME, REVISION, {})
    assert hugging_face.fact(NAME, REVISION) == found(REVISION, model_hash=None)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_denials_are_answers(services: SimulatedServices, token: str) -> None:
    with closing(HuggingFace(services.hf_url, token, 1, clock_ms=lambda: NOW_MS)) as client:
        assert client.fact("someone/other", REVISION) == absent("someone/other")
        assert client.fact(NAME, "b" * 40) == absent(revision="b" * 40)
        services.close_model(NAME, is_gated=True)
        assert client.fact(NAME, REVISION) == absent()
        services.close_model(NAME, is_disabled=True)
        assert client.fact(NAME, REVISION) == absent()
        services.close_model(NAME)
        assert client.fact(NAME, REVISION) == found(REVISION)


@pytest.mark.parametrize(
    "name",
    ["", "/", "..", "a/..", "../a", "a/b/c", "a b", "a?x=", "a%2fb", "é", "a\n", "a--b", "a.git"],
)
def test_a_name_that_cannot_be_is_never_asked(
    hugging_face: HuggingFace, services: SimulatedServices, name: str
) -> None:
    assert hugging_face.fact(name, REVISION) == absent(name)
    assert services.requests == []


@pytest.mark.parametrize(
    "revision", ["", ".", "..", "../../../whoami-v2", "a/../b", "a\nb", "a\0", "a\\b", "a" * 257]
)
def test_a_revision_that_cannot_be_is_never_asked(
    hugging_face: HuggingFace, services: SimulatedServices, revision: str
) -> None:
    assert hugging_face.fact(NAME, revision) == absent(revision=revision)
    assert services.requests == []


@pytest.mark.parametrize("revision", ["%2e%2e", "a/b", "?x=", "a#b", "é", "/", "a b"])
def test_a_revision_stays_one_segment(
    hugging_face: HuggingFace, services: SimulatedServices, revision: str
) -> None:
    assert hugging_face.fact(NAME, revision) == absent(revision=revision)
    (request,) = services.requests
    start = f"/api/models/{NAME}/revision/"
    assert request.path.startswith(start)
    assert "/" not in request.path.removeprefix(start)
    assert request.path.endswith("?blobs=true")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_no_answer_and_shows_no_token(
    hugging_face: HuggingFace,
    services: SimulatedServices,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault, cause = FAULTS[name]
    caplog.set_level(logging.DEBUG)
    assert hugging_face.fact(NAME, REVISION).is_found
    services.fault = lambda _path: fault
    with pytest.raises(NoAnswer) as caught:
        hugging_face.fact(NAME, REVISION, 0.1 if name in ENDLESS else None)
    assert caught.value.cause is cause

    assert services.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    seen = [*map(str, caplog.records), *caplog.messages, repr(hugging_face), repr(caught.value)]
    assert TOKEN not in "".join([*seen, *traceback.format_exception(caught.value)])
    # Nor is there an error behind it that knows the request.
    assert caught.value.__context__ is None

    services.fault = lambda _path: None
    assert hugging_face.fact(NAME, REVISION).is_found


def test_a_refused_token_is_our_problem(services: SimulatedServices) -> None:
    with closing(HuggingFace(services.hf_url, "hf_old", 1)) as client:
        for name in (NAME, "someone/other"):
            with pytest.raises(NoAnswer) as caught:
                client.fact(name, REVISION)
            assert caught.value.cause is Cause.REFUSED


def test_a_404_without_its_code_is_no_answer(
    hugging_face: HuggingFace, services: SimulatedServices
) -> None:
    services.fault = lambda _path: status(404, b"<html>", Content_Type="text/html")
    with pytest.raises(NoAnswer, match="HTTP 404"):
        hugging_face.fact(NAME, REVISION)


@pytest.mark.parametrize(
    ("headers", "is_denied"),
    [
        ({"X_Error_Message": "Invalid username or password."}, True),
        ({"X_Error_Code": "RepoNotFound"}, True),
        ({"WWW_Authenticate": 'Basic realm="intranet"'}, False),
        ({"X_Error_Message": "Invalid credentials in Authorization header"}, False),
    ],
)
def test_a_401_to_nobody_is_an_answer_in_hugging_faces_own_form_only(
    services: SimulatedServices,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    *,
    is_denied: bool,
) -> None:
    # The library reads a 401 so only where the address is https, which nobody serves here.
    pattern = re.compile("/api/models/")
    monkeypatch.setattr("huggingface_hub.utils._http.REPO_API_REGEX", pattern)
    services.fault = lambda _path: status(401, b'{"error": "x"}', **headers)
    with closing(HuggingFace(services.hf_url, "", 10, clock_ms=lambda: NOW_MS)) as client:
        if is_denied:
            assert client.fact(NAME, REVISION) == absent()
        else:
            with pytest.raises(NoAnswer) as caught:
                client.fact(NAME, REVISION)
            assert caught.value.cause is Cause.REFUSED


def sibling(file: object, sha256: object) -> dict[str, object]:
    return {"rfilename": file, "lfs": {"sha256": sha256, "size": 1, "pointerSize": 1}}


@pytest.mark.parametrize(
    "fault",
    [
        described(id=NAME, sha=REVISION),
        described(id=NAME, sha=REVISION, siblings=None),
        described(id=NAME, siblings=[]),
        described(id=NAME, sha=None, siblings=[]),
        described(id=NAME, sha=7, siblings=[]),
        described(sha=REVISION, siblings=[]),
        described(id=NAME, sha=REVISION, siblings="none"),
        described(id=NAME, sha=REVISION, siblings=[sibling(7, ONE)]),
        described(id=NAME, sha=REVISION, siblings=[sibling("a.bin", None)]),
        described(id=NAME, sha=REVISION, siblings=[sibling("a.bin", "1" * 63)]),
        described(id=NAME, sha=REVISION, siblings=[{"rfilename": "a.bin", "lfs": {"size": 1}}]),
        described(id=NAME, sha=REVISION, siblings=[], lastModified="yesterday"),
        status(200, b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_a_description_of_another_form_is_no_answer(
    hugging_face: HuggingFace, services: SimulatedServices, fault: HttpFault
) -> None:
    services.fault = lambda _path: fault
    with pytest.raises(NoAnswer) as caught:
        hugging_face.fact(NAME, REVISION)
    assert caught.value.cause is Cause.UNUSABLE


def test_a_renamed_model_is_found_where_it_is(
    hugging_face: HuggingFace, services: SimulatedServices
) -> None:
    services.add_model("someone/renamed", REVISION, FILES)
    target = f"/api/models/someone/renamed/revision/{REVISION}?blobs=true"
    services.fault = lambda path: status(307, Location=target) if NAME in path else None
    assert hugging_face.fact(NAME, REVISION) == found(REVISION)


def test_the_token_follows_no_redirect_to_another_host(
    hugging_face: HuggingFace, services: SimulatedServices
) -> None:
    with SimulatedServices() as elsewhere:
        services.fault = lambda path: status(307, Location=elsewhere.hf_url + path)
        with pytest.raises(NoAnswer, match="another host"):
            hugging_face.fact(NAME, REVISION)
        assert elsewhere.requests == []


def test_a_circle_of_redirects_ends(hugging_face: HuggingFace, services: SimulatedServices) -> None:
    services.fault = lambda path: status(307, Location=path)
    with pytest.raises(NoAnswer):
        hugging_face.fact(NAME, REVISION)
    assert len(services.requests) <= 5


@pytest.mark.parametrize(
    "headers",
    [{"Retry_After": "55"}, {"RateLimit": '"api";r=0;t=55'}],
    ids=["Retry-After", "RateLimit"],
)
def test_how_long_to_wait_is_handed_on(
    hugging_face: HuggingFace, services: SimulatedServices, headers: dict[str, str]
) -> None:
    services.fault = lambda _path: status(429, **headers)
    with pytest.raises(NoAnswer) as caught:
        hugging_face.fact(NAME, REVISION)
    assert caught.value.retry_after_seconds == 55.0


def test_two_clients_at_once_do_not_mix(services: SimulatedServices) -> None:
    with SimulatedServices() as other:
        other.add_model(NAME, REVISION, {"a.bin": ONE})
        ours = HuggingFace(services.hf_url, TOKEN, 1)
        theirs = HuggingFace(other.hf_url, "", 1)
        with closing(ours), closing(theirs):
            assert ours.fact(NAME, REVISION).model_hash == HASH
            assert theirs.fact(NAME, REVISION).model_hash != HASH
            assert ours.fact(NAME, REVISION).model_hash == HASH
        assert [("authorization" in one.headers) for one in other.requests] == [False]


ASK = """
import sys
from pipelines.huggingface import HuggingFace
print(HuggingFace(sys.argv[1], "", 5).fact(sys.argv[2], sys.argv[3]).model_hash)
"""


# Offline it would not ask for the names of agents, online it would not refuse to ask at all.
@pytest.mark.parametrize("is_offline", ["0", "1"])
def test_the_environment_and_a_login_have_no_say(
    services: SimulatedServices, tmp_path: Path, is_offline: str
) -> None:
    # The library reads most of these once, when it is imported: hence a process of its own.
    (tmp_path / "token").write_text("hf_cached")
    with SimulatedServices() as elsewhere:
        environment = os.environ | {
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_environment",
            "HF_ENDPOINT": elsewhere.hf_url,
            "HF_HUB_OFFLINE": is_offline,
            "AI_AGENT": "1",
            "HTTP_PROXY": elsewhere.hf_url,
            "http_proxy": elsewhere.hf_url,
            "ALL_PROXY": "http://127.0.0.1:1",
        }
        told = subprocess.run(
            [sys.executable, "-c", ASK, services.hf_url, NAME, REVISION],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert told.stdout.strip() == HASH
        assert elsewhere.requests == []
    (request,) = services.requests
    assert "authorization" not in request.headers


def test_a_shorter_time_takes_the_place_of_the_clients_own(services: SimulatedServices) -> None:
    services.fault = lambda _path: HttpFault("drip_headers")
    with closing(HuggingFace(services.hf_url, TOKEN, 3600)) as client:
        for seconds in (0.1, 0.0):
            with pytest.raises(NoAnswer, match="timed out"):
                client.fact(NAME, REVISION, seconds)


def test_a_token_that_no_header_carries_is_refused_unseen() -> None:
    with pytest.raises(ValueError, match="HF_TOKEN") as caught:
        HuggingFace("http://127.0.0.1:1", "hf_one\nhf_two", 1)
    assert "hf_one" not in str(caught.value)
