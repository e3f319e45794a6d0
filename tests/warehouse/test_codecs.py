"""What is written is read back, and what nobody wrote is the declared error and nothing else."""

import contextlib
import dataclasses
import json
from datetime import datetime

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from tests.builders import hotkey, keypair, sample, signed_request
from tests.properties import JSON_VALUES, changed, tried
from warehouse import arrow
from warehouse.archive import Archive, ArchiveError, Manifest, Part
from warehouse.bucket import Pointer, StoredFile
from warehouse.evaluation import evaluation, evaluation_entries, evaluation_payload
from warehouse.generation import GenerationError, Generations, computed_at_ms, open_generation
from warehouse.hotkeys import (
    InvalidHotkeyError,
    hotkey_of,
    is_hotkey,
    parse_signature,
    public_key,
    signed_message,
    verify,
)
from warehouse.publication import publish
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog
from warehouse.tables import COMPUTED_TABLES, GENERATION, Kind

INT63 = st.integers(0, 2**63 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
# What the API lets through: no half of a surrogate pair, no NUL.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)
OPTIONAL = st.none() | TEXTS
ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
HOTKEYS = st.sampled_from([hotkey(name) for name in ("a", "b", "c")])
DEEP = b"[" * 100_000
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


@tried()
@given(st.binary(min_size=32, max_size=32).filter(any))
def test_any_key_has_one_address(key):
    assert public_key(hotkey_of(key)) == key


@tried(300)
@given(ANY_TEXT | st.text("123456789ABCabc", min_size=46, max_size=49))
@example("5" * 100_000)
@example("F7Hs")
@example(hotkey("a") + "\n")
def test_any_text_is_an_address_or_none(text):
    try:
        key = public_key(text)
    except InvalidHotkeyError:
        assert not is_hotkey(text)
    else:
        assert hotkey_of(key) == text


@tried()
@given(st.binary(min_size=64, max_size=64), st.sampled_from(["", "0x", "0X"]), st.booleans())
def test_a_signature_is_read_back(signature, prefix, is_upper):
    digits = signature.hex().upper() if is_upper else signature.hex()
    assert parse_signature(prefix + digits) == signature


@tried(300)
@given(ANY_TEXT | st.text("0123456789abcdefxX \t", min_size=126, max_size=132))
def test_any_text_is_a_signature_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert len(parse_signature(text)) == 64


@tried()
@given(ANY_TEXT | HOTKEYS, st.binary(max_size=70), st.binary(max_size=20))
def test_nothing_that_was_not_signed_verifies_or_raises(address, signature, message):
    assert not verify(address, signature, message)


@tried()
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST"]),
            st.text("/?a=%", max_size=5),
            st.binary(max_size=3),
            st.text("0123456789", max_size=3),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=3),
        ),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_no_two_requests_have_one_message(requests):
    messages = {
        signed_message(scheme=2, method=method, path=path, body=body, timestamp=time, nonce=nonce)
        for method, path, body, time, nonce in requests
    }
    assert len(messages) == 2


parts = st.builds(
    Part, file=TEXTS, first_seq=INT63, last_seq=INT63, rows=INT63, sha256=DIGESTS, size=INT63
)
manifests = st.builds(
    Manifest,
    tasks_per_partition=st.integers(1, 1000),
    watermark=INT63,
    current_samples=INT63,
    votes=st.dictionaries(TEXTS, parts, max_size=3),
    texts_watermark=INT63,
    texts=st.lists(parts, max_size=3).map(tuple),
    submissions_watermark=INT63,
    submissions=st.lists(parts, max_size=2).map(tuple),
    events_watermark=INT63,
    events=st.lists(parts, max_size=2).map(tuple),
    log_id=TEXTS,
)


@tried()
@given(manifests)
def test_a_manifest_is_read_back(manifest):
    assert Manifest.from_json(manifest.as_json()) == manifest


