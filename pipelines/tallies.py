"""What the archive's votes come to, partition by partition, and kept from run to run.

A sample's key names its task, and a task lies in one partition. So verdicts and counts are made of
one partition at a time, and what the last run made of a partition that has not changed since, at
the same stakes, is taken as it is. A run costs what is new: of all others it reads a summary, and
the verdicts of those that the window reaches. When stakes move, sums are made anew of who voted
how, and no vote is read.

What is kept lies in `LEOMA_HOME/warehouse/tallies` and may be removed at any time.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipelines import frames, scoring
from pipelines import votes as voting
from warehouse import arrow, tables
from warehouse import frames as warehouse_frames
from warehouse import verdicts as generation_verdicts
from warehouse.archive import UNTASKED, Archive, Manifest, Part
from warehouse.files import make_directory, temporary_beside
from warehouse.frames import empty
from warehouse.tables import ARCHIVED_VOTES, VERDICTS
from warehouse.verdicts import task_digests

SUFFIX = ".tally"
DIGEST_BYTES = 64
# Whatever changes what is made of the same votes makes what was kept worthless.
RULES = (voting, scoring, frames, warehouse_frames, tables, generation_verdicts)
# The newest partitions, which change. The counts of all others are kept as one sum.
NEWEST_PARTITIONS = 4
# Polars leaves a third of two cores idle: its queries on one partition are small.
PARTITIONS_AT_ONCE = 2
NO_ENTRIES = scoring.score_entries(empty(ARCHIVED_VOTES))


@dataclass(frozen=True)
class Summary:
    """What a partition's verdicts come to: how many, of how many votes, and of which tasks.

    `digests` are those of `warehouse.verdicts.task_digests`, by task id in decimal;
    `counting_tasks` have a vote of a registered validator.
    """

    verdicts: int
    votes: int
    digests: dict[str, str]
    counting_tasks: list[int]

    @classmethod
    def of(cls, verdicts: pl.DataFrame, counting_tasks: pl.Series) -> "Summary":
        """Summarise a partition's part of the table."""
        digests = task_digests(as_arrow(verdicts))
        return cls(
            verdicts=verdicts.height,
            votes=int(verdicts["validator_count"].sum()),
            digests={str(task_id): digest for task_id, digest in digests.items()},
            counting_tasks=counting_tasks.sort().to_list(),
        )


@dataclass(frozen=True)
class Verdicts:
    """The table `verdicts`, of which most is read only when it is asked for.

    A `warehouse.verdicts.VerdictSource`. `anew` names the partitions that this run made; `held` has
    those that could not be kept, or must not be.
    """

    keeper: "TallyKeeper"
    manifest: Manifest
    validators: pl.DataFrame
    keys: Mapping[str, str]
    summaries: Mapping[str, Summary]
    anew: Sequence[str]
    held: Mapping[str, pl.DataFrame] = field(repr=False)

    def made_from(self) -> Mapping[str, str]:
        """Return, for each partition, a digest of its file, the stakes and the rules."""
        return self.keys

    def rows(self, partition: str) -> pa.Table:
        """Return a partition's verdicts as Arrow."""
        return as_arrow(self.frame(partition))

    def task_digests(self) -> Mapping[int, str]:
        """Return the digests of all tasks."""
        return {
            int(task_id): digest
            for summary in self.summaries.values()
            for task_id, digest in summary.digests.items()
        }

    def frame(self, partition: str) -> pl.DataFrame:
        """Return a partition's part of the table; raises `ArchiveError` as `TallyKeeper` does."""
        made = self.held.get(partition)
        if made is None:
            made = self.keeper.kept_frame("verdicts", self.keys[partition])
        if made is None or made.height != self.summaries[partition].verdicts:
            ballots = voting.ballots(self.keeper.archive.read(self.manifest.votes[partition]))
            made, _ = voting.verdicts_of(ballots, self.validators)
        return made

    def of_tasks(self, first: int, last: int) -> pl.DataFrame:
        """Return the verdicts on the tasks from `first` to `last`."""
        own = [
            self.frame(name)
            for name, summary in self.summaries.items()
            if any(first <= int(task_id) <= last for task_id in summary.digests)
        ]
        every = pl.concat([empty(VERDICTS), *own])
        return every.filter(pl.col("task_id").is_between(first, last))

    def whole(self) -> pl.DataFrame:
        """Return the whole table."""
        every = [empty(VERDICTS), *(self.frame(name) for name in self.keys)]
        return frames.conform(pl.concat(every), VERDICTS)

    @property
    def count(self) -> int:
        """The number of verdicts."""
        return sum(summary.verdicts for summary in self.summaries.values())

    @property
    def votes(self) -> int:
        """The number of votes that they count."""
        return sum(summary.votes for summary in self.summaries.values())


