"""`leoma fsck`: whatever is changed behind the service's back is found, and named."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sqlite3
import threading

import click
import duckdb
import polars as pl
import pytest
import zstandard

from cli.main import run
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.run import keep
from tests.builders import keypair, signed_request
from tests.pipelines.test_assets import Subnet
from tests.warehouse.builders import append, batch, hotkey, request, sample, settings
from warehouse.archive import Archive
from warehouse.backends import open_kept_log
from warehouse.evaluation import evaluation, payload_of
from warehouse.generation import Generations
from warehouse.hotkeys import signed_message
from warehouse.objects import ObjectStore
from warehouse.records import SignedRequest
from warehouse.sqlite_log import SqliteLog

PAGE = 4_096
LOG_PARTS = {"log: order", "log: signed requests", "log: outbox and used signatures"}


def fill(subnet):
    """Samples of each kind, replaced ones too, and acts of each kind."""
    log, thief = subnet.log, hotkey("thief")
    subnet.vote_all("old", 3)
    log.announce_task(request("admin", {"task_id": 5}, "/tasks"), 5).result(30)
    subnet.vote_all("young", 5)
    subnet.vote("v1", "old", 2, passed=False)
    append(subnet.log, sample("old", "legacy"), sample("young", 1, prompt="é"), signer="v2")
    judge(log)
    log.announce_task(request("admin", {"task_id": 5}, "/tasks"), 5).result(30)
    added = request("admin", {"hotkey": thief, "reason": "copies"}, "/blacklist")
    log.add_to_blacklist(added, thief, "copies").result(30)
    removed = signed_request("admin", b"", method="DELETE", path=f"/blacklist/{thief}")
    log.remove_from_blacklist(removed, thief).result(30)
    subnet.run()
    # The texts follow when the weights are out, so the next generation names them.
    subnet.run()


def judge(log):
    """Submissions with an evaluation signature: a good one over a batch, and one that is none."""
    one = sample("old", 4, passed=False)
    signature = keypair("v2").sign(payload_of([one])).hex()
    log.append_samples(
        in_scheme_1("v2", {**batch(one), "signature": signature}, "/samples/batch"),
        [one],
        evaluation(hotkey("v2"), signature, [one]),
    ).result(30)
    one = sample("young", 4, evaluation_signature="0x00")
    given = evaluation(hotkey("v1"), "0x00", [one])
    # In a path any character may be percent-encoded.
    sent = request("v1", batch(one)["samples"][0], "/sampl%65s?a=b")
    log.append_samples(sent, [one], given).result(30)


def in_scheme_1(signer, document, path):
    """A request whose signature covers its body and time alone."""
    sent = request(signer, document, path)
    message = signed_message(
        scheme=1, method="", path="", body=sent.body, timestamp=sent.timestamp, nonce=None
    )
    return dataclasses.replace(sent, scheme=1, nonce=None, signature=keypair(signer).sign(message))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An installation in which nothing is wrong."""
    subnet = Subnet(tmp_path_factory.mktemp("whole"))
    fill(subnet)
    subnet.log.close()
    return subnet.warehouse.leoma_home