@st.composite
def other_manifests(draw):
    return json.dumps(changed(json.loads(draw(manifests).as_json()), draw)).encode()


@tried()
@given(st.binary() | JSON_VALUES.map(json.dumps).map(str.encode) | other_manifests())
@example(b"null")
@example(b'"votes"')
@example(b'{"votes": []}')
@example(b'{"votes": {"1": null}}')
@example(DEEP)
def test_what_is_no_manifest_is_the_declared_error(tmp_path, content):
    archive = Archive(WarehouseSettings(leoma_home=tmp_path))
    archive.directory.mkdir(parents=True, exist_ok=True)
    (archive.directory / "manifest.json").write_bytes(content)
    with contextlib.suppress(ArchiveError):
        archive.manifest()


def stored_files(folder):
    return st.builds(
        StoredFile,
        key=st.from_regex(rf"{folder}/[a-z0-9][a-z0-9.-]*", fullmatch=True),
        size=INT63,
        sha256=DIGESTS,
    )


pointers = st.builds(
    Pointer,
    snapshot_id=st.builds(
        "{:%Y%m%dT%H%M%S}{:03d}Z-{}".format,
        # As the names of generations have it, from a clock that was ever set.
        st.datetimes(min_value=datetime(1971, 1, 1)),  # noqa: DTZ001  (UTC, as all of them)
        st.integers(0, 999),
        st.text("0123456789abcdef", min_size=8, max_size=8),
    ).filter(lambda text: len(text) == 28),
    netuid=INT63,
    watermark=INT63,
    metagraph_synced_at_ms=INT63,
    generation=stored_files("generations"),
    archive_files=stored_files("generations"),
    manifest=stored_files("archive"),
    chain_snapshot=stored_files("snapshots"),
    chain=st.dictionaries(st.text(), st.text() | INT63, max_size=3),
)


@tried()
@given(pointers)
def test_a_pointer_is_read_back(pointer):
    assert Pointer.from_json(pointer.as_json()) == pointer


@st.composite
def other_pointers(draw):
    return json.dumps(changed(json.loads(draw(pointers).as_json()), draw)).encode()


FALSE_TIME = dataclasses.replace(
    Pointer("", 0, 0, 0, *[StoredFile("archive/a", 0, "0" * 64)] * 4, {}),
    snapshot_id="99999999T999999999Z-00000000",
)


@tried()
@given(st.binary() | JSON_VALUES.map(json.dumps).map(str.encode) | other_pointers())
@example(b"null")
@example(DEEP)
@example(FALSE_TIME.as_json())
def test_what_is_no_pointer_is_the_declared_error(content):
    try:
        pointer = Pointer.from_json(content)
    except GenerationError:
        return
    # What is taken for one can be followed: its name has a time.
    assert computed_at_ms(pointer.snapshot_id) is not None


@tried()
@given(st.binary() | JSON_VALUES.map(json.dumps).map(str.encode))
@example(b'{"snapshot_id": 7, "watermark": 1}')
@example(b'{"snapshot_id": "20261122T100000000Z-00000000", "watermark": null}')
def test_what_is_no_local_pointer_is_the_declared_error(tmp_path, content):
    generations = Generations(WarehouseSettings(leoma_home=tmp_path))
    generations.pointer.parent.mkdir(parents=True, exist_ok=True)
    generations.pointer.write_bytes(content)
    with pytest.raises(GenerationError):
        generations.current()


