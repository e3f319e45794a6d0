"""A warehouse in a bucket of a real S3 server: what readers see, whatever happens to publishers."""

import json
import time
from dataclasses import replace

import polars as pl
import pytest

from tests.object_storage import Faults
from tests.warehouse.builders import append, sample
from tests.warehouse.test_generation import EMPTY, info
from warehouse import generation as generation_module
from warehouse.archive import Archive, ArchiveError
from warehouse.bucket import POINTER, Pointer, follow, read_pointer
from warehouse.export import export_submitted, export_votes
from warehouse.generation import GenerationError, Generations, StaleRunError, open_generation
from warehouse.objects import ObjectMissingError, ObjectStorageError, ObjectStore
from warehouse.publication import publish
from warehouse.publishing import Removed, WarehouseBucket, open_bucket
from warehouse.sqlite_log import SqliteLog

CHAIN = {"snapshot": "1-0123456789abcdef.parquet", "synced_at_ms": 1, "block": 1}


class Publisher:
    """A machine with a log and an archive of its own that publishes to the bucket."""

    def __init__(self, settings):
        self.settings = settings
        self.log = SqliteLog(settings)
        self.archive = Archive(settings)
        self.generations = Generations(settings)

    def vote(self, task=1, **values):
        append(self.log, sample("miner", task, **values))
        export_votes(self.archive, self.log, self.log.head())

    def publish(self, before_the_pointer=lambda: None, netuid=99):
        bucket = open_bucket(self.settings)
        try:
            manifest = self.archive.manifest()
            made_from = {"watermark": manifest.watermark, "metagraph_synced_at_ms": 1}
            bucket.catch_up(self.generations, netuid)
            stored = bucket.put_archive(manifest)
            chain_snapshot = bucket.put_content("snapshots/1-0123456789abcdef.parquet", b"PAR1")

            def into_bucket(generation):
                before_the_pointer()
                bucket.publish_generation(
                    generation,
                    made_from=made_from,
                    netuid=netuid,
                    manifest=stored,
                    chain_snapshot=chain_snapshot,
                    chain=CHAIN,
                )

            return publish(
                self.generations,
                EMPTY,
                info(**made_from, netuid=netuid),
                self.archive.files(manifest),
                before_current=into_bucket,
            )
        finally:
            bucket.close()

    def is_of_the_log_of(self, other):
        manifest = replace(self.archive.manifest(), log_id=other.archive.log_id())
        self.archive.replace_manifest(manifest)

    def publish_archive(self):
        bucket = open_bucket(self.settings)
        bucket.catch_up(self.generations, 99)
        return bucket.publish_archive(self.archive.manifest())

    def retain(self, **values):
        bucket = WarehouseBucket(self.settings.model_copy(update=values), self.store(self.settings))
        bucket.catch_up(self.generations, 99)
        return bucket.retain()

    @staticmethod
    def store(settings):
        return ObjectStore(settings, *settings.warehouse_bucket)


@pytest.fixture
def settings_of(object_server, bucket, tmp_path):
    def make(name, **values):
        values = {"warehouse_url": f"s3://{bucket}/leoma/main", **values}
        return object_server.settings(tmp_path / name, **values)

    return make


@pytest.fixture
def publisher(settings_of):
    made = Publisher(settings_of("publisher"))
    yield made
    made.log.close()


@pytest.fixture
def store(settings_of):
    return Publisher.store(settings_of("store"))


@pytest.fixture
def faults(object_server):
    with Faults(object_server.port) as proxy:
        yield proxy


def pointed(store):
    return Pointer.from_json(read_pointer(store).content)


def age(monkeypatch):
    """Have everything that is stored now count as two hours old."""
    now = time.time_ns
    monkeypatch.setattr("warehouse.publishing.time.time_ns", lambda: now() + 7_200 * 10**9)


def keys(store):
    return {one.key for one in store.listed("")}


def test_the_working_copy_is_a_directory_below_the_home(publisher):
    assert publisher.generations.directory.is_relative_to(publisher.settings.leoma_home)


def test_a_published_generation_is_found_by_a_reader_elsewhere(publisher, settings_of, store):
    assert follow(store, Generations(settings_of("reader"))) is None
    publisher.vote()
    published = publisher.publish()
    reader = Generations(settings_of("reader"))
    seen = follow(store, reader)
    assert reader.current().snapshot_id == published.snapshot_id
    assert reader.current().path.read_bytes() == published.path.read_bytes()
    assert reader.made_from() == publisher.generations.made_from()
    with open_generation(reader.current()) as connection:
        assert connection.execute("SELECT watermark FROM generation").fetchall() == [(2,)]
    assert follow(store, reader, seen) == seen