@pytest.fixture(scope="module")
def retained(whole, tmp_path_factory):
    """The same, after retention took the first half out of the log."""
    home = tmp_path_factory.mktemp("retained") / "data"
    shutil.copytree(whole, home, symlinks=True)
    log = open_kept_log(settings(home))
    assert log.drop_through(log.head() // 2)
    log.close()
    return home


@pytest.fixture
def home(whole, tmp_path, monkeypatch):
    return copied(whole, tmp_path / "data", monkeypatch)


@pytest.fixture
def retained_home(retained, tmp_path, monkeypatch):
    return copied(retained, tmp_path / "data", monkeypatch)


def copied(source, home, monkeypatch):
    shutil.copytree(source, home, symlinks=True)
    monkeypatch.setenv("LEOMA_HOME", str(home))
    monkeypatch.delenv("WAREHOUSE_URL", raising=False)
    return home


def problems(capsys):
    """Return what fsck finds, by part; that it says so by its exit code is checked here."""
    code = run(["fsck", "--json"])
    told = capsys.readouterr()
    found = json.loads(told.out)["problems"]
    count = sum(map(len, found.values()))
    assert code == (1 if count else 0)
    assert (f"{count} problems" in told.err) == bool(count)
    return {part: texts for part, texts in found.items() if texts}


def content(home):
    """Every file's digest, but for what SQLite makes of nothing beside a log that is opened."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize("which", ["whole", "retained"])
def test_where_nothing_is_wrong_it_says_so_and_changes_nothing(which, request, monkeypatch, capsys):
    home = request.getfixturevalue(which)
    monkeypatch.setenv("LEOMA_HOME", str(home))
    before = content(home)
    assert run(["fsck"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("Nothing is wrong: ")
    assert told.err.count("log: ") == len(LOG_PARTS)  # a bar for each part
    assert content(home) == before


def test_it_runs_beside_a_service_at_work(home, capsys):
    log = SqliteLog(settings(home))
    is_over = threading.Event()

    def submit():
        while not is_over.is_set():
            append(log, sample("old", 4), signer="v1")

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        for _ in range(3):
            assert problems(capsys) == {}
    finally:
        is_over.set()
        thread.join()
        log.close()


def test_after_the_night_s_work_nothing_is_wrong(tmp_path, monkeypatch, capsys):
    subnet = Subnet(tmp_path)
    fill(subnet)
    append(subnet.log, sample("old", 3), signer="v2")
    subnet.run()
    keep(subnet.settings, subnet.warehouse)
    subnet.log.close()
    monkeypatch.setenv("LEOMA_HOME", str(subnet.warehouse.leoma_home))
    assert problems(capsys) == {}


def forge(home, *statements):
    """Change the log past its triggers, as who has the machine can, who then puts them back."""
    with opened(home) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert connection.execute(statement).rowcount, f"it changes nothing: {statement}"
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()


def opened(home):
    return contextlib.closing(sqlite3.connect(home / "log" / "log.sqlite"))


RESULT = "task_id, validator_hotkey, submission_seq, queued_at_ms, due_at_ms"
OF_V1 = f"validator_hotkey = '{hotkey('v1')}'"
OUTBOX = "log: outbox and used signatures"


@pytest.mark.parametrize(
    ("statement", "part", "text"),
    [
        ("UPDATE samples SET passed = 1 - passed WHERE seq = 2", "log: signed requests",
         "submission 1: what is stored of it is not what"),
        ("UPDATE samples SET task = 4 WHERE seq = 2", "log: signed requests", "submission 1:"),
        ("UPDATE sample_texts SET reasoning = 'x' WHERE seq = 2", "log: signed requests",
         "submission 1:"),
        ("UPDATE samples SET miner_id = (SELECT max(id) FROM hotkeys) WHERE seq = 2",
         "log: signed requests", "submission 1:"),
        ("UPDATE submissions SET timestamp = '1' WHERE seq = 1", "log: signed requests",
         f"submission 1 is not signed by {hotkey('v1')}"),
        ("UPDATE submissions SET body = x'00' WHERE seq = 1", "log: signed requests",
         "the body of submission 1 cannot be unpacked"),
        ("UPDATE submissions SET scheme = 3 WHERE seq = 1", "log: signed requests",
         "submission 1 is of no scheme"),
        ("UPDATE submissions SET nonce = 'x' WHERE scheme = 1", "log: signed requests",
         "is of no scheme"),
        # In scheme 1 they are not signed.
        ("UPDATE submissions SET path = '/samples' WHERE scheme = 1", "log: signed requests",
         "holds no SampleSubmission"),
        ("UPDATE submissions SET method = 'PUT' WHERE scheme = 1", "log: signed requests",
         "is a PUT /samples/batch, which takes no samples"),
        ("UPDATE submissions SET evaluation_signature = '00' WHERE seq = 1",
         "log: signed requests", "submission 1:"),
        ("UPDATE submissions SET evaluation_signature = NULL WHERE is_evaluation_verified = 1",
         "log: signed requests", "is not what"),
        ("UPDATE submissions SET is_evaluation_verified = 0 WHERE is_evaluation_verified = 1",
         "log: signed requests", "is not what"),
        ("UPDATE submissions SET is_evaluation_verified = 1 WHERE is_evaluation_verified = 0",
         "log: signed requests", "is not what"),
        ("UPDATE submissions SET received_at_ms = received_at_ms + 1 WHERE seq = 1",
         "log: signed requests", "submission 1:"),
        ("UPDATE samples SET received_at_ms = received_at_ms + 1 WHERE seq = 2",
         "log: signed requests", "submission 1:"),
        ("UPDATE events SET received_at_ms = received_at_ms + 1 WHERE kind = 'blacklist_added'",
         "log: signed requests", "is not what"),
        ("UPDATE outbox SET submission_seq = 1 WHERE task_id = 2", OUTBOX,
         "about task 2 waits for submission 1, which is not the newest"),
        # The first of v1 about it, which later ones have replaced.
        (f"UPDATE outbox SET submission_seq = 5 WHERE task_id = 2 AND {OF_V1}", OUTBOX,
         "about task 2 waits for submission 5, which is not the newest"),
        (f"UPDATE outbox SET validator_hotkey = 'x' WHERE task_id = 2 AND {OF_V1}", OUTBOX,
         "the result of x about task 2"),
        (f"INSERT INTO outbox ({RESULT}) VALUES (77, '{hotkey('v1')}', 1, 0, 0)", OUTBOX,
         "about task 77"),
        ("INSERT INTO spent_signatures VALUES (x'00', 0)", OUTBOX, "1 of the signatures"),
        ("DROP INDEX submissions_signature", "log: order",
         "the index submissions_signature is not that of this version"),
        ("CREATE TRIGGER no_samples BEFORE INSERT ON samples BEGIN SELECT RAISE(IGNORE); END",
         "log: order", "the trigger no_samples is not that of this version"),
        ("UPDATE events SET subject = '4' WHERE kind = 'task_announced'", "log: signed requests",
         "what is stored of it is not what"),
        ("UPDATE events SET detail = NULL WHERE kind = 'blacklist_added'", "log: signed requests",
         "what is stored of it is not what"),
        ("UPDATE events SET kind = 'blacklist_added' WHERE kind = 'blacklist_removed'",
         "log: signed requests", "holds no BlacklistAddition"),
        ("DELETE FROM samples WHERE seq = 2", "log: order", "records are missing"),
        ("DELETE FROM sample_texts WHERE seq = 2", "log: order", "a sample without texts"),
        ("DELETE FROM submissions WHERE seq = 1", "log: order", "a sample without its submission"),
        ("DELETE FROM events", "log: order", "records are missing"),
    ],
)  # fmt: skip
def test_a_log_that_was_changed_is_told(home, capsys, statement, part, text):
    forge(home, statement)
    assert any(text in problem for problem in problems(capsys)[part])


def test_a_log_without_what_refuses_changes_is_told(home, capsys):
    with opened(home) as connection:
        connection.execute("DROP TRIGGER events_never_deleted")
    found = problems(capsys)
    assert found == {"log: order": ["the trigger events_never_deleted is not that of this version"]}


def test_a_log_whose_time_was_moved_is_told(home, capsys):
    forge(
        home,
        *(
            f"UPDATE {table} SET received_at_ms = received_at_ms - 2 * 86400000"
            for table in ("submissions", "samples", "events")
        ),
    )
    found = problems(capsys)["log: signed requests"]
    assert all("it cannot have been received at" in problem for problem in found)


def test_what_was_forged_is_not_sent_to_the_terminal(home, capsys):
    forge(
        home,
        r"UPDATE submissions SET method = 'PUT' || char(27) || ']0;x' || char(7) WHERE scheme = 1",
    )
    assert run(["fsck"]) == 1
    told = capsys.readouterr()
    assert "PUT" in told.out
    assert not {"\x1b", "\x07"} & set(told.out)


def test_a_log_that_lost_its_end_does_not_pass(home, capsys):
    forge(
        home,
        "DELETE FROM submissions WHERE sample_count = 0 AND seq > 40",
        "DELETE FROM events WHERE seq > 40",
    )
    found = problems(capsys)
    assert "log: order" not in found
    assert "it is another or an older log" in found["archive: against the log"][0]
    assert "counts the log up to" in found["generation: tables"][0]


def page_number(home, which):
    """The number of the first page of a table or an index, or of one by its place; from 0."""
    count = (home / "log" / "log.sqlite").stat().st_size // PAGE
    places = {"first": 0, "middle": count // 2, "last": count - 1}
    if which in places:
        return places[which]
    with opened(home) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (which,)
        ).fetchone()
    return root - 1


@pytest.mark.parametrize(
    "which",
    [
        "first", "middle", "last", "submissions", "submissions_signature", "hotkeys", "samples",
        "samples_version", "sample_texts", "events", "retention", "outbox", "spent_signatures",
    ],
)  # fmt: skip
def test_a_damaged_page_is_told_and_the_other_parts_are_looked_at(home, capsys, which):
    path = home / "log" / "log.sqlite"
    at = page_number(home, which) * PAGE
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + b"\xff" * PAGE + whole[at + PAGE :])
    assert run(["fsck"]) == 1
    assert any(line.startswith("log") for line in capsys.readouterr().out.splitlines())
    assert run(["fsck", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["problems"]
    assert any(texts and part.startswith("log") for part, texts in found.items())
    for part in ("pointer and manifest", "archive: files", "chain snapshots", "generations kept"):
        assert found[part] == []


def test_without_a_log_the_other_parts_are_looked_at(home, capsys):
    (home / "log" / "log.sqlite").unlink()
    found = problems(capsys)
    assert list(found) == ["log"]
    assert "there is no log at" in found["log"][0]
    assert not (home / "log" / "log.sqlite").exists()


def test_a_log_of_an_earlier_version_is_left_as_it_is(home, capsys):
    forge(home, "PRAGMA user_version = 1")
    before = content(home)
    assert "has schema version 1" in problems(capsys)["log"][0]
    assert content(home) == before


def test_what_nobody_foresaw_is_told_and_the_other_parts_are_looked_at(home, monkeypatch, capsys):
    def look(*_):
        raise RuntimeError("why?")

    monkeypatch.setattr("cli.inspection.log_against_requests", look)
    assert problems(capsys) == {"log: signed requests": ["RuntimeError: why?"]}


def rewrite(home, kind, change):
    """Put another file in the place of one of the archive's, as one who can do it well."""
    archive = Archive(settings(home))
    with archive.changing():
        manifest = archive.manifest()
        parts = getattr(manifest, kind)
        name, old = next(iter(parts.items())) if kind == "votes" else (0, parts[0])
        folder, _, stem = old.file.removesuffix(".parquet").rpartition("/")
        new = archive.write(folder, f"{stem}x", change(archive.read(old)))
        replaced = {**parts, name: new} if kind == "votes" else (new, *parts[1:])
        archive.replace_manifest(dataclasses.replace(manifest, **{kind: replaced}))


def flip_first(column):
    first = pl.int_range(pl.len()) == 0
    return lambda rows: rows.with_columns(
        pl.when(first).then(~pl.col(column)).otherwise(pl.col(column)).alias(column)
    )


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("votes", flip_first("is_passed"), "1 samples of the log are not so in the archive"),
        ("votes", lambda rows: rows.head(rows.height - 1), "of the log are not so in the archive"),
        ("texts", lambda rows: rows.with_columns(prompt=pl.lit("?")), "are not so in the log"),
        ("texts", lambda rows: rows.tail(rows.height - 1), "are not in the archive"),
        ("submissions", lambda rows: rows.with_columns(timestamp=pl.lit("1")),
         "are not those of the log"),
        ("events", lambda rows: rows.head(1), "of the log are not so in the archive"),
        ("events", lambda rows: pl.concat([rows, rows.head(1)]), "the archive holds 5 acts"),
        *(
            ("events", lambda rows, name=name, value=value: rows.with_columns(
                pl.lit(value).cast(rows.schema[name]).alias(name)
            ), "of the archive are not so in the log")
            for name, value in (
                ("received_at_ms", 1), ("kind", "blacklist_removed"), ("subject", "7"),
                ("detail", "x"), ("admin_hotkey", "x"), ("scheme", 1), ("timestamp", "1"),
                ("nonce", "x"), ("method", "GET"), ("path", "/"), ("signature", b""), ("body", b""),
            )
        ),
    ],
)  # fmt: skip
def test_an_archive_that_says_something_else_is_told(home, capsys, kind, change, text):
    rewrite(home, kind, change)
    found = problems(capsys)
    told = found.get("archive: files", []) + found.get("archive: against the log", [])
    assert any(text in problem for problem in told), told


