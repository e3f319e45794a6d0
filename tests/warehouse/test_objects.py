"""Objects on a real S3 server, and every way in which it can fail us."""

import hashlib
import threading

import pytest

from tests.object_storage import KEYS, Faults
from warehouse.objects import (
    ObjectChangedError,
    ObjectMissingError,
    ObjectStorageError,
    ObjectStore,
)
from warehouse.settings import WarehouseSettings

SECRETS = [secret for _, secret, _ in KEYS.values()]


@pytest.fixture
def store(object_server, home, bucket):
    with_prefix = ObjectStore(object_server.settings(home), bucket, "some/where/")
    yield with_prefix
    with_prefix.close()


@pytest.fixture
def faults(object_server):
    with Faults(object_server.port) as proxy:
        yield proxy


def behind(faults, object_server, home, bucket, **values):
    values = {"s3_timeout_seconds": 0.5, "s3_attempts_max": 1, **values}
    return ObjectStore(object_server.settings(home, s3_endpoint_url=faults.url, **values), bucket)


def test_what_was_stored_is_read_again(store, object_server, bucket):
    etag = store.put("a/b.json", b"{}", content_type="application/json")
    assert store.get("a/b.json") == (b"{}", etag)
    behind_the_scenes = object_server.client().get_object(Bucket=bucket, Key="some/where/a/b.json")
    assert behind_the_scenes["ContentType"] == "application/json"


def test_an_object_that_did_not_change_is_not_sent_again(store):
    first = store.put("one", b"1")
    assert store.get("one", unless=first) is None
    second = store.put("one", b"2")
    assert store.get("one", unless=first) == (b"2", second)


def test_a_missing_object_is_told_from_a_missing_bucket(object_server, home, store):
    with pytest.raises(ObjectMissingError, match="NoSuchKey"):
        store.get("nothing")
    elsewhere = ObjectStore(object_server.settings(home), "no-such-bucket")
    with pytest.raises(ObjectStorageError, match="NoSuchBucket") as caught:
        elsewhere.get("nothing")
    assert not isinstance(caught.value, ObjectMissingError)
    with pytest.raises(ObjectStorageError, match=r"NoSuchBucket|AccessDenied"):
        elsewhere.put("one", b"1")


def test_a_conditional_write_replaces_only_what_was_seen(store):
    first = store.put("pointer", b"1", is_new=True)
    with pytest.raises(ObjectChangedError):
        store.put("pointer", b"2", is_new=True)
    second = store.put("pointer", b"2", if_match=first)
    with pytest.raises(ObjectChangedError):
        store.put("pointer", b"3", if_match=first)
    assert store.get("pointer") == (b"2", second)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_writers_at_the_same_moment_one_wins(store, is_first):
    condition = {"is_new": True} if is_first else {"if_match": store.put("pointer", b"old")}
    begin, outcomes = threading.Barrier(12), []

    def write(number):
        begin.wait()
        try:
            store.put("pointer", str(number).encode(), **condition)
        except ObjectChangedError:
            outcomes.append(None)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number in outcomes if number is not None]
    assert len(outcomes) == 12
    assert [str(number).encode() for number in winners] == [store.get("pointer").content]


def test_a_listing_goes_over_all_pages(store, monkeypatch):
    for number in range(5):
        store.put(f"list/{number}", b"x" * number)
    client = store._client
    asked = []

    def small_pages(**asked_for):
        asked.append(asked_for)
        return whole(**asked_for, MaxKeys=2)

    whole = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", small_pages)
    found = list(store.listed("list/"))
    assert [(one.key, one.size) for one in found] == [(f"list/{n}", n) for n in range(5)]
    assert len(asked) == 3
    assert all(one.modified_at_ms > 1_700_000_000_000 for one in found)


def test_removing_is_no_error_where_nothing_is(store):
    store.put("a", b"1")
    store.delete(["a", "b"])
    assert list(store.listed("")) == []
    store.delete([])


def test_a_download_is_a_durable_file_with_the_bytes_that_were_published(store, tmp_path):
    content = b"generation" * 100_000
    store.put("file", content)
    digest = hashlib.sha256(content).hexdigest()
    store.download("file", tmp_path / "file", size=len(content), sha256=digest)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("published", [b"other bytes!", b"longer than before", b"short", b""])
def test_a_download_of_other_bytes_leaves_nothing(store, tmp_path, published):
    store.put("file", published)
    digest = hashlib.sha256(b"whole content").hexdigest()
    with pytest.raises(ObjectStorageError, match="not what was published"):
        store.download("file", tmp_path / "file", size=12, sha256=digest)
    assert list(tmp_path.glob("*")) == [] or list(tmp_path.glob("file*")) == []