def test_everything_that_the_pointer_names_is_in_the_bucket(publisher, store):
    publisher.vote(1)
    publisher.vote(250)
    publisher.publish()
    pointer = pointed(store)
    manifest = publisher.archive.manifest()
    named = {f"archive/{part.file}" for part in manifest.parts()}
    assert named
    files = (
        pointer.generation, pointer.archive_files, pointer.manifest, pointer.chain_snapshot
    )  # fmt: skip
    assert {file.key for file in files} | named | {POINTER, "conditions"} == keys(store)
    for part in manifest.parts():
        stored = store.get(f"archive/{part.file}").content
        assert stored == publisher.archive.content(part)
    for file in files:
        assert len(store.get(file.key).content) == file.size


def test_an_analyst_reads_the_archive_straight_from_the_bucket(publisher, store, object_server):
    publisher.vote(1)
    publisher.vote(1, passed=False)
    publisher.vote(250)
    publisher.publish()
    manifest = json.loads(store.get(pointed(store).manifest.key).content)
    files = [f"{store.url}archive/{part['file']}" for part in manifest["votes"].values()]
    settings = publisher.settings
    votes = pl.scan_parquet(
        files,
        storage_options={
            "aws_endpoint_url": object_server.url,
            "aws_region": "auto",
            "aws_access_key_id": settings.s3_read_access_key_id,
            "aws_secret_access_key": settings.s3_read_secret_access_key.get_secret_value(),
        },
    )
    found = votes.sort("seq").select("task_id", "is_passed").collect()
    assert found.rows() == [(1, False), (250, True)]


def test_only_what_is_new_is_sent(publisher, store):
    publisher.vote(1)
    publisher.vote(250)
    publisher.publish()
    before = {one.key: one.modified_at_ms for one in store.listed("archive/votes/0/")}
    publisher.vote(250, passed=False)
    publisher.publish()
    assert {one.key: one.modified_at_ms for one in store.listed("archive/votes/0/")} == before
    assert len(list(store.listed("archive/votes/10/"))) == 2


def test_a_later_state_of_the_archive_is_published_beside_the_generation(publisher, store):
    publisher.vote()
    published = publisher.publish()
    assert not publisher.publish_archive()
    export_submitted(publisher.archive, publisher.log, publisher.log.head(), 10)
    assert publisher.publish_archive()
    pointer = pointed(store)
    assert pointer.snapshot_id == published.snapshot_id
    manifest = json.loads(store.get(pointer.manifest.key).content)
    assert (manifest["texts_watermark"], manifest["submissions_watermark"]) == (2, 2)
    assert f"archive/{manifest['submissions'][0]['file']}" in keys(store)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_publishers_one_wins_and_the_other_publishes_nothing(
    publisher, settings_of, store, is_first
):
    rival = Publisher(settings_of("rival"))
    # The same log: what two machines on one log server would see.
    for machine in (publisher, rival):
        machine.vote()
    rival.is_of_the_log_of(publisher)
    if not is_first:
        publisher.publish()
    winner = []
    with pytest.raises(StaleRunError, match="publishes nothing"):
        rival.publish(before_the_pointer=lambda: winner.append(publisher.publish()))
    assert pointed(store).snapshot_id == winner[0].snapshot_id
    # The loser serves what the winner published, as soon as it looks.
    loser = rival.generations.current()
    assert loser is None or loser.snapshot_id != winner[0].snapshot_id
    follow(store, rival.generations)
    assert rival.generations.current().snapshot_id == winner[0].snapshot_id
    rival.log.close()


def test_a_publisher_whose_archive_is_behind_publishes_nothing(publisher, settings_of, store):
    rival = Publisher(settings_of("rival"))
    rival.vote()
    rival.is_of_the_log_of(publisher)
    publisher.vote(1)
    publisher.vote(2)
    published = publisher.publish()
    with pytest.raises(StaleRunError, match="it is older"):
        rival.publish()
    assert pointed(store).snapshot_id == published.snapshot_id
    rival.log.close()


def test_the_bucket_of_another_subnet_is_left_alone(publisher, store):
    publisher.vote()
    publisher.publish()
    before = read_pointer(store)
    with pytest.raises(GenerationError, match="netuid 99, not of 12"):
        publisher.publish(netuid=12)
    assert read_pointer(store) == before


