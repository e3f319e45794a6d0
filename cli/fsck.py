"""`leoma fsck`: a whole installation, verified from what is stored alone."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import click
import duckdb

from cli import inspection
from cli.failures import read_settings
from cli.inspection import OnProgress
from cli.options import json_option, print_json
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import MetagraphError
from warehouse.archive import Archive, ArchiveError, Manifest
from warehouse.generation import GenerationError, Generations
from warehouse.log import LogError, LogKeeper
from warehouse.objects import ObjectStorageError, ObjectStore
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_inspection import SqliteInspector

# What a damaged installation raises, with a sentence.
DAMAGE = (
    ArchiveError, GenerationError, LogError, MetagraphError, ObjectStorageError, OSError,
    ValueError, KeyError, duckdb.Error,
)  # fmt: skip
# Of one part; the others are counted.
TOLD_MAX = 20


@dataclass
class Report:
    """What was found, by part of the installation; `notes` are no problems."""

    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def look(self, part: str, look: Callable[[OnProgress], Iterable[str]]) -> bool:
        """Look at a part with a progress bar; tell whether nothing is wrong there."""
        found = self.problems.setdefault(part, [])
        with _progress(part) as on_progress:
            try:
                found.extend(look(on_progress))
            except DAMAGE as error:
                found.append(str(error) or type(error).__name__)
            # What is damaged may be anything, and the other parts are looked at all the same.
            except Exception as error:  # noqa: BLE001
                found.append(f"{type(error).__name__}: {error}")
        return not found

    @property
    def count(self) -> int:
        """The number of problems."""
        return sum(map(len, self.problems.values()))


@contextlib.contextmanager
def _progress(label: str) -> Iterator[OnProgress]:
    with click.progressbar(length=1_000, label=f"{label:<34}", file=sys.stderr) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.update(1_000 * done // max(1, total) - bar.pos)

        yield on_progress
        on_progress(1, 1)


@click.command()
@json_option
def fsck(*, is_json: bool) -> None:
    """Verify the whole installation.

    Log: no gap, no orphan, no damage; every request is signed by its hotkey, and what is stored of
    it is what was signed; what waits for object storage is the newest.

    Archive: every file is whole, and record by record what the log holds; what retention took out
    of the log, and every act of an admin, is what its signed request says.

    Chain snapshots: each is what its name says.

    Generation: every table follows from archive and chain; the pointer agrees with it. Kept ones
    can be opened, and what they read is there. Bucket, with WAREHOUSE_URL=s3://...: all that its
    pointer names is there.

    Nothing is changed, and the service may be at work meanwhile. The exit code is 1 if anything is
    wrong, and every problem is named.
    """
    settings = read_settings(WarehouseSettings)
    report = Report()
    log = _opened(report, settings)
    try:
        _inspect(report, settings, log)
        text = _extent(report, log)
    finally:
        if log is not None:
            log.close()
    _tell(report, text, is_json=is_json)


def _opened(report: Report, settings: WarehouseSettings) -> SqliteInspector | None:
    try:
        return SqliteInspector(settings)
    except (LogError, OSError) as error:
        report.problems["log"] = [str(error)]
        return None


def _extent(report: Report, log: LogKeeper | None) -> str:
    if log is None:
        return "the log cannot be opened"
    try:
        head, floor = log.head(), log.dropped_through()
    except LogError as error:
        report.problems["log: end"] = [str(error)]
        return "the log's end cannot be read"
    return f"the log ends at {head}" + (f", its samples begin after {floor}" if floor else "")


def _inspect(report: Report, settings: WarehouseSettings, log: SqliteInspector | None) -> None:
    archive, generations = Archive(settings), Generations(settings)
    snapshots = ChainSnapshots(settings)
    # Before the log: what is published meanwhile is of no concern.
    current, manifest = None, None

    def published(_: OnProgress) -> Iterable[str]:
        nonlocal current, manifest
        current, manifest = generations.current(), archive.manifest()
        return () if current is None else inspection.pointer(generations, current)

    is_pointed = report.look("pointer and manifest", published)
    if log is not None:
        report.look("log: order", log.disorder)
        report.look("log: signed requests", lambda p: inspection.log_against_requests(log, p))
        report.look("log: outbox and used signatures", lambda _: log.misplaced())
    if manifest is not None:
        _inspect_archive(report, archive, manifest, log)
    are_whole = report.look("chain snapshots", lambda p: inspection.chain_snapshots(snapshots, p))
    if log is not None and current is not None and is_pointed and are_whole:
        report.look(
            "generation: tables",
            lambda p: inspection.generation_against_archive(current, log, snapshots, p),
        )
    report.look("generations kept", lambda p: inspection.kept_generations(generations, p))
    if settings.warehouse_bucket is not None:
        store = ObjectStore(settings, *settings.warehouse_bucket, access="read")
        try:
            report.look("bucket", lambda p: inspection.bucket(store, generations, p))
        finally:
            store.close()


def _inspect_archive(
    report: Report, archive: Archive, manifest: Manifest, log: LogKeeper | None
) -> None:
    are_whole = report.look(
        "archive: files", lambda p: inspection.archive_files(archive, manifest, p)
    )
    # A damaged Parquet file can end the process that parses it.
    if not are_whole or log is None:
        return
    report.look(
        "archive: against the log",
        lambda p: inspection.archive_against_log(archive, manifest, log, p),
    )

    def dropped(on_progress: OnProgress) -> Iterable[str]:
        proof = inspection.archive_against_requests(archive, manifest, log, on_progress)
        unproven = proof.samples - proof.proven
        if unproven and not proof.problems:
            report.notes.append(
                f"{unproven} of {proof.samples} samples that only the archive has come without "
                "their signed request: they were restored from a bucket that had none"
            )
        return proof.problems

    report.look("archive: against signed requests", dropped)


def _tell(report: Report, text: str, *, is_json: bool) -> None:
    if is_json:
        print_json({"problems": report.problems, "notes": report.notes})
    else:
        for part, found in report.problems.items():
            for problem in found[:TOLD_MAX]:
                # What was forged is shown as text, not sent to the terminal.
                shown = "".join(char if char.isprintable() else " " for char in problem)
                click.echo(f"{part}: {shown}")
            if len(found) > TOLD_MAX:
                click.echo(f"{part}: and {len(found) - TOLD_MAX} more")
        for note in report.notes:
            click.echo(f"note: {note}")
    if report.count:
        raise click.ClickException(f"{report.count} problems ({text}).")
    if not is_json:
        click.echo(f"Nothing is wrong: {text}, {len(report.problems)} parts verified.")