def test_an_act_in_the_archive_must_be_what_its_admin_signed(home, capsys):
    rewrite(home, "events", lambda rows: rows.with_columns(detail=pl.lit("x")))
    found = problems(capsys)["archive: against signed requests"]
    assert len(found) == 4
    assert all(f"is not what {hotkey('admin')} signed" in problem for problem in found)


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("votes", flip_first("is_passed"), "1 samples of the archive are not what was signed"),
        ("votes", lambda rows: rows.with_columns(pl.col("received_at_ms") + 1),
         "samples of the archive are not what was signed"),
        ("votes", lambda rows: rows.filter(pl.col("seq") != pl.col("seq").min()),
         "1 samples that were signed are not in the archive"),
        ("texts", lambda rows: rows.with_columns(prompt=pl.lit("?")), "are not what was signed"),
        ("submissions", lambda rows: rows.with_columns(timestamp=pl.lit("1")),
         f"is not signed by {hotkey('v1')}"),
        ("submissions", lambda rows: rows.with_columns(evaluation_signature=pl.lit("00")),
         f"is not what {hotkey('v1')} signed"),
        ("submissions", lambda rows: rows.with_columns(sample_count=pl.lit(2, pl.Int64)),
         f"is not what {hotkey('v1')} signed"),
        ("submissions", lambda rows: rows.with_columns(pl.col("received_at_ms") - 2 * 86_400_000),
         "it cannot have been received at"),
        ("submissions", lambda rows: pl.concat([rows.head(1), rows]),
         "has the signature of an earlier one"),
    ],
)  # fmt: skip
def test_what_only_the_archive_has_must_be_what_was_signed(
    retained_home, capsys, kind, change, text
):
    rewrite(retained_home, kind, change)
    found = problems(capsys)["archive: against signed requests"]
    assert any(text in problem for problem in found), found


