"""A machine brought up from the bucket alone: archive, newest generation, and a log that goes on.

The bucket has what runs published. What a log acknowledged after the last one is only in that log:
where it survived, it is kept, and the next run publishes the rest.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from warehouse.archive import Archive, Manifest, Part
from warehouse.bucket import KEY, Pointer, StoredFile, have
from warehouse.generation import Generation, GenerationError, Generations, open_generation
from warehouse.log import LogReader
from warehouse.objects import ObjectStore
from warehouse.records import AdminState, Event, SignedRequest, admin_state
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_restore import SignedEvent

# A lost log may have handed out seqs that no run saw: the ids of what was acknowledged are never
# given to other samples.
SEQ_GAP = 1_000_000
# The log remembers for so long which signatures were used (`sqlite_transaction`).
SIGNATURES_KEPT_MS = 86_400_000


class RestoreError(Exception):
    """The machine cannot be brought up from this bucket as it is; the message says why."""


@dataclass(frozen=True)
class Beyond:
    """What a log holds after the seq up to which the bucket has everything."""

    head: int
    samples: int
    validators: int
    events: int
    first_at_ms: int
    last_at_ms: int


def read_manifest(store: ObjectStore, pointer: Pointer, path: Path) -> Manifest:
    """Return the manifest that a pointer names; `path` is where its file may lie."""
    pointer.manifest.bring(store, path)
    try:
        manifest = Manifest.from_json(path.read_bytes())
        # The names become paths on this machine.
        if not all(KEY.fullmatch(f"archive/{part.file}") for part in manifest.parts()):
            raise RestoreError(f"{store.url}{pointer.manifest.key} names files elsewhere")
    except (ValueError, KeyError, TypeError) as error:
        raise RestoreError(f"{store.url}{pointer.manifest.key}: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    return manifest


def bring_archive(
    settings: WarehouseSettings,
    store: ObjectStore,
    manifest: Manifest,
    on_progress: Callable[[int], None] = lambda _size: None,
) -> None:
    """Have all files of the archive on this machine, each as it was published.

    What is here already is not brought again, so that an interrupted restore goes on where it was.
    `on_progress` is given the bytes of each file.
    """
    archive = Archive(settings)

    def bring(part: Part) -> int:
        stored = StoredFile(f"archive/{part.file}", part.size, part.sha256)
        stored.bring(store, archive.directory / part.file)
        return part.size

    with ThreadPoolExecutor(settings.s3_concurrency_max) as threads:
        try:
            for size in threads.map(bring, manifest.parts()):
                on_progress(size)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def refuse_newer(settings: WarehouseSettings, pointer: Pointer, manifest: Manifest) -> None:
    """Raise `RestoreError` where this machine has more than the bucket."""
    archived = Archive(settings).manifest()
    made_from = Generations(settings).made_from()
    there = {part.file for part in manifest.parts()}
    # One that was restored before has the same files, and begins after a gap.
    is_ahead = any(
        getattr(archived, name) > getattr(manifest, name)
        for name in ("watermark", "texts_watermark", "submissions_watermark", "events_watermark")
    )
    has_more = is_ahead and any(part.file not in there for part in archived.parts())
    if has_more or (made_from and made_from[0] > pointer.watermark):
        raise RestoreError(
            f"the warehouse in {settings.warehouse_path} counts more than the bucket: nothing was "
            "changed"
        )


def signed_events(archive: Archive, manifest: Manifest) -> list[SignedEvent]:
    """Return all archived acts of admins in order, with their requests."""
    return [
        SignedEvent(
            Event(
                row["seq"], row["received_at_ms"], row["kind"], row["subject"], row["detail"],
                row["admin_hotkey"],
            ),
            SignedRequest(
                hotkey=row["admin_hotkey"], signature=row["signature"], scheme=row["scheme"],
                timestamp=row["timestamp"], nonce=row["nonce"], method=row["method"],
                path=row["path"], body=row["body"],
            ),
        )
        for part in manifest.events
        for row in archive.read(part).sort("seq").iter_rows(named=True)
    ]  # fmt: skip


def recent_signatures(archive: Archive, manifest: Manifest) -> list[bytes]:
    """Return the signatures of archived submissions that a replay might still use."""
    found: list[bytes] = []
    newest_ms = 0
    for part in reversed(manifest.submissions):
        rows = archive.read(part).select("seq", "received_at_ms", "signature", "sample_count")
        newest_ms = newest_ms or int(rows["received_at_ms"][-1])
        recent = rows.filter(pl.col("received_at_ms") > newest_ms - SIGNATURES_KEPT_MS)
        # Those of admins are in the log again, as submissions.
        found += recent.filter(pl.col("sample_count") > 0)["signature"].to_list()
        if recent.height < rows.height:
            break
    return found


def new_floor(manifest: Manifest) -> int:
    """Return the seq after which a new log begins."""
    return SEQ_GAP + max(
        manifest.watermark,
        manifest.texts_watermark,
        manifest.submissions_watermark,
        manifest.events_watermark,
    )


def after_floor(manifest: Manifest, floor: int) -> Manifest:
    """Return the manifest of an archive whose log begins anew after a seq."""
    return replace(
        manifest,
        watermark=floor,
        texts_watermark=floor,
        submissions_watermark=floor,
        events_watermark=max((part.last_seq for part in manifest.events), default=0),
    )


def check_blacklist(generation: Path, state: AdminState) -> None:
    """Raise `RestoreError` unless the archived events lead to what the generation says.

    Somebody who was taken off the list of those who may submit must not come back that way.
    """
    with open_generation(Generation(generation.stem, generation)) as connection:
        rows = connection.execute("SELECT hotkey FROM blacklist").fetchall()
        (latest,) = connection.execute("SELECT latest_task_id FROM generation").fetchall()[0]
    missing = {hotkey for (hotkey,) in rows} - set(state.blacklist)
    if missing or (latest or 0) > (state.latest_task_id or 0):
        raise RestoreError(
            "the bucket's archive lacks acts of admins that its generation counts: "
            + ", ".join([*sorted(missing), f"latest task {latest}"])
        )


def refuse_another_log(log: LogReader, archive: Archive, manifest: Manifest) -> None:
    """Raise `RestoreError` if the newest archived submissions are not the log's own."""
    if not manifest.submissions:
        return
    floor, head = log.dropped_through(), log.head()
    rows = archive.read(manifest.submissions[-1]).select("seq", "signature")
    expected = dict(rows.filter((pl.col("seq") > floor) & (pl.col("seq") <= head)).iter_rows())
    if not expected:
        return
    found = {
        row.seq: row.signature
        for chunk in log.submissions_between(min(expected) - 1, max(expected))
        for row in chunk
        if row.seq in expected
    }
    if found != expected:
        raise RestoreError("the log on this machine is not the one that the bucket was made from")