@pytest.mark.parametrize("ignored", ["IfNoneMatch", "IfMatch"])
def test_a_service_that_ignores_conditions_is_refused(publisher, store, monkeypatch, ignored):
    publisher.vote()
    publisher.publish()
    before = read_pointer(store)
    put = ObjectStore.put

    def careless(self, key, content, *, if_match=None, is_new=False, **others):
        conditions = {
            "if_match": None if ignored == "IfMatch" else if_match,
            "is_new": is_new and ignored != "IfNoneMatch",
        }
        return put(self, key, content, **conditions, **others)

    monkeypatch.setattr(ObjectStore, "put", careless)
    with pytest.raises(GenerationError, match="two publishers could both win"):
        publisher.publish()
    assert read_pointer(store) == before


def test_a_publication_whose_answer_was_lost_is_seen_to_have_happened(
    publisher, store, monkeypatch
):
    publisher.vote()
    publisher.publish()
    put = ObjectStore.put

    def losing(self, key, content, **others):
        etag = put(self, key, content, **others)
        if key == POINTER:
            raise ObjectStorageError("the answer was lost")
        return etag

    monkeypatch.setattr(ObjectStore, "put", losing)
    published = publisher.publish()
    assert pointed(store).snapshot_id == published.snapshot_id
    assert publisher.generations.current() == published


@pytest.mark.parametrize("mode", ["refuse", "stall", "unavailable", "cut", "lose"])
def test_a_bucket_that_fails_leaves_everything_as_it_was(
    publisher, store, object_server, mode, tmp_path
):
    publisher.vote()
    first = publisher.publish()
    before = read_pointer(store)
    publisher.vote(2)
    with Faults(object_server.port) as faults:
        faults.cut_after = 700
        failing = publisher.settings.model_copy(
            update={
                "s3_endpoint_url": faults.url, "s3_timeout_seconds": 0.3, "s3_attempts_max": 1
            }
        )  # fmt: skip
        machine = Publisher(failing)
        faults.mode = mode
        with pytest.raises(ObjectStorageError):
            machine.publish()
        machine.log.close()
        # From the moment just before the pointer, too: all content is there, and nobody sees it.
        faults.mode = "pass"
        machine = Publisher(failing)

        def fail():
            faults.mode = mode

        with pytest.raises(ObjectStorageError):
            machine.publish(before_the_pointer=fail)
        machine.log.close()
    assert read_pointer(store) == before
    assert publisher.generations.current() == first
    assert publisher.publish().snapshot_id > first.snapshot_id


def test_a_reader_keeps_the_last_good_generation_through_an_outage(
    publisher, settings_of, store, object_server
):
    publisher.vote()
    publisher.publish()
    with Faults(object_server.port) as faults:
        settings = settings_of("reader", s3_endpoint_url=faults.url, s3_attempts_max=1)
        reader, there = Generations(settings), Publisher.store(settings)
        seen = follow(there, reader)
        served = reader.current()
        publisher.vote(2)
        published = publisher.publish()
        faults.mode = "unavailable"
        with pytest.raises(ObjectStorageError):
            follow(there, reader, seen)
        assert reader.current() == served
        faults.mode = "pass"
        assert follow(there, reader, seen) != seen
    assert reader.current().snapshot_id == published.snapshot_id


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone"])
def test_a_reader_never_takes_a_generation_that_is_not_what_was_published(
    publisher, settings_of, store, damage
):
    publisher.vote()
    publisher.publish()
    reader = Generations(settings_of("reader"))
    seen = follow(store, reader)
    served = reader.current()
    publisher.vote(2)
    publisher.publish()
    key = pointed(store).generation.key
    content = store.get(key).content
    if damage == "gone":
        store.delete([key])
    else:
        store.put(key, content[:-1] if damage == "shorter" else content[:-1] + b"!")
    with pytest.raises(ObjectStorageError):
        follow(store, reader, seen)
    assert reader.current() == served
    assert not list(reader.directory.glob(f"{pointed(store).snapshot_id}.duckdb"))
    store.put(key, content)
    follow(store, reader, seen)
    assert reader.current().snapshot_id == pointed(store).snapshot_id


def test_a_local_file_that_was_cut_is_brought_again(publisher, settings_of, store):
    publisher.vote()
    published = publisher.publish()
    reader = Generations(settings_of("reader"))
    reader.directory.mkdir(parents=True)
    (reader.directory / published.path.name).write_bytes(published.path.read_bytes()[:-5])
    follow(store, reader)
    assert reader.current().path.read_bytes() == published.path.read_bytes()


