"""From the log into the archive: export, and the proof that allows the log to forget.

Every step is idempotent and leaves the archive valid at each moment: new files first, then the
manifest, in one rename. A crash in between leaves files that nobody names; `Archive.remove_unnamed`
finds them.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import polars as pl

from warehouse.archive import (
    Archive,
    ArchiveError,
    Manifest,
    Part,
    with_vote_parts,
)
from warehouse.frames import empty
from warehouse.log import LogReader, VoteColumns
from warehouse.log_frames import (
    SUBMISSION_SCHEMA,
    VERSION_KEY,
    event_rows,
    newest_versions,
    submission_rows,
    text_rows,
    vote_rows,
)
from warehouse.tables import ARCHIVED_TEXTS, ARCHIVED_VOTES

# So much at a time, whatever there is to export: a piece of texts is 20 MB, as rows and as columns,
# and a few of them wait.
VOTES_PIECE_ROWS = 150_000
TEXTS_PIECE_ROWS = 10_000
WRITERS = 2
# The manifest names all files: written for each of 2,700 it took a third of an export.
PIECES_A_MANIFEST = 64
# So many pieces of texts are followed by the submissions that they came in: some 400 MB of the log,
# which the system still has in memory then.
TEXTS_PIECES_A_STRETCH = 16

Piece = TypeVar("Piece")
# A folder of the archive, what is to be written to it, and up to which seq that is.
AppendedPiece = tuple[str, pl.DataFrame, int]
# Told of what, how many seqs of it are exported, and of how many.
OnProgress = Callable[[str, int, int], None]


def untold(_what: str, _done: int, _total: int) -> None:
    """Tell nobody of progress."""


@dataclass(frozen=True)
class Exported:
    """What one export of votes did."""

    manifest: Manifest
    new_rows: int
    partitions: int


def export_votes(
    archive: Archive, log: LogReader, through: int, on_progress: OnProgress = untold
) -> Exported:
    """Bring the archive's votes up to seq `through`; on return manifest and files are durable.

    Costs the new rows and the partitions that they touch. Raises `ArchiveError` when log and
    archive do not belong together.
    """
    with archive.changing():
        manifest = archive.manifest()
        if manifest.watermark < log.dropped_through():
            raise ArchiveError(
                f"the archive ends at seq {manifest.watermark}, but the log begins only after "
                f"{log.dropped_through()}: restore the archive"
            )
        if manifest.watermark > log.head():
            raise ArchiveError(
                f"the archive counts seq {manifest.watermark}, but the log ends at {log.head()}: "
                "it is another or an older log"
            )
        if manifest.watermark >= through:
            return Exported(manifest, 0, 0)
        new_rows, names = 0, set[str]()
        after = manifest.watermark
        for chunks, last_seq in _ahead(_in_pieces(log, after, through)):
            incoming = vote_rows(chunks)
            parts = _merged_votes(archive, manifest, incoming, last_seq)
            manifest = with_vote_parts(manifest, parts, last_seq)
            archive.replace_manifest(manifest)
            new_rows += incoming.height
            names |= set(parts)
            on_progress("Votes", last_seq - after, through - after)
    return Exported(manifest, new_rows, len(names))


def _in_pieces(log: LogReader, after: int, through: int) -> Iterator[tuple[list[VoteColumns], int]]:
    """Yield the votes of a stretch of the log, and the seq up to which they are: all, in the end.

    Each piece takes bounded memory: a whole history may have to be archived at once.
    """
    waiting: list[VoteColumns] = []
    rows = 0
    for chunk in log.votes_between(after, through):
        waiting.append(chunk)
        rows += len(chunk.seq)
        if rows >= VOTES_PIECE_ROWS:
            yield waiting, chunk.seq[-1]
            waiting, rows = [], 0
    yield waiting, through


def _ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield the pieces, each made in another thread while the one before it is worked on.

    Reading the log takes one core, compressing and syncing files another.
    """
    with ThreadPoolExecutor(1, "export") as reader:
        waiting = reader.submit(next, pieces, None)
        while (piece := waiting.result()) is not None:
            waiting = reader.submit(next, pieces, None)
            yield piece


