"""A machine lost, and another brought up from the bucket alone; on a real S3 server."""

import hashlib
import json

import polars as pl
import pytest

from api.settings import ApiSettings
from cli.main import run
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.run import materialize
from tests.api.servers import Server
from tests.builders import sample_body, signed_headers
from tests.pipelines.test_assets import Subnet
from tests.warehouse.builders import append, hotkey, request, sample
from warehouse.archive import Archive
from warehouse.bucket import Pointer, follow, read_pointer
from warehouse.export import differences
from warehouse.generation import Generations, open_generation
from warehouse.log import SignatureUsedError
from warehouse.objects import ObjectStore
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

ADMIN = ApiSettings(admin_hotkeys=frozenset({hotkey("admin")}))


@pytest.fixture
def subnet(tmp_path, object_server, bucket):
    """A machine that has published, with admins' acts and superseded samples."""
    settings = object_server.settings(tmp_path / "data", warehouse_url=f"s3://{bucket}/leoma")
    made = Subnet(tmp_path, settings)
    made.vote_all("old", 3)
    made.vote_all("young", 5)
    made.vote("v1", "old", 2, passed=False)
    made.log.announce_task(request("admin", {"task_id": 5}, "/tasks"), 5).result(30)
    for name, reason in (("poor", "copies"), ("old", "a thief")):
        body = {"hotkey": hotkey(name), "reason": reason}
        added = request("admin", body, "/blacklist")
        made.log.add_to_blacklist(added, hotkey(name), reason).result(30)
    made.run()
    yield made
    made.log.close()


@pytest.fixture
def store(subnet):
    return ObjectStore(subnet.warehouse, *subnet.warehouse.warehouse_bucket)


@pytest.fixture
def elsewhere(subnet, tmp_path, monkeypatch):
    """Another machine, that knows the bucket and a key that may read; not a file on it."""
    settings = subnet.warehouse.model_copy(update={"leoma_home": tmp_path / "elsewhere"})
    monkeypatch.setenv("LEOMA_HOME", str(settings.leoma_home))
    monkeypatch.setenv("S3_ENDPOINT_URL", settings.s3_endpoint_url)
    monkeypatch.setenv("S3_READ_ACCESS_KEY_ID", settings.s3_read_access_key_id)
    secret = settings.s3_read_secret_access_key.get_secret_value()
    monkeypatch.setenv("S3_READ_SECRET_ACCESS_KEY", secret)
    return settings


def restore(settings, *options):
    return run(["restore", "--from", settings.warehouse_url, *options])


def tables(settings):
    """Everything that is computed, but for what says when."""
    with open_generation(Generations(settings).current()) as connection:
        return connection.execute(
            "SELECT tables_sha256, winner_hotkey, latest_task_id, total_samples FROM generation"
        ).fetchall()


def test_a_lost_machine_comes_back_from_the_bucket_alone(subnet, elsewhere, capsys):
    assert restore(elsewhere) == 0
    said = capsys.readouterr().out
    assert "2 hotkeys on the blacklist and the latest task 5" in said
    assert tables(elsewhere) == tables(subnet.warehouse)
    assert ChainSnapshots(elsewhere).newest_name() == ChainSnapshots(subnet.warehouse).newest_name()
    log = SqliteKeeper(elsewhere)
    assert log.check() == []
    assert log.admin_state() == subnet.log.admin_state()
    assert log.head() > subnet.log.head()
    log.close()
    assert run(["fsck"]) == 0
    assert "its samples begin after 1000048" in capsys.readouterr().out
    # The next run computes the same from what was restored.
    before = tables(elsewhere)
    materialize(subnet.settings, elsewhere)
    assert tables(elsewhere) == before


def test_a_damaged_generation_is_brought_again(subnet, elsewhere):
    assert restore(elsewhere) == 0
    path = Generations(elsewhere).current().path
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    assert restore(elsewhere) == 0
    assert path.read_bytes() == content


def test_the_restored_api_answers_as_the_lost_one_and_goes_on(subnet, elsewhere):
    paths = [
        "/weights", "/scores/rank", "/tasks/latest", "/tasks/2", "/samples/list?limit=500",
        "/blacklist", "/miners/list", f"/tasks/3/miner/{hotkey('young')}",
        f"/samples/task?validator_hotkey={hotkey('v1')}&task_id=2",
    ]  # fmt: skip
    with Server(ADMIN, subnet.warehouse) as server:
        expected = {path: server.get(path).json() for path in paths}
        last_id = expected["/samples/list?limit=500"][0]["id"]
    assert restore(elsewhere) == 0
    with Server(ADMIN, elsewhere) as server:
        assert {path: server.get(path).json() for path in paths} == expected
        blacklisted = server.signed("poor", "POST", "/samples", sample_body(task_id=5))
        assert blacklisted.status_code == 401
        too_late = server.signed("v1", "POST", "/samples", sample_body(task_id=6))
        assert too_late.status_code == 400
        body = sample_body(task_id=2, miner_hotkey=hotkey("young"), passed=False)
        stored = server.signed("v1", "POST", "/samples", body)
        assert stored.status_code == 200, stored.text
        # No id that the lost log may have given to somebody is given again.
        assert stored.json()["id"] > last_id + 100_000
        newest = server.get("/samples/list?limit=500").json()
        assert newest[0] == stored.json()
        assert len(newest) == len(expected["/samples/list?limit=500"])
    materialize(subnet.settings, elsewhere)
    log = SqliteKeeper(elsewhere)
    assert differences(Archive(elsewhere), log, log.head()) == []
    log.close()