def beyond(log: LogReader, after: int) -> Beyond:
    """Return what the log holds after a seq."""
    samples, validators, first_at_ms, last_at_ms = 0, set[str](), 0, 0
    head = log.head()
    for chunk in log.votes_between(after, head):
        samples += len(chunk.seq)
        validators |= set(chunk.validator_hotkey)
        first_at_ms = first_at_ms or chunk.received_at_ms[0]
        last_at_ms = chunk.received_at_ms[-1]
    events = len(log.events_between(after, head))
    return Beyond(head, samples, len(validators), events, first_at_ms, last_at_ms)


def have_generation(
    settings: WarehouseSettings, store: ObjectStore, pointer: Pointer, manifest: Manifest
) -> Generation:
    """Have the bucket's generation here and current; return the current one.

    It gets the archive as it is now: the texts of its own samples came after it.
    """
    generations = Generations(settings)
    have(store, generations, pointer)
    current = generations.current()
    if current is None:
        raise GenerationError("the bucket's generation was not taken over")
    if current.snapshot_id == pointer.snapshot_id:
        # One that was here already may be damaged: then it is what somebody wants repaired.
        pointer.generation.bring(store, current.path)
        generations.name_archive_files(current, Archive(settings).files(manifest))
    return current


def restored_state(events: list[SignedEvent]) -> AdminState:
    """Return what the archived events come to."""
    return admin_state([one.event for one in events])