samples = st.builds(
    sample,
    miner_hotkey=HOTKEYS,
    task_id=INT63,
    passed=st.booleans(),
    confidence=st.none() | st.integers(0, 100),
    latency_ms=st.none() | INT63,
    prompt=TEXTS,
    s3_bucket=TEXTS,
    s3_prefix=TEXTS,
    reasoning=OPTIONAL,
    original_artifacts=OPTIONAL,
    generated_artifacts=OPTIONAL,
    presentation_order=OPTIONAL,
    evaluation_signature=OPTIONAL,
)
legacy = st.builds(
    lambda one, key: one._replace(task_id=None, task_key=key, sample_id=key),
    samples,
    TEXTS.filter(lambda key: key and not (key.isascii() and key.isdigit())),
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    log = SqliteLog(WarehouseSettings(leoma_home=tmp_path_factory.mktemp("log")))
    yield log
    log.close()


@tried(60, 600)
@given(given=st.lists(samples | legacy, min_size=1, max_size=4), body=st.binary(max_size=200))
def test_what_the_log_is_given_it_gives_back(log, given, body):
    request = signed_request("validator", body, path="/samples/batch")
    first = log.append_samples(request, given, None).result(30).submission_seq
    through = first + len(given)
    (row,) = [row for rows in log.submissions_between(first - 1, first) for row in rows]
    assert row.seq == first
    assert zstandard.decompress(row.body) == body
    assert [one.sample_id for one in log.submission_samples(first)] == [
        one.sample_id for one in given
    ]
    votes = [row for votes in log.votes_between(first, through) for row in votes.rows()]
    texts = [row for rows in log.texts_between(first, through) for row in rows]
    assert [vote.seq for vote in votes] == [text.seq for text in texts]
    for one, vote, text in zip(given, votes, texts, strict=True):
        assert (vote.task_id, vote.task_key) == (one.task_id, one.task_key)
        assert (vote.miner_hotkey, vote.passed) == (one.miner_hotkey, one.passed)
        assert (vote.confidence, vote.latency_ms) == (one.confidence, one.latency_ms)
        for name in text._fields[1:]:
            assert getattr(text, name) == getattr(one, name)


VALUES = {
    Kind.INT: INT64,
    Kind.FLOAT: st.floats(allow_nan=False),
    Kind.BOOL: st.booleans(),
    Kind.TEXT: TEXTS,
}


def rows_of(table):
    return st.lists(
        st.fixed_dictionaries(
            {
                column.name: st.none() | VALUES[column.kind]
                if column.is_nullable
                else VALUES[column.kind]
                for column in table.columns
            }
        ),
        max_size=4,
        unique_by=lambda row: tuple(row[name] for name in table.key),
    )


all_rows = st.fixed_dictionaries({table.name: rows_of(table) for table in COMPUTED_TABLES})


@tried(10, 100)
@given(all_rows, TEXTS, INT63)
def test_what_a_generation_is_given_it_gives_back(tmp_path_factory, rows, text, number):
    import pyarrow as pa  # noqa: PLC0415

    from tests.builders import generation_info  # noqa: PLC0415

    generations = Generations(WarehouseSettings(leoma_home=tmp_path_factory.mktemp("home")))
    tables = {
        table.name: pa.Table.from_pylist(rows[table.name], schema=arrow.schema(table))
        for table in COMPUTED_TABLES
    }
    info = generation_info(parameters=text, watermark=number)
    with open_generation(publish(generations, tables, info)) as connection:
        for table in COMPUTED_TABLES:
            found = connection.execute(f'FROM "{table.name}"').fetchall()
            given_rows = [tuple(row[name] for name in table.names) for row in rows[table.name]]
            assert sorted(map(repr, found)) == sorted(map(repr, given_rows))
        (row,) = connection.execute(
            f"SELECT parameters, watermark FROM {GENERATION.name}"
        ).fetchall()
        assert row == (text, number)


@tried(60, 2_000)
@given(st.lists(samples, min_size=1, max_size=3), ANY_TEXT)
def test_an_evaluation_verifies_if_it_was_signed(given, text):
    payload = evaluation_payload(evaluation_entries(given))
    signature = keypair("validator").sign(payload).hex()
    assert evaluation(hotkey("validator"), signature, given).is_verified
    assert not evaluation(hotkey("validator"), text, given).is_verified
    assert not evaluation(hotkey("another"), signature, given).is_verified
