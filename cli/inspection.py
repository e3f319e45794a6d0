"""What must hold in an installation, from the signed requests to the published tables.

    signed requests -> log -> archive -> generation <- pointer
                              chain snapshots -^

Each function looks at one arrow and returns what is wrong there, in sentences; none changes a file.
They may run beside a service at work: what is published is looked at first, and the log, which only
grows, after it.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import duckdb
import polars as pl

from cli.proofs import prove_act, proven, unlike
from pipelines.chain_snapshots import NAME as SNAPSHOT_NAME
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import MetagraphError
from pipelines.recompute import current_samples, recompute_from
from warehouse import arrow
from warehouse.archive import Archive, ArchiveError, Manifest
from warehouse.archive_views import archived_rows
from warehouse.bucket import Pointer, read_pointer
from warehouse.evidence import EvidenceError
from warehouse.generation import (
    Generation,
    GenerationError,
    Generations,
    archived_files,
    open_generation,
)
from warehouse.generation_file import tables_sha256, whole_tables_sha256
from warehouse.log import LogKeeper, LogReader, SubmissionRow, TextRow, VoteColumns, VoteRow
from warehouse.log_frames import EVENT_SCHEMA, VERSION_KEY, submission_rows, text_rows, vote_rows
from warehouse.objects import ObjectStore
from warehouse.records import (
    Event,
)
from warehouse.restoring import signed_events
from warehouse.tables import ARCHIVED_VOTES, COMPUTED_TABLES, GENERATION

OnProgress = Callable[[int, int], None]

VOTE_ORDER = [name for name, _ in ARCHIVED_VOTES.order]
# Of many samples that are wrong, so many are named.
NAMED_MAX = 10


def log_against_requests(log: LogReader, on_progress: OnProgress) -> Iterator[str]:
    """Every record of the log is what a signed request says, and every request is signed."""
    head = log.head()
    events = {event.seq: event for event in log.events_between(0, head)}
    for chunk in log.submissions_between(0, head):
        through = chunk[-1].seq + chunk[-1].sample_count
        received: dict[int, int] = {}
        for votes in log.votes_between(chunk[0].seq, through):
            received.update(zip(votes.seq, votes.received_at_ms, strict=True))
        for row in chunk:
            on_progress(row.seq, head)
            try:
                samples = proven(row, events)
            except EvidenceError as error:
                yield str(error)
                continue
            # Retention may have taken them since they were read.
            stored = log.submitted(row.seq) if samples else None
            seqs = range(row.seq + 1, row.seq + 1 + row.sample_count)
            at_once = {received.get(seq, row.received_at_ms) for seq in seqs}
            if stored and (stored.samples != samples or at_once != {row.received_at_ms}):
                yield unlike(row)


def archive_files(archive: Archive, manifest: Manifest, on_progress: OnProgress) -> Iterator[str]:
    """Every file of the archive is there, is what was written, and holds what the manifest says."""
    parts = manifest.parts()
    for done, part in enumerate(parts, 1):
        try:
            seqs = archive.seqs(part)["seq"]
        except ArchiveError as error:
            yield str(error)
            continue
        if (seqs.len(), seqs.min(), seqs.max()) != (part.rows, part.first_seq, part.last_seq):
            yield f"{part.file} does not hold the {part.rows} records that the manifest says"
        on_progress(done, len(parts))


def archive_against_log(
    archive: Archive, manifest: Manifest, log: LogReader, on_progress: OnProgress
) -> Iterator[str]:
    """What log and archive both must hold is the same in both, and nothing else is in the archive.

    The files of the manifest are whole (`archive_files`).
    """
    head, floor = log.head(), log.dropped_through()
    if manifest.watermark > head:
        yield (
            f"the archive counts the log up to {manifest.watermark}, but it ends at {head}: it is "
            "another or an older log"
        )
        return
    if manifest.watermark < floor:
        yield f"the log begins after {floor}, but the archive ends at {manifest.watermark}"
        return
    votes = archive.votes(manifest)
    if votes.height != manifest.current_samples:
        yield f"the manifest counts {manifest.current_samples} samples, its files {votes.height}"
    stages = [_stage(on_progress, number, 3) for number in range(3)]
    current = current_samples(log, manifest.watermark, stages[0])
    # Retention may have gone on meanwhile.
    is_in_log = pl.col("seq") > log.dropped_through()
    yield from _vote_differences(current.filter(is_in_log), votes.filter(is_in_log), "archive")
    yield from _text_differences(archive, manifest, log, current, stages[1])
    yield from _submission_differences(archive, manifest, log, stages[2])
    yield from _event_differences(archive, manifest, log)


def _stage(on_progress: OnProgress, number: int, count: int) -> OnProgress:
    """Return what tells the progress of one of `count` stages, the first of which is 0."""
    return lambda done, total: on_progress(number * total + done, count * total)


def _vote_differences(log: pl.DataFrame, other: pl.DataFrame, name: str) -> Iterator[str]:
    """Compare current samples in the columns of `ARCHIVED_VOTES`."""
    if log.sort(VOTE_ORDER).equals(other.sort(VOTE_ORDER)):
        return
    columns = ARCHIVED_VOTES.names
    lacking = log.join(other, on=columns, how="anti", nulls_equal=True)["seq"]
    foreign = other.join(log, on=columns, how="anti", nulls_equal=True)["seq"]
    if lacking.len():
        yield f"{lacking.len()} samples of the log are not so in the {name}: {_named(lacking)}"
    if foreign.len():
        yield f"{foreign.len()} samples of the {name} are not so in the log: {_named(foreign)}"
    if not lacking.len() and not foreign.len():
        yield f"the {name} holds {other.height} samples, the log {log.height}"


def _named(seqs: pl.Series) -> str:
    named = ", ".join(map(str, seqs.sort().head(NAMED_MAX)))
    return named if seqs.len() <= NAMED_MAX else f"{named}, ..."


def _text_differences(
    archive: Archive,
    manifest: Manifest,
    log: LogReader,
    current: pl.DataFrame,
    on_progress: OnProgress,
) -> Iterator[str]:
    after = floor = log.dropped_through()
    for done, part in enumerate(manifest.texts, 1):
        on_progress(done, len(manifest.texts))
        if part.last_seq <= floor:
            continue
        archived = archive.read(part).filter(pl.col("seq") > floor)
        stored = text_rows(log.texts_between(after, part.last_seq))
        after = part.last_seq
        differing = archived.join(stored, on=stored.columns, how="anti", nulls_equal=True)["seq"]
        if differing.len():
            yield f"the texts of {_named(differing)} are not so in the log ({part.file})"
        # Compaction leaves out those of superseded samples.
        due = stored.select("seq").join(current, on="seq", how="semi")
        lacking = due.join(archived, on="seq", how="anti")["seq"]
        if lacking.len():
            yield f"the texts of {_named(lacking)} are not in the archive"
    for chunk in log.texts_between(after, manifest.texts_watermark):
        yield f"{len(chunk)} texts after {after} are not in the archive"


def _submission_differences(
    archive: Archive, manifest: Manifest, log: LogReader, on_progress: OnProgress
) -> Iterator[str]:
    after = floor = log.dropped_through()
    for done, part in enumerate(manifest.submissions, 1):
        on_progress(done, len(manifest.submissions))
        if part.last_seq <= floor:
            continue
        archived = archive.read(part).filter(pl.col("seq") > floor)
        chunks = log.submissions_between(after, part.last_seq)
        stored = submission_rows(list(itertools.chain.from_iterable(chunks)))
        after = part.last_seq
        if not archived.sort("seq").equals(stored):
            yield f"the submissions in {part.file} are not those of the log"
    for chunk in log.submissions_between(after, manifest.submissions_watermark):
        yield f"{len(chunk)} submissions after {after} are not in the archive"


def _event_differences(archive: Archive, manifest: Manifest, log: LogReader) -> Iterator[str]:
    archived = pl.concat(
        [pl.DataFrame(schema=EVENT_SCHEMA), *(archive.read(part) for part in manifest.events)]
    )
    rows = [
        # An event follows the submission that it came with, of which the archive has this much.
        (*event, *submission[3:10])
        for event in log.events_between(0, manifest.events_watermark)
        for chunk in log.submissions_between(event.seq - 2, event.seq - 1)
        for submission in chunk
    ]
    stored = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
    if archived.sort("seq").equals(stored):
        return
    columns = EVENT_SCHEMA.names()
    lacking = stored.join(archived, on=columns, how="anti", nulls_equal=True)["seq"]
    foreign = archived.join(stored, on=columns, how="anti", nulls_equal=True)["seq"]
    if lacking.len():
        yield f"the acts of admins {_named(lacking)} of the log are not so in the archive"
    if foreign.len():
        yield f"the acts of admins {_named(foreign)} of the archive are not so in the log"
    if not lacking.len() and not foreign.len():
        yield f"the archive holds {archived.height} acts of admins, the log {stored.height}"


@dataclass
class Proof:
    """How many samples that only the archive has are proven by a signed request there."""

    samples: int = 0
    proven: int = 0
    problems: list[str] = field(default_factory=list)


def archive_against_requests(
    archive: Archive, manifest: Manifest, log: LogReader, on_progress: OnProgress
) -> Proof:
    """Compare what retention took out of the log, and all acts of admins, with the signed requests
    in the archive.
    """
    floor = log.dropped_through()
    votes = archive.votes(manifest)
    proof = Proof(votes.filter(pl.col("seq") <= floor).height)
    proof.problems += _unproven_acts(archive, manifest)
    events = {event.seq: event for event in log.events_between(0, floor)}
    used: set[bytes] = set()
    parts = [part for part in manifest.submissions if part.first_seq <= floor]
    for done, part in enumerate(parts, 1):
        rows = archive.read(part).filter(pl.col("seq") <= floor).iter_rows()
        signed = _signed([SubmissionRow._make(row) for row in rows], events, used)
        proof.problems += [*signed.problems, *_unlike_signed(archive, manifest, votes, signed)]
        proof.proven += votes.join(
            vote_rows([VoteColumns.of(signed.votes)]),
            on=ARCHIVED_VOTES.names,
            how="semi",
            nulls_equal=True,
        ).height
        on_progress(done, len(parts))
    if used:
        chunks = log.submissions_between(floor, log.head())
        proof.problems += [
            _used_again(row)
            for row in itertools.chain.from_iterable(chunks)
            if row.signature in used
        ]
    return proof


def _unproven_acts(archive: Archive, manifest: Manifest) -> Iterator[str]:
    for act in signed_events(archive, manifest):
        try:
            prove_act(act)
        except EvidenceError as error:
            yield str(error)


@dataclass
class _Signed:
    """What some signed requests say, and the seqs that are theirs."""

    seqs: list[int] = field(default_factory=list)
    votes: list[VoteRow] = field(default_factory=list)
    texts: list[TextRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _signed(
    rows: Iterable[SubmissionRow], events: Mapping[int, Event], used: set[bytes]
) -> _Signed:
    """Read signed requests; `used` are the signatures of those before, and then of these too."""
    found = _Signed()
    for row in rows:
        found.seqs += range(row.seq + 1, row.seq + 1 + row.sample_count)
        if row.signature in used:
            found.problems.append(_used_again(row))
        used.add(row.signature)
        try:
            samples = proven(row, events)
        except EvidenceError as error:
            found.problems.append(str(error))
            continue
        for seq, one in enumerate(samples, row.seq + 1):
            found.votes.append(
                VoteRow(
                    seq, row.received_at_ms, row.hotkey, one.miner_hotkey, one.task_id,
                    one.task_key, one.passed, one.confidence, one.latency_ms,
                )
            )  # fmt: skip
            found.texts.append(
                TextRow(
                    seq, one.sample_id, one.prompt, one.s3_bucket, one.s3_prefix, one.reasoning,
                    one.original_artifacts, one.generated_artifacts, one.presentation_order,
                    one.evaluation_signature,
                )
            )  # fmt: skip
    return found


def _used_again(row: SubmissionRow) -> str:
    return f"submission {row.seq} has the signature of an earlier one"


def _unlike_signed(
    archive: Archive, manifest: Manifest, votes: pl.DataFrame, signed: _Signed
) -> Iterator[str]:
    """Compare the archive's samples with the signed requests that they came with."""
    if not signed.seqs:
        return
    theirs = pl.DataFrame({"seq": signed.seqs})
    rows = vote_rows([VoteColumns.of(signed.votes)])
    here = votes.join(theirs, on="seq", how="semi")
    forged = here.join(rows, on=ARCHIVED_VOTES.names, how="anti", nulls_equal=True)["seq"]
    if forged.len():
        yield f"{forged.len()} samples of the archive are not what was signed: {_named(forged)}"
    # A newer version takes the place of what was signed; nothing else does.
    kept = rows.join(votes.select(*VERSION_KEY, kept="seq"), on=VERSION_KEY, how="left")
    lost = kept.filter((pl.col("kept") >= pl.col("seq")).not_().fill_null(value=True))["seq"]
    if lost.len():
        yield f"{lost.len()} samples that were signed are not in the archive: {_named(lost)}"
    texts = pl.concat(
        [
            text_rows([]),
            *(
                archive.read(part).join(theirs, on="seq", how="semi")
                for part in manifest.texts
                if part.first_seq <= signed.seqs[-1] and part.last_seq >= signed.seqs[0]
            ),
        ]
    )
    changed = texts.join(text_rows([signed.texts]), on=texts.columns, how="anti", nulls_equal=True)
    if changed.height:
        yield f"the texts of {_named(changed['seq'])} are not what was signed"


