"""What the archive's votes come to, partition by partition, and kept from run to run.

A sample's key names its task, and a task lies in one partition. So verdicts and counts are made of
one partition at a time, in the memory that one takes, and what the last run made of a partition
that has not changed since, at the same stakes, is taken as it is. A run costs what is new.

What is kept lies in `LEOMA_HOME/warehouse/tallies` and may be removed at any time.
"""

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines import frames, scoring
from pipelines import votes as voting
from warehouse import tables
from warehouse.archive import Archive, Manifest, Part
from warehouse.files import make_directory, temporary_beside
from warehouse.frames import empty
from warehouse.tables import ARCHIVED_VOTES, VERDICTS

SUFFIX = ".tally"
DIGEST_BYTES = 64
# Whatever changes what is made of the same votes makes what was kept worthless.
RULES = (voting, scoring, frames, tables)
NO_OUTCOMES = empty(VERDICTS).with_columns(is_counting=pl.lit(None, pl.Boolean))


@dataclass(frozen=True)
class Tallies:
    """All partitions' figures. `anew` counts the partitions that this run had to read.

    `verdicts` is the table; `entries` are as `scoring.score_entries` makes them, several a pair of
    validator and miner; `counting_tasks` the tasks with a vote of a registered validator.
    `problems`: sentences about partitions that contradict themselves; none of those is kept.
    """

    verdicts: pl.DataFrame
    entries: pl.DataFrame
    counting_tasks: pl.Series
    anew: int
    problems: tuple[str, ...]


class TallyKeeper:
    """Makes tallies of one archive, and keeps them in a directory."""

    def __init__(self, archive: Archive, directory: Path) -> None:
        self.archive = archive
        self.directory = directory

    def tallies(self, manifest: Manifest, validators: pl.DataFrame) -> Tallies:
        """Return what all current samples of a manifest come to at the validators' stakes.

        `validators` is the table. Raises `ArchiveError` when a file that has to be read is gone or
        damaged.
        """
        stakes = validators.filter("is_registered").select("hotkey", "stake_rao").sort("hotkey")
        at_stakes = _digest(repr(stakes.rows()).encode())
        # Where nothing can be kept everything is made, and the run goes on.
        with contextlib.suppress(OSError):
            make_directory(self.directory)
        outcomes: list[pl.DataFrame] = []
        entries: list[pl.DataFrame] = []
        problems: list[str] = []
        used: set[Path] = set()
        anew = 0
        for name, part in manifest.votes.items():
            of_verdicts = self._path("verdicts", part, at_stakes)
            of_entries = self._path("entries", part)
            used |= {of_verdicts, of_entries}
            judged, counted = _read(of_verdicts), _read(of_entries)
            if judged is None or counted is None:
                anew += 1
                samples = self.archive.read(part)
                judged, counted = _outcomes(samples, validators), scoring.score_entries(samples)
                found = [
                    *_contradictions(name, part, samples, manifest),
                    *_uncounted(part, samples, judged, counted),
                ]
                problems += found
                if not found:
                    _keep(of_verdicts, judged)
                    _keep(of_entries, counted)
            outcomes.append(judged)
            entries.append(counted)
        with contextlib.suppress(OSError):
            for path in set(self.directory.iterdir()) - used:
                path.unlink(missing_ok=True)
        every = pl.concat([NO_OUTCOMES, *outcomes])
        return Tallies(
            verdicts=frames.conform(every, VERDICTS),
            entries=pl.concat([scoring.score_entries(empty(ARCHIVED_VOTES)), *entries]),
            counting_tasks=every.filter("is_counting")["task_id"].unique(),
            anew=anew,
            problems=tuple(problems),
        )

    def _path(self, kind: str, part: Part, *made_from: str) -> Path:
        key = _digest("\n".join([_rules(), part.sha256, *made_from]).encode())
        return self.directory / f"{kind}-{key}{SUFFIX}"


def _outcomes(samples: pl.DataFrame, validators: pl.DataFrame) -> pl.DataFrame:
    votes = voting.votes(samples, validators)
    counting = scoring.counting_tasks(votes)
    return voting.verdicts(votes).with_columns(
        is_counting=pl.col("task_id").is_in(counting.implode())
    )


def _contradictions(
    name: str, part: Part, samples: pl.DataFrame, manifest: Manifest
) -> Iterator[str]:
    """Say what is impossible about a partition's samples.

    A key that is there once, in the partition of its task, is in the archive once.
    """
    if samples.height != part.rows:
        yield f"{part.file} has {samples.height} samples, the manifest says {part.rows}"
    for columns in (["seq"], list(ARCHIVED_VOTES.key)):
        if (doubled := samples.height - samples.select(columns).n_unique()) > 0:
            yield f"{part.file}: {doubled} samples share their {' and '.join(columns)}"
    if elsewhere := samples.filter(manifest.partition_of("task_id") != name).height:
        yield f"{part.file}: {elsewhere} samples belong to another partition"


def _uncounted(
    part: Part, samples: pl.DataFrame, outcomes: pl.DataFrame, entries: pl.DataFrame
) -> Iterator[str]:
    """Say where samples of a partition do not count once each."""
    votes, tasked = outcomes["validator_count"].sum(), samples["task_id"].count()
    if votes != tasked:
        yield f"{part.file}: {tasked} samples have a task, {votes} count in verdicts"
    if (counted := entries["total_samples"].sum()) != samples.height:
        yield f"{part.file}: {samples.height} samples, {counted} count in score entries"


@functools.cache
def _rules() -> str:
    """Return a digest over the code that makes tallies."""
    paths = [Path(module.__file__ or "") for module in RULES] + [Path(__file__)]
    code = b"\n".join(path.read_bytes() for path in paths)
    return _digest(code + pl.__version__.encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> pl.DataFrame | None:
    """Read what `_keep` wrote; None when it is not there, or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, frame = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    # Before it is parsed: a wrong verdict pays the wrong miner.
    if digest != _digest(frame).encode():
        return None
    return pl.read_ipc(io.BytesIO(frame))


def _keep(path: Path, frame: pl.DataFrame) -> None:
    """Keep a frame for the next run, if there is room: it can be made again."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer)
    content = buffer.getvalue()
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(_digest(content).encode() + content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
