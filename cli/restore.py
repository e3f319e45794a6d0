"""`leoma restore`: a machine brought up from the bucket alone."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from pydantic import ValidationError

from cli.failures import one_line
from cli.proofs import prove_act
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import MetagraphError
from warehouse import restoring
from warehouse.archive import Archive, ArchiveError, Manifest
from warehouse.backends import open_kept_log
from warehouse.bucket import Pointer, read_pointer
from warehouse.evidence import EvidenceError
from warehouse.files import LockTimeoutError
from warehouse.generation import GenerationError, Generations
from warehouse.log import LogError
from warehouse.objects import ObjectStorageError, ObjectStore
from warehouse.restoring import RestoreError
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_restore import begin_log_after

FAILURES = (
    ArchiveError, GenerationError, LockTimeoutError, LogError, MetagraphError, ObjectStorageError,
    OSError, RestoreError,
)  # fmt: skip


@click.command()
@click.option("--from", "url", required=True, metavar="s3://BUCKET/PREFIX", help="Where it is.")
@click.option(
    "--new-log",
    is_flag=True,
    help="Move a log aside that ends before the bucket does, and begin a new one.",
)
@click.option(
    "--all-snapshots",
    is_flag=True,
    help="Bring every chain snapshot, to recompute past generations; else the newest alone.",
)
def restore(*, url: str, new_log: bool, all_snapshots: bool) -> None:
    """Bring this machine up from a bucket.

    Brings archive, chain snapshots and the newest generation into LEOMA_HOME, each file checked by
    its digest; S3_* settings say how the bucket is reached, and a key that may read is enough. What
    is here already is not brought again: an interrupted restore goes on where it was.

    A log that survived is kept, and what it has beyond the bucket is told. Where there is none, a
    new one begins: blacklist, latest task and used signatures are those of the archive, and samples
    up to there are answered from it. What was acknowledged after the last published run and is in
    no log is lost. Stop the API and Dagster first.
    """
    try:
        settings = WarehouseSettings(warehouse_url=url)
    except ValidationError as error:
        reasons = "; ".join(problem["msg"] for problem in error.errors(include_input=False))
        raise click.ClickException(reasons) from error
    if settings.warehouse_bucket is None:
        raise click.UsageError("--from takes s3://bucket/prefix.")
    store = ObjectStore(settings, *settings.warehouse_bucket, access="read")
    try:
        with one_line(*FAILURES):
            _restore(settings, store, is_new_log_wanted=new_log, is_all=all_snapshots)
    finally:
        store.close()


def _restore(
    settings: WarehouseSettings, store: ObjectStore, *, is_new_log_wanted: bool, is_all: bool
) -> None:
    found = read_pointer(store)
    if found is None:
        raise RestoreError(f"{store.url} has no generation: nothing was ever published there")
    pointer = Pointer.from_json(found.content)
    home = settings.warehouse_path
    manifest = restoring.read_manifest(store, pointer, home / "archive" / ".restored-manifest.json")
    restoring.refuse_newer(settings, pointer, manifest)
    click.echo(
        f"{store.url} has {manifest.current_samples} samples, the log up to {manifest.watermark}, "
        f"and generation {pointer.snapshot_id}."
    )
    _bring_archive(settings, store, manifest)
    manifest = _with_log(settings, store, pointer, manifest, is_new_log_wanted=is_new_log_wanted)
    archive = Archive(settings)
    with archive.changing():
        archive.replace_manifest(manifest)
    _bring_snapshots(settings, store, pointer, is_all=is_all)
    current = restoring.have_generation(settings, store, pointer, manifest)
    click.echo(
        f"{current.snapshot_id} is served from now on. Run `leoma materialize` for a new one."
    )


def _bring_archive(settings: WarehouseSettings, store: ObjectStore, manifest: Manifest) -> None:
    total = sum(part.size for part in manifest.parts())
    with click.progressbar(length=max(1, total), label="Archive", file=sys.stderr) as bar:
        restoring.bring_archive(settings, store, manifest, bar.update)


def _bring_snapshots(
    settings: WarehouseSettings, store: ObjectStore, pointer: Pointer, *, is_all: bool
) -> None:
    snapshots = ChainSnapshots(settings)
    keys = [pointer.chain_snapshot.key]
    if is_all:
        keys += [one.key for one in store.listed("snapshots/")]
    with click.progressbar(sorted(set(keys)), label="Chain snapshots", file=sys.stderr) as bar:
        for key in bar:
            name = key.removeprefix("snapshots/")
            if not (snapshots.directory / name).exists():
                stored = store.get(key)
                snapshots.restore(name, stored.content if stored else b"")
    snapshots.point_to(pointer.chain)


def _with_log(
    settings: WarehouseSettings,
    store: ObjectStore,
    pointer: Pointer,
    manifest: Manifest,
    *,
    is_new_log_wanted: bool,
) -> Manifest:
    """See to the log; return the manifest that goes with it."""
    head = 0
    if settings.log_path.exists():
        log = open_kept_log(settings)
        try:
            head = log.head()
            if head >= manifest.watermark and head:
                restoring.refuse_another_log(log, Archive(settings), manifest)
                _tell_beyond(restoring.beyond(log, manifest.watermark))
                floor = log.dropped_through()
                # It began anew when this machine was restored before.
                is_restored = floor > manifest.watermark
                return restoring.after_floor(manifest, floor) if is_restored else manifest
        finally:
            log.close()
    if head:
        if not is_new_log_wanted:
            raise RestoreError(
                f"{settings.log_path} ends at {head}, but the bucket counts the log up to "
                f"{manifest.watermark}: it is an older copy or another log. Put the newest copy "
                "there, or move it aside with --new-log"
            )
        click.echo(f"The log that ended at {head} is now {_move_aside(settings.log_path)}.")
    return _begin_log(settings, store, pointer, manifest)


def _begin_log(
    settings: WarehouseSettings, store: ObjectStore, pointer: Pointer, manifest: Manifest
) -> Manifest:
    archive = Archive(settings)
    events = restoring.signed_events(archive, manifest)
    # Who may submit follows from them.
    try:
        for event in events:
            prove_act(event)
    except EvidenceError as error:
        raise RestoreError(f"an act of an admin in {store.url} is not proven: {error}") from error
    state = restoring.restored_state(events)
    path = Generations(settings).directory / f"{pointer.snapshot_id}.duckdb"
    pointer.generation.bring(store, path)
    restoring.check_blacklist(path, state)
    floor = restoring.new_floor(manifest)
    begin_log_after(settings, floor, events, restoring.recent_signatures(archive, manifest))
    latest = "none" if state.latest_task_id is None else state.latest_task_id
    click.echo(
        f"A new log begins after {floor}, with {len(state.blacklist)} hotkeys on the blacklist and "
        f"the latest task {latest}."
    )
    lacking = manifest.watermark - manifest.submissions_watermark
    if lacking > 0:
        click.echo(
            f"Of the last {lacking} positions of the log the bucket has the votes, but not the "
            "signed submissions."
        )
    click.echo(
        "What was acknowledged after the bucket's last run was in the old log alone. If that is "
        "ever found, its records after "
        f"{manifest.watermark} are what is missing here."
    )
    return restoring.after_floor(manifest, floor)


def _tell_beyond(more: restoring.Beyond) -> None:
    if not more.samples and not more.events:
        click.echo("The log on this machine has nothing that the bucket lacks.")
        return
    when = (
        f", received from {_utc(more.first_at_ms)} to {_utc(more.last_at_ms)}"
        if more.samples
        else ""
    )
    click.echo(
        f"The log on this machine had what the bucket did not: {more.samples} samples of "
        f"{more.validators} validators and {more.events} acts of admins{when}. The next run "
        "publishes them."
    )


def _move_aside(path: Path) -> Path:
    """Rename the log with its WAL, so that the name is free."""
    aside = path.with_name(f"{path.name}.before-restore-{int(time.time())}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside


def _utc(instant_ms: int) -> str:
    return f"{datetime.fromtimestamp(instant_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