@pytest.mark.parametrize("is_gone", [True, False])
def test_the_current_generation_is_brought_again_when_its_file_was_cut(
    publisher, settings_of, store, is_gone
):
    publisher.vote()
    published = publisher.publish()
    reader = Generations(settings_of("reader"))
    follow(store, reader)
    path = reader.current().path
    content = path.read_bytes()
    path.unlink()
    if not is_gone:
        path.write_bytes(content[:-5])
    # A courier that starts looks anew.
    follow(store, reader)
    assert path.read_bytes() == published.path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"snapshot_id": "../../etc"},
        {"watermark": "7"},
        {"netuid": None},
        {"chain": []},
        {"generation": {"key": "generations/../../x", "size": 1, "sha256": "0" * 64}},
        {"generation": {"key": "/etc/passwd", "size": 1, "sha256": "0" * 64}},
        {"generation": {"key": "generations/x", "size": "1", "sha256": "0" * 64}},
        {"generation": {"key": "generations/x", "size": 1, "sha256": "short"}},
        {"generation": None},
        {"manifest": {"key": 5, "size": 1, "sha256": "0" * 64}},
        None,
    ],
)
def test_a_pointer_that_names_nothing_sensible_is_refused(publisher, settings_of, store, change):
    publisher.vote()
    publisher.publish()
    document = json.loads(read_pointer(store).content)
    content = json.dumps({**document, **change}) if change else "<html>"
    store.put(POINTER, content.encode())
    reader = Generations(settings_of("reader"))
    with pytest.raises(GenerationError, match="cannot be read"):
        follow(store, reader)
    assert reader.current() is None


def test_a_pointer_that_is_gone_is_an_error_and_not_a_beginning(publisher, settings_of, store):
    publisher.vote()
    publisher.publish()
    seen = follow(store, Generations(settings_of("reader")))
    store.delete([POINTER])
    with pytest.raises(ObjectMissingError):
        follow(store, Generations(settings_of("reader")), seen)


def test_a_file_that_was_damaged_here_does_not_spread(publisher, store):
    publisher.vote()
    (part,) = publisher.archive.manifest().votes.values()
    path = publisher.archive.directory / part.file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArchiveError, match="damaged"):
        publisher.publish()
    assert keys(store) <= {"snapshots/1-0123456789abcdef.parquet"}


def test_retention_keeps_what_the_pointer_or_a_kept_generation_names(publisher, store, monkeypatch):
    published = []
    for number in range(4):
        publisher.vote(1, passed=number % 2 == 0)
        published.append(publisher.publish().snapshot_id)
    # All of one hour: the newest two, and nothing for the hours.
    few = {"generations_kept": 2, "generations_hourly_days": 0}
    assert publisher.retain(**few) == Removed(2, 0)
    there = {key.removeprefix("generations/") for key in keys(store) if "generations/" in key}
    assert {name.split(".")[0] for name in there} == set(published[2:])
    # Files that nothing names stay for an hour: their publisher may be on its way.
    assert len(list(store.listed("archive/votes/"))) == 4
    age(monkeypatch)
    removed = publisher.retain(**few)
    assert removed.archive_files == 2 + 3  # old parts, and old manifests
    assert len(list(store.listed("archive/votes/"))) == 2
    for snapshot_id in published[2:]:
        names = json.loads(store.get(f"generations/{snapshot_id}.json").content)
        for name in names["votes"]:
            assert store.get(f"archive/{name}").content
    assert store.get(pointed(store).manifest.key).content
    assert publisher.retain(**few).archive_files == 0


def test_retention_keeps_the_last_of_every_hour(publisher, store, monkeypatch):
    now = time.time_ns()
    published = []
    for minutes in (130, 125, 65, 5, 0):
        monkeypatch.setattr(
            generation_module.time, "time_ns", lambda ago=minutes: now - ago * 60 * 10**9
        )
        publisher.vote(minutes)
        published.append(publisher.publish().snapshot_id)
    monkeypatch.undo()
    publisher.retain(generations_kept=2, generations_hourly_days=1)
    kept = {key.split("/")[1].split(".")[0] for key in keys(store) if "generations/" in key}
    hours = {}
    for snapshot_id in published:
        hours[snapshot_id[:11]] = snapshot_id
    assert kept == {*published[-2:], *hours.values()}


def test_a_generation_on_its_way_is_not_removed(publisher, store):
    publisher.vote()
    publisher.publish()
    store.put("generations/99991231T235959999Z-00000000.duckdb", b"on its way")
    publisher.retain(generations_kept=2, generations_hourly_days=0)
    assert "generations/99991231T235959999Z-00000000.duckdb" in keys(store)


