"""Links to media: a plain HTTP client opens them on a real S3 server, as they were made only."""

import logging
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError

from api import media as media_module
from api.media import NO_KEY, MediaLinks, generated_video_key
from api.models import TaskDetailResponse, TaskMinerDetailResponse
from api.settings import ApiSettings
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, sample_body
from tests.object_storage import KEYS, Faults

OLD = hotkey("old")
SECRETS = [secret for _, secret, _ in KEYS.values()]
FILES = {
    "4/first_frame.png": b"a frame",
    "4/original_clip.mp4": b"a clip",
    f"4/generated_videos/{OLD}.mp4": b"a video",
}
HOUR = 3_600
START = 1_767_323_045


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch, tmp_path):
    """Nothing but what a test gives is in boto3's chain, and nothing is asked of a network."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


@pytest.fixture
def settings(object_server, home, bucket):
    return object_server.settings(home, s3_samples_bucket=bucket)


@pytest.fixture
def files(object_server, bucket):
    client = object_server.client()
    for key, content in FILES.items():
        client.put_object(Bucket=bucket, Key=key, Body=content)
    yield client
    client.close()


@pytest.fixture
def serving(settings):
    publish_subnet(settings)
    with Server(API_SETTINGS, settings) as running:
        yield running


def without_key(settings):
    return settings.model_copy(
        update={
            "s3_read_access_key_id": "",
            "s3_read_secret_access_key": type(settings.s3_read_secret_access_key)(""),
        }
    )


def signed_ago(settings, seconds, **values):
    return MediaLinks(ApiSettings(**values), settings, now_unix=lambda: time.time() - seconds)


def fetch(url, method="GET", **kwargs):
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.request(method, url, **kwargs)


def submit(server, **changes):
    response = server.signed("big", "POST", "/samples", sample_body(miner_hotkey=OLD, **changes))
    assert response.status_code == 200, response.text


def details(server, task_id=4):
    answers = []
    for path, model in (
        (f"/tasks/{task_id}", TaskDetailResponse),
        (f"/tasks/{task_id}/miner/{OLD}", TaskMinerDetailResponse),
    ):
        response = server.get(path)
        model.model_validate_json(response.content, strict=True)
        assert response.headers["Cache-Control"] == "no-store"
        answers.append(response.json())
    return answers


def links_of(answer):
    return {
        answer[name.replace("_url", "_path")]: answer[name] for name in answer if "_url" in name
    }


def test_links_open_without_credentials(serving, files):
    submit(serving, task_id=4)
    task, of_miner = details(serving)
    assert set(links_of(task)) == {"4/first_frame.png", "4/original_clip.mp4"}
    assert set(links_of(of_miner)) == set(FILES)
    for answer in (task, of_miner):
        for path, url in links_of(answer).items():
            response = fetch(url)
            assert (response.status_code, response.content) == (200, FILES[path])
    assert serving.get("/health").json()["problems"] == []


def test_a_link_is_given_whether_the_file_is_there_or_not(serving, files):
    submit(serving, task_id=5)
    _, of_miner = details(serving, 5)
    assert [fetch(url).status_code for url in links_of(of_miner).values()] == [404] * 3


def test_no_link_needs_the_storage(object_server, settings):
    with Faults(object_server.port) as faults:
        elsewhere = settings.model_copy(update={"s3_endpoint_url": faults.url})
        publish_subnet(elsewhere)
        with Server(API_SETTINGS, elsewhere) as running:
            submit(running, task_id=4)
            _, of_miner = details(running)
        assert all(url.startswith(faults.url) for url in links_of(of_miner).values())
        assert faults.connections == 0


@pytest.mark.parametrize(
    ("bucket_said", "prefix_said"),
    [("other", "4"), ("samples", "../../secret"), ("other/..", "/"), ("x?a=b#", "%2e%2e/4")],
)
def test_what_a_validator_says_decides_nothing(
    serving, files, object_server, bucket_said, prefix_said
):
    bucket = serving.warehouse_settings.s3_samples_bucket
    other = object_server.make_bucket()
    for key in FILES:
        files.put_object(Bucket=other, Key=key, Body=b"a secret")
    said = other if bucket_said == "other" else bucket_said
    submit(serving, task_id=4, s3_bucket=said, s3_prefix=prefix_said)
    _, of_miner = details(serving)
    for path, url in links_of(of_miner).items():
        assert urlsplit(url).path == f"/{bucket}/{path}"
        assert fetch(url).content == FILES[path]


def test_a_link_ends(settings, files):
    key = next(iter(FILES))
    assert fetch(signed_ago(settings, HOUR - 60).url(key)).content == FILES[key]
    response = fetch(signed_ago(settings, HOUR + 1).url(key))
    assert response.status_code == 403
    assert FILES[key] not in response.content


def flipped(url):
    return url[:-1] + ("0" if url[-1] != "0" else "1")


CHANGED = {
    "key": lambda url: url.replace("first_frame.png", "original_clip.mp4"),
    "expiry": lambda url: url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"),
    "instant": lambda url: url.replace("Date=2", "Date=3"),
    "signature": flipped,
    "no signature": lambda url: url.partition("&X-Amz-Signature")[0],
    "nothing": lambda url: url.partition("?")[0],
    "another key's name": lambda url: url.replace(KEYS["reader"][0], KEYS["owner"][0]),
    "host": lambda url: url.replace("127.0.0.1", "localhost"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_link_that_was_changed_is_refused(settings, files, what):
    url = MediaLinks(ApiSettings(), settings).url("4/first_frame.png")
    changed = CHANGED[what](url)
    assert changed != url
    response = fetch(changed)
    assert response.status_code in {400, 403}
    assert not any(content in response.content for content in FILES.values())


def test_a_wrong_secret_is_refused(object_server, home, bucket, files):
    wrong = object_server.settings(
        home, s3_samples_bucket=bucket, s3_read_secret_access_key="not-the-secret"
    )
    assert fetch(MediaLinks(ApiSettings(), wrong).url("4/first_frame.png")).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
@pytest.mark.parametrize("name", ["reader", "owner"])
def test_a_link_is_for_reading(object_server, settings, files, method, name):
    key_id, secret, _ = KEYS[name]
    given = object_server.settings(
        settings.leoma_home,
        s3_samples_bucket=settings.s3_samples_bucket,
        s3_read_access_key_id=key_id,
        s3_read_secret_access_key=secret,
    )
    url = MediaLinks(ApiSettings(), given).url("4/first_frame.png")
    assert fetch(url, method, content=b"other").status_code in {400, 403, 405}
    assert fetch(url).content == FILES["4/first_frame.png"]


def test_without_a_bucket_links_are_null_and_nothing_is_wrong(object_server, home):
    given = object_server.settings(home)
    publish_subnet(given)
    with Server(API_SETTINGS, given) as running:
        submit(running, task_id=4)
        for answer in details(running):
            assert set(links_of(answer).values()) == {None}
        assert running.get("/health").json()["problems"] == []


def test_without_a_key_links_are_null_and_health_says_so(settings):
    given = without_key(settings)
    publish_subnet(given)
    with Server(API_SETTINGS, given) as running:
        submit(running, task_id=4)
        for answer in details(running):
            assert set(links_of(answer).values()) == {None}
        health = running.get("/health").json()
        assert (health["status"], health["problems"]) == ("degraded", [NO_KEY])


def test_a_key_of_boto3s_own_chain_signs(settings, files, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["reader"][0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["reader"][1])
    given = without_key(settings)
    publish_subnet(given)
    with Server(API_SETTINGS, given) as running:
        submit(running, task_id=4)
        _, of_miner = details(running)
        for path, url in links_of(of_miner).items():
            assert fetch(url).content == FILES[path]
        assert running.get("/health").json()["problems"] == []


def followed(settings):
    links = MediaLinks(ApiSettings(), without_key(settings), now_unix=lambda: START)
    links.open()
    return links


def test_a_temporary_key_brings_its_token(settings, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "TEMPORARY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/token")
    links = followed(settings)
    assert "&X-Amz-Security-Token=a%2Ftoken&" in links.url("4/first_frame.png")
    links.close()


def test_what_a_program_says_that_gives_no_key_is_shown_nowhere(settings, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    program = "sh -c 'echo the-secret; echo the-secret >&2; exit 1'"
    (tmp_path / "aws-config").write_text(f"[default]\ncredential_process = {program}\n")
    links = followed(settings)
    assert links.url("4/first_frame.png") is None
    assert links.problem == f"{NO_KEY} (CredentialRetrievalError)"
    assert links.problem in caplog.text
    assert "the-secret" not in caplog.text
    links.close()


class Role:
    """A key that is renewed, and sometimes cannot be."""

    def __init__(self):
        self.key_id = "FIRST"

    def get_frozen_credentials(self):
        if self.key_id is None:
            raise OSError("the-secret")
        return self

    @property
    def access_key(self):
        return self.key_id

    secret_key = "a secret"
    token = None


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_key_that_was_renewed_signs_from_then_on(settings, monkeypatch):
    role = Role()
    monkeypatch.setattr(media_module, "_found_in_chain", lambda: role)
    monkeypatch.setattr(media_module, "CHAIN_POLL_SECONDS", 0.01)
    links = followed(settings)
    assert "Credential=FIRST%2F" in links.url("k")
    role.key_id = "SECOND"
    until(lambda: "Credential=SECOND%2F" in links.url("k"))
    role.key_id = None
    until(lambda: links.url("k") is None)
    assert links.problem == f"{NO_KEY} (OSError)"
    role.key_id = "THIRD"
    until(lambda: links.url("k") is not None)
    assert links.problem is None
    links.close()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"s3_endpoint_url": "https://me:the-secret@objects.example"}, "endpoint"),
        ({"s3_endpoint_url": "", "s3_region": "auto"}, "region"),
        ({"s3_samples_bucket": "../the-secret"}, "bucket"),
    ],
)
def test_what_cannot_be_signed_is_a_problem_and_no_crash(settings, values, problem):
    given = settings.model_copy(update=values)
    publish_subnet(given)
    with Server(API_SETTINGS, given) as running:
        submit(running, task_id=4)
        for answer in details(running):
            assert set(links_of(answer).values()) == {None}
        (said,) = running.get("/health").json()["problems"]
    assert problem in said
    assert "the-secret" not in said


@pytest.fixture
def clock():
    return [float(START)]


def timed(settings, clock, **values):
    return MediaLinks(ApiSettings(**values), settings, now_unix=lambda: clock[0])


def test_a_link_is_given_again_for_half_of_its_life(settings, clock):
    links = timed(settings, clock)
    first = links.url("k")
    clock[0] += HOUR / 2 - 1
    assert links.url("k") == first
    clock[0] += 1
    second = links.url("k")
    assert second != first
    clock[0] -= HOUR
    assert links.url("k") not in {first, second}


def test_links_are_kept_up_to_a_number_the_latest_used_first(settings, clock):
    links = timed(settings, clock, media_urls_kept=2)
    first = {key: links.url(key) for key in ("a", "b")}
    clock[0] += 60
    assert links.url("a") == first["a"]
    links.url("c")
    assert links.url("a") == first["a"]
    assert links.url("b") != first["b"]
    assert len(links._kept) == 2


def test_no_link_is_kept_where_none_may_be(settings, clock):
    links = timed(settings, clock, media_urls_kept=0)
    first = links.url("k")
    clock[0] += 1
    assert links.url("k") != first


def test_threads_share_links(settings, clock):
    links = timed(settings, clock, media_urls_kept=5)
    expected = {str(number): timed(settings, clock).url(str(number)) for number in range(20)}
    begin, wrong = threading.Barrier(8), []

    def ask(offset):
        begin.wait()
        for number in range(2_000):
            key = str((number * 7 + offset) % 20)
            if links.url(key) != expected[key]:
                wrong.append(key)

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(links._kept) == 5


@pytest.mark.parametrize(
    "values", [{"media_url_seconds": 0}, {"media_url_seconds": 604_801}, {"media_urls_kept": -1}]
)
def test_settings_outside_of_what_storage_takes(values):
    with pytest.raises(ValidationError):
        ApiSettings(**values)


def test_the_secret_is_shown_nowhere(settings, files, serving, caplog):
    caplog.set_level(logging.DEBUG)
    links = MediaLinks(ApiSettings(), settings)
    url = links.url(generated_video_key(4, OLD))
    submit(serving, task_id=4)
    shown = [repr(settings), repr(links), repr(vars(links)), url, fetch(flipped(url)).text]
    shown += [serving.get(path).text for path in ("/tasks/4", f"/tasks/4/miner/{OLD}", "/health")]
    for text in (*shown, caplog.text):
        assert not any(secret in text for secret in SECRETS)


def test_a_worker_with_a_key_of_its_own_loads_no_boto3():
    program = (
        "import sys; from api.media import MediaLinks; from api.settings import ApiSettings\n"
        "from warehouse.settings import WarehouseSettings\n"
        "links = MediaLinks(ApiSettings(), WarehouseSettings(s3_samples_bucket='samples',\n"
        "    s3_endpoint_url='http://127.0.0.1:9', s3_read_access_key_id='a',\n"
        "    s3_read_secret_access_key='b'))\n"
        "links.open(); assert links.url('k')\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