def chain_snapshots(snapshots: ChainSnapshots, on_progress: OnProgress) -> Iterator[str]:
    """Every chain snapshot is what its name says, and the pointer names one that can be read."""
    try:
        names = sorted(path.name for path in snapshots.directory.iterdir())
    except FileNotFoundError:
        names = []
    kept = [name for name in names if SNAPSHOT_NAME.fullmatch(name)]
    for done, name in enumerate(kept, 1):
        try:
            snapshots.content(name)
        except MetagraphError as error:
            yield str(error)
        on_progress(done, len(kept))
    try:
        snapshots.newest()
    except MetagraphError as error:
        yield str(error)


def pointer(generations: Generations, current: Generation) -> Iterator[str]:
    """The pointer says of the generation what the generation says of itself."""
    with open_generation(current) as connection:
        info = connection.table(GENERATION.name).pl().to_dicts()
    if len(info) != 1:
        yield f"{current.path.name} has {len(info)} rows about itself"
        return
    if info[0]["snapshot_id"] != current.snapshot_id:
        yield f"{current.path.name} calls itself {info[0]['snapshot_id']}"
    made_from = (info[0]["watermark"], info[0]["metagraph_synced_at_ms"])
    if generations.made_from() not in (made_from, (made_from[0], 0)):
        yield f"the pointer says {generations.made_from()} of {current.path.name}, not {made_from}"
    if generations.stable_name.resolve() != current.path.resolve():
        yield f"{generations.stable_name} does not lead to {current.path.name}"