def test_retention_removes_nothing_when_it_cannot_know_what_is_named(publisher, store, monkeypatch):
    for number in range(3):
        publisher.vote(1, passed=number % 2 == 0)
        published = publisher.publish()
    store.delete([f"generations/{published.snapshot_id}.json"])
    before = keys(store)
    age(monkeypatch)
    with pytest.raises(ObjectStorageError):
        publisher.retain(generations_kept=2, generations_hourly_days=0)
    assert keys(store) == before


def test_an_archive_of_the_first_release_is_published_with_sizes(publisher, store):
    publisher.vote()
    manifest = publisher.archive.manifest()
    document = json.loads(manifest.as_json())
    for part in document["votes"].values():
        del part["size"]
    (publisher.archive.directory / "manifest.json").write_text(json.dumps(document))
    publisher.publish()
    published = json.loads(store.get(pointed(store).manifest.key).content)
    assert [part["size"] for part in published["votes"].values()] == [
        len(publisher.archive.content(part)) for part in manifest.votes.values()
    ]


def test_the_warehouse_of_another_log_is_left_alone(publisher, settings_of, store):
    publisher.vote()
    published = publisher.publish().snapshot_id
    stranger = Publisher(settings_of("stranger"))
    # It has more of everything, and what it has are other records.
    for task in range(1, 6):
        stranger.vote(task)
    before = keys(store)
    for act in (stranger.publish, stranger.publish_archive, stranger.retain):
        with pytest.raises(GenerationError, match="the warehouse of another log"):
            act()
    stranger.log.close()
    assert keys(store) == before
    assert pointed(store).snapshot_id == published
    publisher.vote(2)
    assert publisher.publish().snapshot_id == pointed(store).snapshot_id


@pytest.mark.parametrize("is_first", [True, False])
def test_a_publication_that_was_ended_goes_on_where_it_was(
    publisher, store, faults, monkeypatch, is_first
):
    if not is_first:
        publisher.vote(0)
        publisher.publish()
    for task in range(100, 3_100, 100):
        publisher.vote(task)
    faults.puts.clear()
    there = {one.key for one in store.listed("archive/votes/")}
    cut = publisher.settings.model_copy(
        update={"s3_endpoint_url": faults.url, "s3_attempts_max": 1, "s3_concurrency_max": 1}
    )
    machine = Publisher(cut)
    content, sent = Archive.content, []

    def ending(archive, part):
        sent.append(part.file)
        if len(sent) > 12:
            faults.mode = "refuse"
        return content(archive, part)

    monkeypatch.setattr(Archive, "content", ending)
    with pytest.raises(ObjectStorageError):
        machine.publish()
    monkeypatch.undo()
    assert len(list(store.listed("archive/votes/"))) == len(there) + 12
    faults.mode = "pass"
    faults.puts.clear()
    machine.publish()
    machine.log.close()
    assert sum(b"/archive/votes/" in line for line in faults.puts) == 30 - 12
    named = {f"archive/{part.file}" for part in publisher.archive.manifest().votes.values()}
    assert {one.key for one in store.listed("archive/votes/")} == named


def test_what_retention_may_be_about_to_remove_is_sent_again(publisher, store, monkeypatch):
    publisher.vote(0)
    publisher.publish()
    for task in range(100, 3_100, 100):
        publisher.vote(task)
    for part in publisher.archive.manifest().votes.values():
        store.put(f"archive/{part.file}", publisher.archive.content(part))
    before = {one.key: one.modified_at_ms for one in store.listed("archive/votes/")}
    time.sleep(1.1)  # the server's times are whole seconds
    age(monkeypatch)
    publisher.publish()
    after = {one.key: one.modified_at_ms for one in store.listed("archive/votes/")}
    again = {key for key in after if after[key] > before[key]}
    # All but what the pointer names.
    assert len(again) == 30
    assert not any(key.startswith("archive/votes/0") for key in again)


def test_what_else_lies_among_generations_is_left_alone(publisher, store):
    publisher.vote()
    publisher.publish()
    store.put("generations/2024-copy.duckdb", b"somebody's")
    assert publisher.retain(generations_kept=2).generations == 0
    assert store.get("generations/2024-copy.duckdb").content == b"somebody's"


@pytest.mark.parametrize("content", [b"[" * 50_000, b" " * 70_000, b"{}", b"\xff"])
def test_a_pointer_that_is_none_ends_nothing(publisher, settings_of, store, content):
    publisher.vote()
    publisher.publish()
    reader = Generations(settings_of("reader"))
    follow(store, reader)
    current = reader.current()
    store.put(POINTER, content)
    with pytest.raises((GenerationError, ObjectStorageError)):
        follow(store, reader)
    assert reader.current() == current