def test_a_request_that_retention_took_out_does_not_count_again(retained_home, capsys):
    (part, *_) = Archive(settings(retained_home)).manifest().submissions
    row = Archive(settings(retained_home)).read(part).row(0, named=True)
    body = zstandard.decompress(row["body"])
    again = SignedRequest(
        row["hotkey"], row["signature"], row["scheme"], row["timestamp"], row["nonce"],
        row["method"], row["path"], body,
    )  # fmt: skip
    log = SqliteLog(settings(retained_home))
    seq = log.append_samples(again, [sample("old", 1)], None).result(30).submission_seq
    log.close()
    found = problems(capsys)
    assert list(found) == ["archive: against signed requests"]
    assert found["archive: against signed requests"] == [
        f"submission {seq} has the signature of an earlier one"
    ]


def test_samples_without_evidence_are_no_problem_but_told(retained_home, capsys):
    archive = Archive(settings(retained_home))
    with archive.changing():
        archive.replace_manifest(dataclasses.replace(archive.manifest(), submissions=()))
    forge(retained_home, "DELETE FROM samples")
    run(["fsck", "--json"])
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "come without their signed request" in note


@pytest.mark.parametrize("kind", ["votes", "texts", "submissions", "events"])
@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_file_of_the_archive_that_is_gone_or_damaged_is_named(home, capsys, kind, harm):
    archive = Archive(settings(home))
    parts = getattr(archive.manifest(), kind)
    part = next(iter(parts.values())) if kind == "votes" else parts[0]
    path = archive.directory / part.file
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    found = problems(capsys)
    assert part.file in found["archive: files"][0]
    # The others are looked at all the same; this one is not parsed again.
    assert "archive: against the log" not in found