def test_a_file_is_stored(store, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    store.put_file("file", tmp_path / "file")
    assert store.get("file").content == b"x" * 3_000_000


def test_a_key_that_may_only_read_cannot_write(object_server, home, bucket, store):
    store.put("one", b"1")
    reader = ObjectStore(object_server.settings(home), bucket, "some/where/", access="read")
    assert reader.get("one").content == b"1"
    with pytest.raises(ObjectStorageError, match="AccessDenied"):
        reader.put("one", b"2")
    with pytest.raises(ObjectStorageError, match="AccessDenied"):
        reader.delete(["one"])
    assert store.get("one").content == b"1"


def test_a_wrong_secret_is_refused_and_never_shown(object_server, home, bucket):
    settings = object_server.settings(home, s3_write_secret_access_key="wrong-secret")
    with pytest.raises(ObjectStorageError, match="SignatureDoesNotMatch") as caught:
        ObjectStore(settings, bucket).put("one", b"1")
    shown = f"{caught.value} {caught.value!r} {settings!r} {settings.model_dump()}"
    assert not any(secret in shown for secret in ["wrong-secret", *SECRETS])


@pytest.mark.parametrize("mode", ["refuse", "stall", "unavailable", "cut", "lose"])
def test_a_service_that_fails_is_an_error_and_never_an_empty_answer(
    faults, object_server, bucket, mode, tmp_path
):
    store = behind(faults, object_server, tmp_path / "home", bucket)
    store.put("one", b"1" * 5_000)
    faults.mode = mode
    # Far below one request's head where nothing of it may arrive whole.
    faults.cut_after = 100
    digest = hashlib.sha256(b"1" * 5_000).hexdigest()
    for call in (
        lambda: store.get("one"),
        lambda: store.put("two", b"2"),
        lambda: list(store.listed("")),
        lambda: store.delete(["one"]),
        lambda: store.download("one", tmp_path / "file", size=5_000, sha256=digest),
    ):
        with pytest.raises(ObjectStorageError) as caught:
            call()
        assert type(caught.value) is ObjectStorageError
    assert not list(tmp_path.glob("*file*"))
    faults.mode = "pass"
    if mode != "lose":  # there all was applied, and only the answers were lost
        assert store.get("one").content == b"1" * 5_000


def test_an_upload_that_is_cut_leaves_no_part_of_an_object(
    faults, object_server, home, bucket, store
):
    upstream = behind(faults, object_server, home, bucket)
    upstream.put("big", b"old" * 100)
    faults.mode = "cut"
    faults.cut_after = 400_000
    with pytest.raises(ObjectStorageError):
        upstream.put("big", b"new" * 1_000_000)
    faults.mode = "pass"
    assert upstream.get("big").content == b"old" * 100


def test_a_passing_failure_is_tried_again(faults, object_server, home, bucket):
    store = behind(faults, object_server, home, bucket, s3_attempts_max=3)
    faults.mode = "unavailable"
    with pytest.raises(ObjectStorageError, match="SlowDown"):
        store.put("one", b"1")
    assert faults.connections == 3


def test_a_conditional_write_whose_answer_was_lost_is_seen_by_reading(
    faults, object_server, home, bucket
):
    store = behind(faults, object_server, home, bucket)
    first = store.put("pointer", b"1", is_new=True)
    faults.mode = "lose"
    with pytest.raises(ObjectStorageError):
        store.put("pointer", b"2", if_match=first)
    faults.mode = "pass"
    assert store.get("pointer").content == b"2"


def test_an_object_may_take_only_so_long_as_a_whole(object_server, home, bucket, tmp_path):
    store = ObjectStore(object_server.settings(home, s3_transfer_seconds_max=1e-9), bucket)
    with pytest.raises(ObjectStorageError, match="longer than"):
        store.put("one", b"1" * 1_000)
    ObjectStore(object_server.settings(home), bucket).put("one", b"1" * 1_000)
    with pytest.raises(ObjectStorageError, match="longer than"):
        store.get("one")


def test_an_address_that_is_no_s3_is_an_error(object_server, home):
    # The filer answers in JSON and HTML, as a wrong address would.
    settings = object_server.settings(home, s3_endpoint_url=f"{object_server.url}/healthz")
    with pytest.raises(ObjectStorageError) as caught:
        ObjectStore(settings, "bucket").get("one")
    assert type(caught.value) is ObjectStorageError


def test_buckets_may_be_host_names(object_server, home, bucket, virtual_hosts, store):
    settings = object_server.settings(
        home, s3_endpoint_url=virtual_hosts, s3_addressing_style="virtual"
    )
    hosted = ObjectStore(settings, bucket, "some/where/")
    hosted.put("one", b"1")
    assert store.get("one").content == b"1"
    assert [one.key for one in hosted.listed("")] == ["one"]
    assert hosted._client.meta.endpoint_url == virtual_hosts
    hosted.delete(["one"])
    assert list(store.listed("")) == []


def test_an_address_with_a_password_is_refused_and_not_shown(home):
    with pytest.raises(ValueError, match="no user and no password") as caught:
        WarehouseSettings(leoma_home=home, s3_endpoint_url="http://someone:hidden@127.0.0.1")
    assert "hidden" not in str(caught.value)