@dataclass(frozen=True)
class _Tally:
    """What a run has of one partition.

    `verdicts` only where they are not kept: of all partitions they would take memory that grows
    with history, and each is wanted once more, by itself. `entries` where the run made them.
    """

    summary: Summary
    is_anew: bool = False
    verdicts: pl.DataFrame | None = None
    entries: pl.DataFrame | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tallies:
    """All partitions' figures.

    `entries` are as `scoring.score_entries` makes them, several a pair of validator and miner.
    `problems`: sentences about partitions that contradict themselves; none of those is kept.
    `read` has the partitions whose votes this run had to read.
    """

    verdicts: Verdicts
    entries: pl.DataFrame
    problems: tuple[str, ...]
    read: frozenset[str]

    @property
    def anew(self) -> int:
        """The number of partitions whose verdicts this run made."""
        return len(self.verdicts.anew)

    @property
    def counting_tasks(self) -> pl.Series:
        """The tasks with a vote of a registered validator."""
        summaries = self.verdicts.summaries.values()
        tasks = [task_id for summary in summaries for task_id in summary.counting_tasks]
        return pl.Series("task_id", tasks, dtype=pl.Int64)


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
        keys = {name: _key(manifest, name, at_stakes) for name in manifest.votes}
        with ThreadPoolExecutor(PARTITIONS_AT_ONCE, "tally") as threads:
            of_partition = functools.partial(self._tally, manifest, validators)
            found = dict(zip(keys, threads.map(of_partition, keys, keys.values()), strict=True))
        entries = {name: one.entries for name, one in found.items() if one.entries is not None}
        every = self._entries(manifest, entries)
        self._remove_all_but(keys.values(), manifest)
        verdicts = Verdicts(
            self,
            manifest,
            validators,
            keys,
            summaries={name: one.summary for name, one in found.items()},
            anew=[name for name, one in found.items() if one.is_anew],
            held={name: one.verdicts for name, one in found.items() if one.verdicts is not None},
        )
        problems = itertools.chain.from_iterable(one.problems for one in found.values())
        return Tallies(verdicts, every, tuple(problems), frozenset(entries))

    def _tally(self, manifest: Manifest, validators: pl.DataFrame, name: str, key: str) -> _Tally:
        """Take what was kept of a partition, or make it; what contradicts itself is not kept."""
        part, of_votes = manifest.votes[name], _key(manifest, name)
        has_entries = self._path("entries", of_votes).exists()
        kept = self._kept_summary(key)
        if kept is not None and has_entries:
            return _Tally(kept)
        found: list[str] = []
        entries = None
        ballots = self.kept_frame("ballots", of_votes) if has_entries else None
        if ballots is None:
            samples = self.archive.read(part)
            ballots, entries = voting.ballots(samples), scoring.score_entries(samples)
            found += _contradictions(name, part, samples, manifest)
            found += _uncounted(part, int(entries["total_samples"].sum()), part.rows)
        verdicts, counting_tasks = voting.verdicts_of(ballots, validators)
        summary = Summary.of(verdicts, counting_tasks)
        found += _uncounted(part, summary.votes, 0 if name == UNTASKED else part.rows)
        is_kept = False
        if not found:
            if entries is not None:
                self._keep_frame("ballots", of_votes, ballots)
                self._keep_frame("entries", of_votes, entries)
            is_kept = self._keep_frame("verdicts", key, verdicts)
            # The last: where it is, the others have been.
            self._keep("summary", key, json.dumps(asdict(summary)).encode())
        held = None if is_kept else verdicts
        return _Tally(summary, is_anew=True, verdicts=held, entries=entries, problems=tuple(found))

    def kept_frame(self, kind: str, key: str) -> pl.DataFrame | None:
        """Return what was kept of a partition, None when it is gone or damaged."""
        content = self._kept(kind, key)
        return None if content is None else pl.read_ipc(io.BytesIO(content))

    def _entries(self, manifest: Manifest, made: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        """Return the counts of all partitions, those of the older ones as one sum."""
        names = sorted(manifest.votes, key=_age)
        older, newest = names[:-NEWEST_PARTITIONS], names[-NEWEST_PARTITIONS:]
        key = self._sum_key(manifest)
        summed = self.kept_frame("sum", key)
        if summed is None:
            own = [self._entries_of(manifest, name, made) for name in older]
            summed = scoring.summed_entries(pl.concat([NO_ENTRIES, *own]))
            if not set(older) & set(made):
                # Otherwise it may be of a partition that contradicts itself.
                self._keep_frame("sum", key, summed)
        own = [self._entries_of(manifest, name, made) for name in newest]
        return pl.concat([summed, *own])

    def _entries_of(
        self, manifest: Manifest, name: str, made: Mapping[str, pl.DataFrame]
    ) -> pl.DataFrame:
        if name in made:
            return made[name]
        kept = self.kept_frame("entries", _key(manifest, name))
        if kept is None:
            kept = scoring.score_entries(self.archive.read(manifest.votes[name]))
            self._keep_frame("entries", _key(manifest, name), kept)
        return kept

    @staticmethod
    def _sum_key(manifest: Manifest) -> str:
        older = sorted(manifest.votes, key=_age)[:-NEWEST_PARTITIONS]
        return _digest("\n".join(_key(manifest, name) for name in older).encode())

    def _remove_all_but(self, keys: Iterable[str], manifest: Manifest) -> None:
        used = {self._path("sum", self._sum_key(manifest))}
        for name in manifest.votes:
            used |= {self._path(kind, _key(manifest, name)) for kind in ("ballots", "entries")}
        used |= {self._path(kind, key) for kind in ("verdicts", "summary") for key in keys}
        with contextlib.suppress(OSError):
            for path in set(self.directory.iterdir()) - used:
                path.unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        return self.directory / f"{kind}-{key}{SUFFIX}"

    def _kept(self, kind: str, key: str) -> bytes | None:
        """Return what `_keep` kept; None when it is not there, or not what was written."""
        try:
            content = self._path(kind, key).read_bytes()
        except OSError:
            return None
        digest, kept = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        # Before it is parsed, and under its own name: a wrong verdict pays the wrong miner.
        return kept if digest == _named_digest(kind, key, kept) else None

    def _kept_summary(self, key: str) -> Summary | None:
        content = self._kept("summary", key)
        return None if content is None else Summary(**json.loads(content))

    def _keep(self, kind: str, key: str, content: bytes) -> bool:
        """Keep something for the next run, if there is room: it can be made again."""
        path = self._path(kind, key)
        temporary = temporary_beside(path)
        try:
            temporary.write_bytes(_named_digest(kind, key, content) + content)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True

    def _keep_frame(self, kind: str, key: str, frame: pl.DataFrame) -> bool:
        buffer = io.BytesIO()
        frame.write_ipc(buffer)
        return self._keep(kind, key, buffer.getvalue())


def as_arrow(verdicts: pl.DataFrame) -> pa.Table:
    """Return verdicts as a generation takes them."""
    return verdicts.to_arrow().select(VERDICTS.names).cast(arrow.schema(VERDICTS))


def _age(name: str) -> float:
    """Order partitions by how new their tasks are; legacy samples without one may come any time."""
    return math.inf if name == UNTASKED else int(name)


def _key(manifest: Manifest, name: str, *made_from: str) -> str:
    """Return a digest of all that follows for a partition: which it is, its votes, the rules."""
    place = f"{name} of {manifest.tasks_per_partition}"
    return _digest("\n".join([_rules(), place, manifest.votes[name].sha256, *made_from]).encode())


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


def _uncounted(part: Part, counted: int, expected: int) -> Iterator[str]:
    """Say where samples of a partition do not count once each."""
    if counted != expected:
        yield f"{part.file}: {counted} samples count, not {expected}"


@functools.cache
def _rules() -> str:
    """Return a digest over the code that makes tallies."""
    paths = [Path(module.__file__ or "") for module in RULES] + [Path(__file__)]
    code = b"\n".join(path.read_bytes() for path in paths)
    return _digest(code + f"{pl.__version__} {pa.__version__}".encode())


def _named_digest(kind: str, key: str, content: bytes) -> bytes:
    return _digest(f"{kind}-{key}\n".encode() + content).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# At the import, so that rules which are replaced meanwhile are not taken for those that ran.
_rules()