def test_a_file_that_no_manifest_names_any_more_is_missed(home, capsys):
    archive = Archive(settings(home))
    with archive.changing():
        manifest = archive.manifest()
        archive.replace_manifest(dataclasses.replace(manifest, submissions=(), texts=()))
    told = problems(capsys)["archive: against the log"]
    assert [text.split()[1] for text in told] == ["texts", "submissions"]


def test_a_manifest_that_cannot_be_read_is_told(home, capsys):
    (home / "warehouse" / "archive" / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in problems(capsys)["pointer and manifest"][0]


def test_a_chain_snapshot_that_was_changed_is_told(home, capsys):
    snapshots = ChainSnapshots(settings(home))
    path = snapshots.directory / snapshots.newest_name()[0]
    path.write_bytes(path.read_bytes()[:-1])
    found = problems(capsys)
    assert path.name in found["chain snapshots"][0]
    assert "generation: tables" not in found


def current(home):
    return Generations(settings(home)).current()


def test_a_weight_that_was_changed_is_told(home, capsys):
    with duckdb.connect(str(current(home).path)) as connection:
        connection.execute("UPDATE weights SET weight = 1 - weight")
    found = problems(capsys)
    assert (
        "the table weights is not what follows from log and snapshot"
        in (found["generation: tables"])
    )
    assert "its tables are not those that were published" in found["generations kept"][0]


def test_a_winner_that_was_changed_is_told(home, capsys):
    with duckdb.connect(str(current(home).path)) as connection:
        connection.execute("UPDATE generation SET winner_uid = 3")
    assert any("winner_uid is 3" in text for text in problems(capsys)["generation: tables"])


def test_a_generation_that_was_made_from_other_samples_is_told(home, capsys):
    generation = current(home)
    names = json.loads(generation.path.with_suffix(".json").read_bytes())
    rewrite(home, "votes", flip_first("is_passed"))
    forged = next(iter(Archive(settings(home)).manifest().votes.values())).file
    names["votes"] = [forged, *names["votes"][1:]]
    generation.path.with_suffix(".json").write_text(json.dumps(names))
    found = problems(capsys)["generation: tables"]
    assert any("samples of the generation's archive are not so in the log" in one for one in found)


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_generation_that_is_cut_off_is_named(home, capsys, left):
    path = current(home).path
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    found = problems(capsys)
    # What is left may have the row about itself.
    told = [
        text
        for part in ("generation: tables", "pointer and manifest")
        for text in found.get(part, ())
    ]
    assert path.name in told[0]
    assert path.stem in found["generations kept"][0]


def test_a_pointer_that_says_something_else_is_told(home, capsys):
    pointer = Generations(settings(home)).pointer
    pointed = json.loads(pointer.read_bytes())
    pointer.write_text(json.dumps({**pointed, "watermark": pointed["watermark"] + 1}))
    assert "the pointer says" in problems(capsys)["pointer and manifest"][0]


def test_a_pointer_that_names_nothing_is_told(home, capsys):
    Generations(settings(home)).pointer.write_text('{"snapshot_id": "../../x", "watermark": 1}')
    found = problems(capsys)
    assert "names no generation" in found["pointer and manifest"][0]


def test_the_stable_name_leads_to_the_current_generation(home, capsys):
    generations = Generations(settings(home))
    older = generations.kept()[1].path
    generations.stable_name.unlink()
    generations.stable_name.symlink_to(older)
    assert "does not lead to" in problems(capsys)["pointer and manifest"][0]


def test_an_archive_file_that_a_kept_generation_reads_is_missed(home, capsys):
    generations = Generations(settings(home))
    archive = Archive(settings(home))
    named = next(iter(archive.manifest().votes.values()))
    oldest = generations.kept()[-1]
    # The manifest names another one by now, as after a run.
    rewrite(home, "votes", lambda rows: rows)
    (archive.directory / named.file).unlink()
    found = problems(capsys)["generations kept"]
    assert any(oldest.snapshot_id in one and "which is gone" in one for one in found)


@pytest.fixture
def published(tmp_path, object_server, bucket, monkeypatch):
    """An installation with a bucket, and the bucket."""
    warehouse = object_server.settings(tmp_path / "data", warehouse_url=f"s3://{bucket}/leoma")
    subnet = Subnet(tmp_path, warehouse)
    fill(subnet)
    subnet.log.close()
    monkeypatch.setenv("LEOMA_HOME", str(warehouse.leoma_home))
    monkeypatch.setenv("WAREHOUSE_URL", warehouse.warehouse_url)
    monkeypatch.setenv("S3_ENDPOINT_URL", warehouse.s3_endpoint_url)
    monkeypatch.setenv("S3_READ_ACCESS_KEY_ID", warehouse.s3_read_access_key_id)
    secret = warehouse.s3_read_secret_access_key.get_secret_value()
    monkeypatch.setenv("S3_READ_SECRET_ACCESS_KEY", secret)
    return ObjectStore(warehouse, *warehouse.warehouse_bucket), Generations(warehouse)


def test_a_bucket_is_looked_at_too(published, capsys):
    store, generations = published
    assert problems(capsys) == {}
    snapshot_id = generations.current().snapshot_id
    votes = next(one.key for one in store.listed("archive/votes/"))
    store.put(f"generations/{snapshot_id}.duckdb", b"short")
    store.delete([votes])
    found = problems(capsys)["bucket"]
    assert any(f"{snapshot_id}.duckdb has 5 bytes" in one for one in found)
    assert any(one.endswith(f"{votes} is gone") for one in found)


def test_each_bar_goes_forward_to_its_end(published, monkeypatch):
    bars = {}

    class Bar:
        def __init__(self, *, length, label, file):
            self.pos = 0
            self.positions = bars.setdefault(label.strip(), [])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.positions.append(f"the end at {self.pos}")

        def update(self, steps):
            self.pos += steps
            self.positions.append(self.pos)

    monkeypatch.setattr(click, "progressbar", Bar)
    assert run(["fsck"]) == 0
    assert bars.keys() > LOG_PARTS
    for label, (*positions, end) in bars.items():
        assert positions == sorted(positions), label
        assert end == "the end at 1000", label
    for label in ("log: order", "log: signed requests", "archive: against the log", "bucket"):
        assert len(set(bars[label])) > 3, f"{label} does not move on the way"


def test_a_machine_that_does_not_follow_its_bucket_is_told(published, capsys):
    store, generations = published
    store.delete(["current.json"])
    assert "has no pointer" in problems(capsys)["bucket"][0]
    pointed = json.loads(generations.pointer.read_bytes())
    assert pointed["snapshot_id"] == generations.current().snapshot_id


def test_long_lists_are_cut_off_for_people(home, capsys):
    forge(home, "UPDATE submissions SET timestamp = '1'")
    assert run(["fsck"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("log: signed requests: ") for line in told) == 21
    assert any(line.endswith(" more") for line in told)