def generation_against_archive(
    current: Generation, log: LogKeeper, snapshots: ChainSnapshots, on_progress: OnProgress
) -> Iterator[str]:
    """All tables follow from the archive's files that the generation names, and from the chain.

    While the log still has its beginning, these files are compared with it as well.
    """
    with open_generation(current) as connection:
        watermark = connection.table(GENERATION.name).pl()["watermark"][0]
        rows = connection.sql(archived_rows(ARCHIVED_VOTES, archived_files(current).votes)).pl()
    if watermark > log.head():
        yield f"{current.snapshot_id} counts the log up to {watermark}, it ends at {log.head()}"
        return
    samples = rows.select(ARCHIVED_VOTES.names)
    if not log.dropped_through():
        stored = current_samples(log, watermark, on_progress)
        yield from _vote_differences(stored, samples, "generation's archive")
    admin = log.admin_state_at(watermark)
    yield from recompute_from(current, samples, admin, snapshots).differences


def kept_generations(generations: Generations, on_progress: OnProgress) -> Iterator[str]:
    """Every kept generation holds the rows of its digest; what its views read is there."""
    kept = generations.kept()
    for done, one in enumerate(kept, 1):
        try:
            is_as_published = _is_as_published(one)
            missing = [path for path in generations.archive_files(one) if not path.exists()]
        except (GenerationError, duckdb.Error, OSError, ValueError, IndexError) as error:
            yield f"{one.snapshot_id}: {error}"
            continue
        if not is_as_published:
            yield f"{one.snapshot_id}: its tables are not those that were published"
        if missing:
            yield f"{one.snapshot_id} reads {missing[0]}, which is gone ({len(missing)} files)"
        on_progress(done, len(kept))