def test_what_was_signed_for_the_lost_machine_is_not_accepted_again(subnet, elsewhere):
    used = request("v1", {"a": 1})
    subnet.log.append_samples(used, [sample("young", 4, passed=False)], None).result(30)
    subnet.run()
    assert restore(elsewhere) == 0
    log = SqliteLog(elsewhere)
    with pytest.raises(SignatureUsedError):
        log.append_samples(used, [sample("young", 4, passed=False)], None).result(30)
    log.close()


def test_what_a_surviving_log_has_beyond_the_bucket_is_told_and_kept(
    subnet, elsewhere, tmp_path, capsys
):
    for task in (1, 2):
        subnet.vote("v2", "young", task, passed=False)
    subnet.log.remove_from_blacklist(request("admin"), hotkey("poor")).result(30)
    head = subnet.log.head()
    subnet.log.close()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "log").rename(tmp_path / "elsewhere" / "log")
    assert restore(elsewhere) == 0
    said = capsys.readouterr().out
    assert "had what the bucket did not: 2 samples of 1 validators and 1 acts of admins" in said
    subnet.log = SqliteLog(elsewhere)
    assert subnet.log.head() == head
    assert subnet.log.dropped_through() == 0
    published = materialize(subnet.settings, elsewhere)
    assert published.watermark == head


def test_a_log_that_lacks_nothing_is_said_to(subnet, elsewhere, tmp_path, capsys):
    subnet.log.close()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "log").rename(tmp_path / "elsewhere" / "log")
    assert restore(elsewhere) == 0
    assert "nothing that the bucket lacks" in capsys.readouterr().out
    subnet.log = SqliteLog(elsewhere)


def test_an_older_log_is_left_alone_until_it_is_moved_aside(subnet, elsewhere, capsys):
    log = SqliteLog(elsewhere)
    append(log, sample("young", 1))
    log.close()
    before = elsewhere.log_path.read_bytes()
    assert restore(elsewhere) == 1
    assert "it is an older copy or another log" in capsys.readouterr().err
    assert elsewhere.log_path.read_bytes() == before
    assert Generations(elsewhere).current() is None
    assert restore(elsewhere, "--new-log") == 0
    aside = list(elsewhere.log_path.parent.glob("*.before-restore-*"))
    assert len(aside) == 1
    assert tables(elsewhere) == tables(subnet.warehouse)


def test_another_log_is_not_taken_for_the_one_that_was_published(subnet, elsewhere, capsys):
    log = SqliteLog(elsewhere)
    for task in range(subnet.log.head()):
        append(log, sample("young", task))
    log.close()
    assert restore(elsewhere) == 1
    assert "not the one that the bucket was made from" in capsys.readouterr().err
    assert Generations(elsewhere).current() is None


def test_a_machine_that_has_more_than_the_bucket_is_left_alone(
    subnet, elsewhere, monkeypatch, capsys, store
):
    before = read_pointer(store)
    subnet.vote("v2", "young", 1, passed=False)
    subnet.run()
    store.put("current.json", before.content)
    monkeypatch.setenv("LEOMA_HOME", str(subnet.warehouse.leoma_home))
    current = Generations(subnet.warehouse).current()
    assert restore(subnet.warehouse) == 1
    assert "counts more than the bucket" in capsys.readouterr().err
    assert Generations(subnet.warehouse).current() == current


def test_evidence_that_only_this_machine_has_is_not_put_back(
    subnet, elsewhere, store, capsys, monkeypatch
):
    monkeypatch.setenv("LEOMA_HOME", str(subnet.warehouse.leoma_home))
    # As if the last part of a run, which publishes the evidence, had failed for long.
    pointer = json.loads(read_pointer(store).content)
    manifest = json.loads(store.get(pointer["manifest"]["key"]).content)
    content = json.dumps({**manifest, "submissions_watermark": 0, "submissions": []}).encode()
    digest = hashlib.sha256(content).hexdigest()
    pointer["manifest"] |= {"sha256": digest, "size": len(content)}
    store.put(pointer["manifest"]["key"], content)
    store.put("current.json", json.dumps(pointer).encode())
    before = Archive(subnet.warehouse).manifest()
    assert restore(subnet.warehouse) == 1
    assert "counts more than the bucket" in capsys.readouterr().err
    assert Archive(subnet.warehouse).manifest() == before