def _written(archive: Archive, pieces: Iterable[AppendedPiece]) -> Iterator[tuple[str, Part, int]]:
    """Write each piece to a file of its folder; yield them in order, each durable by then.

    The next ones are read meanwhile: that takes Python's lock, compressing and syncing do not.
    """
    waiting: deque[tuple[str, Future[Part], int]] = deque()
    failure: Exception | None = None
    remaining = iter(pieces)
    with ThreadPoolExecutor(WRITERS, "export") as writers:
        while True:
            try:
                piece = next(remaining, None)
            except Exception as error:  # noqa: BLE001  (raised below)
                failure = error
                break
            if piece is None:
                break
            folder, rows, last_seq = piece
            written = writers.submit(archive.write, folder, f"{last_seq:012d}", rows)
            waiting.append((folder, written, last_seq))
            if len(waiting) > WRITERS:
                folder, written, last_seq = waiting.popleft()
                yield folder, written.result(), last_seq
        # What came before a failure is not to be written again.
        for folder, written, last_seq in waiting:
            yield folder, written.result(), last_seq
    if failure is not None:
        raise failure


def _merged_votes(
    archive: Archive, manifest: Manifest, incoming: pl.DataFrame, last_seq: int
) -> dict[str, Part]:
    """Write the partitions that new votes touch anew; return their files.

    Side by side: of many small ones each waits for the disk.
    """

    def written(partition: tuple[tuple[object, ...], pl.DataFrame]) -> tuple[str, Part]:
        (name,), rows = partition
        old = manifest.votes.get(str(name))
        merged = newest_versions([archive.read(old), rows] if old else [rows])
        return str(name), archive.write(f"votes/{name}", f"{last_seq:012d}", merged)

    partitions = incoming.group_by(manifest.partition_of("task_id"), maintain_order=True)
    with ThreadPoolExecutor(WRITERS, "export") as writers:
        return dict(writers.map(written, partitions))


def export_submitted(
    archive: Archive,
    log: LogReader,
    through: int,
    rows_max: int,
    on_progress: OnProgress = untold,
) -> Counter[str]:
    """Append texts up to seq `through`, about `rows_max` rows at most, and what they came in.

    Returns how many `texts` and signed `submissions`. Bounded, because texts are a hundred times
    the bytes of votes and no weight waits for them; submissions go as far as the texts do. Both of
    one stretch are read together, while it is in memory: a log may be larger than that.
    """
    exported: Counter[str] = Counter()
    with archive.changing():
        manifest = saved = archive.manifest()
        after, texts_after = manifest.submissions_watermark, manifest.texts_watermark
        pieces = _submitted_in_pieces(log, manifest, through, rows_max)
        try:
            for number, (folder, part, last_seq) in enumerate(_written(archive, pieces), 1):
                manifest = _with_appended(manifest, folder, part, last_seq)
                if number % PIECES_A_MANIFEST == 0:
                    archive.replace_manifest(manifest)
                    saved = manifest
                exported[folder] += part.rows
                if folder == "texts":
                    on_progress("Texts", last_seq - texts_after, through - texts_after)
        finally:
            # What came before a failure is not to be written again.
            if manifest is not saved:
                archive.replace_manifest(manifest)
        if exported["submissions"]:
            # Nearly all of them came with the texts.
            on_progress("Submissions", manifest.submissions_watermark - after, through - after)
    return exported


def _with_appended(manifest: Manifest, folder: str, part: Part, last_seq: int) -> Manifest:
    if folder == "texts":
        return replace(manifest, texts=(*manifest.texts, part), texts_watermark=last_seq)
    submissions = (*manifest.submissions, part)
    return replace(manifest, submissions=submissions, submissions_watermark=last_seq)


def _submitted_in_pieces(
    log: LogReader, manifest: Manifest, through: int, rows_max: int
) -> Iterator[AppendedPiece]:
    done, reached, rows = manifest.submissions_watermark, manifest.texts_watermark, 0
    texts = _texts_in_pieces(log, reached, through, rows_max)
    for number, (piece, reached) in enumerate(texts, 1):
        yield "texts", piece, reached
        rows += piece.height
        if number % TEXTS_PIECES_A_STRETCH == 0:
            for submissions, last_seq in _submissions_in_pieces(log, done, reached):
                yield "submissions", submissions, last_seq
                done = last_seq
    # All of them, with the acts of admins after the last text, or as far as the texts have come.
    through = through if rows < rows_max else reached
    for submissions, last_seq in _submissions_in_pieces(log, done, through):
        yield "submissions", submissions, last_seq