def _is_as_published(generation: Generation) -> bool:
    with open_generation(generation) as connection:
        tables = [
            (table, connection.table(table.name).to_arrow_table().cast(arrow.schema(table)))
            for table in COMPUTED_TABLES
        ]
        said_of_itself = connection.table(GENERATION.name).pl()["tables_sha256"][0]
    return said_of_itself in {tables_sha256(tables), whole_tables_sha256(tables)}


def bucket(store: ObjectStore, generations: Generations, on_progress: OnProgress) -> Iterator[str]:
    """The bucket holds whatever its pointer names, in the right size, and this machine follows it.

    Contents are not downloaded, but for the pointer's and the manifest's.
    """
    found = read_pointer(store)
    current = generations.current()
    if found is None:
        if current is not None:
            yield f"{store.url} has no pointer, but {current.snapshot_id} is current here"
        return
    named = Pointer.from_json(found.content)
    if current is None or current.snapshot_id != named.snapshot_id:
        here = current.snapshot_id if current else "none"
        yield f"{store.url} names {named.snapshot_id}, but the current generation here is {here}"
    content = store.get(named.manifest.key)
    if content is None or hashlib.sha256(content.content).hexdigest() != named.manifest.sha256:
        yield f"{store.url}{named.manifest.key} is not what the pointer says"
        return
    parts = Manifest.from_json(content.content).parts()
    expected = {f"archive/{part.file}": part.size for part in parts}
    for file in (named.generation, named.archive_files, named.manifest, named.chain_snapshot):
        expected[file.key] = file.size
    yield from _missing(store, expected, on_progress)


def _missing(
    store: ObjectStore, expected: Mapping[str, int], on_progress: OnProgress
) -> Iterator[str]:
    """Say which objects are gone, or have another size in bytes than expected."""
    stored: dict[str, int] = {}
    for one in store.listed(""):
        if one.key in expected:
            stored[one.key] = one.size
            on_progress(len(stored), len(expected))
    for key, size in sorted(expected.items()):
        if key not in stored:
            yield f"{store.url}{key} is gone"
        elif stored[key] != size:
            yield f"{store.url}{key} has {stored[key]} bytes, not {size}"