@pytest.mark.parametrize("kind", ["votes", "texts", "submissions", "events"])
def test_a_file_of_the_archive_that_is_damaged_or_gone_stops_it(
    subnet, elsewhere, store, kind, capsys
):
    manifest = json.loads(store.get(Pointer.from_json(read_pointer(store).content).manifest.key)[0])
    parts = manifest[kind]
    part = next(iter(parts.values())) if isinstance(parts, dict) else parts[0]
    key = f"archive/{part['file']}"
    content = store.get(key).content
    store.put(key, content[:-1] + b"!")
    assert restore(elsewhere) == 1
    assert "is not what was published" in capsys.readouterr().err
    assert Generations(elsewhere).current() is None
    assert not elsewhere.log_path.exists()
    # Once it is back, the same command goes on where it was.
    store.put(key, content)
    assert restore(elsewhere) == 0
    assert tables(elsewhere) == tables(subnet.warehouse)


def change_acts(subnet, store, change):
    """Put others into the bucket, as one who may write there and can do it well."""
    bucket_archive = Archive(subnet.warehouse)
    manifest = bucket_archive.manifest()
    rows = pl.concat([bucket_archive.read(part) for part in manifest.events])
    with bucket_archive.changing():
        part = bucket_archive.write("events", "changed", change(rows))
        forged = json.loads(manifest.as_json())
        forged["events"] = [vars(part)]
    store.put(f"archive/{part.file}", bucket_archive.content(part))
    content = json.dumps(forged).encode()
    document = json.loads(read_pointer(store).content)
    store.put("archive/manifests/forged.json", content)
    document["manifest"] = {
        "key": "archive/manifests/forged.json",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    store.put("current.json", json.dumps(document).encode())


def test_acts_of_admins_that_are_missing_are_not_passed_over(subnet, elsewhere, store, capsys):
    change_acts(subnet, store, lambda rows: rows.head(1))
    assert restore(elsewhere) == 1
    assert "lacks acts of admins" in capsys.readouterr().err
    assert Generations(elsewhere).current() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": pl.lit("1")}, f"is not signed by {hotkey('admin')}"),
        ({"detail": pl.lit("x")}, f"is not what {hotkey('admin')} signed"),
        ({"subject": pl.lit(hotkey("young"))}, f"is not what {hotkey('admin')} signed"),
        ({"kind": pl.lit("blacklist_removed")}, f"is not what {hotkey('admin')} signed"),
        ({"admin_hotkey": pl.lit(hotkey("young"))}, f"is not signed by {hotkey('young')}"),
    ],
)
def test_acts_that_no_admin_signed_are_not_restored(subnet, elsewhere, capsys, change, message):
    store = ObjectStore(subnet.warehouse, *subnet.warehouse.warehouse_bucket)
    change_acts(subnet, store, lambda rows: rows.with_columns(**change))
    assert restore(elsewhere) == 1
    told = capsys.readouterr().err
    assert "is not proven" in told
    assert message in told
    assert Generations(elsewhere).current() is None
    assert not elsewhere.log_path.exists()


def test_every_snapshot_is_brought_on_demand(subnet, elsewhere):
    first = subnet.synced().name
    subnet.write_metagraph(block=2000)
    subnet.run()
    assert restore(elsewhere) == 0
    directory = ChainSnapshots(elsewhere).directory
    assert not (directory / first).exists()
    assert restore(elsewhere, "--all-snapshots") == 0
    assert ChainSnapshots(elsewhere).read(first).block == 1000
    assert ChainSnapshots(elsewhere).newest().metagraph.block == 2000


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/somewhere", "takes s3://bucket/prefix"),
        ("s3://UPPER/x", "s3://bucket/prefix"),
        ("s3://no-such-bucket/x", "NoSuchBucket"),
    ],
)
def test_a_place_that_is_no_bucket_is_told(elsewhere, capsys, url, message):
    assert run(["restore", "--from", url]) in {1, 2}
    assert message in capsys.readouterr().err


def test_a_bucket_where_nothing_was_published_is_told(elsewhere, object_server, capsys):
    assert run(["restore", "--from", f"s3://{object_server.make_bucket()}/x"]) == 1
    assert "nothing was ever published there" in capsys.readouterr().err
    assert not elsewhere.log_path.exists()


def test_an_api_whose_log_is_older_than_the_tables_refuses_to_guess(subnet, elsewhere, store):
    # A machine that only follows the bucket, or one with an old copy of the log.
    follow(store, Generations(elsewhere))
    with Server(ADMIN, elsewhere) as server:
        assert server.get("/weights").status_code == 200
        assert server.get("/scores/rank").status_code == 200
        for path in ("/samples/list", "/tasks/latest", "/tasks/2"):
            answer = server.get(path)
            assert answer.status_code == 503, path
            assert "Retry-After" in answer.headers
        body = json.dumps(sample_body(task_id=2)).encode()
        headers = signed_headers("v1", body, method="POST", path="/samples", scheme=2)
        refused = server.http.post("/samples", content=body, headers=headers)
        assert refused.status_code == 503
        health = server.get("/health").json()
        assert health["status"] == "degraded"
        assert any("log ends" in problem for problem in health["problems"])