def _texts_in_pieces(
    log: LogReader, after: int, through: int, rows_max: int
) -> Iterator[tuple[pl.DataFrame, int]]:
    taken: list[pl.DataFrame] = []
    rows = waiting = 0
    for chunk in log.texts_between(after, through):
        taken.append(text_rows([chunk]))
        rows, waiting = rows + len(chunk), waiting + len(chunk)
        if rows >= rows_max:
            break
        if waiting >= TEXTS_PIECE_ROWS:
            yield pl.concat(taken), chunk[-1].seq
            taken, waiting = [], 0
    if taken:
        yield pl.concat(taken), int(taken[-1]["seq"][-1])


def export_events(archive: Archive, log: LogReader, through: int) -> int:
    """Append all events up to seq `through`, each with its signed request; return how many."""
    with archive.changing():
        manifest = archive.manifest()
        events = log.events_between(manifest.events_watermark, through)
        if not events:
            return 0
        rows = []
        for event in events:
            # An event follows the submission that it came with.
            (submission,) = itertools.chain.from_iterable(
                log.submissions_between(event.seq - 2, event.seq - 1)
            )
            rows.append((*event, *submission[3:10]))
        last_seq = events[-1].seq
        part = archive.write("events", f"{last_seq:012d}", event_rows(rows))
        archive.replace_manifest(
            replace(manifest, events=(*manifest.events, part), events_watermark=last_seq)
        )
    return len(events)


def _submissions_in_pieces(
    log: LogReader, after: int, through: int
) -> Iterator[tuple[pl.DataFrame, int]]:
    for chunk in log.submissions_between(after, through):
        yield submission_rows(chunk), chunk[-1].seq + max(chunk[-1].sample_count, 1)


def differences(archive: Archive, log: LogReader, through: int) -> list[str]:
    """Compare log and archive record by record up to seq `through`; say what is not the same.

    An empty list is the proof that `LogKeeper.drop_through(through)` loses nothing.
    """
    manifest = archive.manifest()
    for name, watermark in (
        ("votes", manifest.watermark),
        ("texts", manifest.texts_watermark),
        ("submissions", manifest.submissions_watermark),
    ):
        if watermark < through and name != "texts":
            return [f"the archive's {name} end at seq {watermark}, before {through}"]
    found: list[str] = []
    votes = archive.votes(manifest)
    dropped = log.dropped_through()
    # Their presence is enough: the texts themselves are in the submissions, compared byte by byte.
    texts = [p for p in manifest.texts if dropped < p.last_seq and p.first_seq <= through]
    archived_texts = pl.concat(
        [empty(ARCHIVED_TEXTS).select("seq"), *(archive.seqs(part) for part in texts)]
    )
    for chunk in log.votes_between(dropped, through):
        rows = vote_rows([chunk])
        joined = rows.join(votes, on=VERSION_KEY, how="left", suffix="_archived")
        lost = joined.filter(
            pl.col("seq_archived").is_null() | (pl.col("seq_archived") < pl.col("seq"))
        )
        found += [f"sample {seq} is not in the archive" for seq in lost["seq"]]
        same = rows.join(votes, on="seq", how="semi")
        changed = same.join(votes, on=ARCHIVED_VOTES.names, how="anti", nulls_equal=True)
        found += [f"sample {seq} differs in the archive" for seq in changed["seq"]]
        current = same.select("seq")
        no_text = current.join(archived_texts, on="seq", how="anti")
        found += [f"the texts of sample {seq} are not in the archive" for seq in no_text["seq"]]
    return found + _submission_differences(archive, log, manifest, through)


def _submission_differences(
    archive: Archive, log: LogReader, manifest: Manifest, through: int
) -> list[str]:
    found: list[str] = []
    parts = {part.first_seq: part for part in manifest.submissions}
    starts = sorted(parts)
    archived = empty(ARCHIVED_TEXTS).select("seq")
    for chunk in log.submissions_between(log.dropped_through(), through):
        rows = submission_rows(chunk)
        reads = [
            archive.read(parts[start])
            for start in starts
            if start <= chunk[-1].seq and parts[start].last_seq >= chunk[0].seq
        ]
        if not reads:
            return [*found, f"submission {chunk[0].seq} is not in the archive"]
        archived = pl.concat(reads)
        lost = rows.join(archived, on=list(SUBMISSION_SCHEMA), how="anti", nulls_equal=True)
        found += [f"submission {seq} is not in the archive as it arrived" for seq in lost["seq"]]
    return found
