"""The archive: Parquet files of samples and submissions, and the manifest that names them.

Votes, the narrow part, are partitioned by task range and hold the newest version of every sample:
it is resolved once, at export, since resolving it in every query costs five to ten times the query.
Texts, the wide part, are written once and joined by seq. Submissions are the signed evidence. A
file is immutable; the manifest is replaced atomically and is the only truth about which files
count. Events, the acts of admins, are kept with the requests that signed them: with the newest
generation they are what a lost log begins again from. `export` moves records here.
"""

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import orjson
import polars as pl

from warehouse.archive_views import ArchiveFiles
from warehouse.files import locked, make_directory, write_durably
from warehouse.frames import empty
from warehouse.settings import WarehouseSettings
from warehouse.tables import ARCHIVED_VOTES

UNTASKED = "untasked"
COMPRESSION_LEVEL = 1  # level 3 takes half as long again and saves a twentieth
# A file that no manifest names may belong to an export that is about to name it.
UNNAMED_AGE_SECONDS_MIN = 3_600


class ArchiveError(Exception):
    """The archive is not what the log says it must be; the message says how."""


@dataclass(frozen=True)
class Part:
    """A file of records with first_seq <= seq <= last_seq. `file` is relative to the archive.

    `size` in bytes; 0 in manifests from before it was recorded.
    """

    file: str
    first_seq: int
    last_seq: int
    rows: int
    sha256: str
    size: int = 0


@dataclass(frozen=True)
class Manifest:
    """Which files count, and up to where the log is in them.

    `votes` maps a partition to its file; `current_samples` counts their rows. `watermark`,
    `texts_watermark`, `submissions_watermark` and `events_watermark` are seqs. `log_id` names the
    log that it is of, once it is published anywhere: the seqs of another log are other records.
    """

    tasks_per_partition: int
    watermark: int = 0
    current_samples: int = 0
    votes: dict[str, Part] = field(default_factory=dict)
    texts_watermark: int = 0
    texts: tuple[Part, ...] = ()
    submissions_watermark: int = 0
    submissions: tuple[Part, ...] = ()
    events_watermark: int = 0
    events: tuple[Part, ...] = ()
    log_id: str = ""

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest":
        """Read what `as_json` wrote; raises `ValueError`, `KeyError` or `TypeError`."""
        fields = orjson.loads(content)
        if not isinstance(fields, dict) or not isinstance(fields.get("votes"), dict):
            raise TypeError("that is no manifest")
        votes = {name: Part(**part) for name, part in fields.pop("votes").items()}
        texts, submissions, events = (
            tuple(Part(**part) for part in fields.pop(name, ()))
            for name in ("texts", "submissions", "events")
        )
        return cls(**fields, votes=votes, texts=texts, submissions=submissions, events=events)

    def as_json(self) -> bytes:
        """Return the one text of this manifest."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)

    def parts(self) -> tuple[Part, ...]:
        """Return all files that count."""
        return (*self.votes.values(), *self.texts, *self.submissions, *self.events)

    def partition(self, task_id: int | None) -> str:
        """Return the name of the partition that a task belongs to."""
        return UNTASKED if task_id is None else str(task_id // self.tasks_per_partition)

    def partition_of(self, task_id: str) -> pl.Expr:
        """Return the same of a column of task ids."""
        partition = pl.col(task_id) // self.tasks_per_partition
        return partition.cast(pl.String).fill_null(UNTASKED).alias("partition")


class Archive:
    """The archive of one warehouse directory."""

    def __init__(self, settings: WarehouseSettings) -> None:
        self.settings = settings
        self.directory = settings.warehouse_path / "archive"
        self._manifest_path = self.directory / "manifest.json"

    def manifest(self) -> Manifest:
        """Return the manifest, an empty one before the first export.

        Raises `ArchiveError` when it is there and cannot be read: an unreadable archive is not
        an empty one.
        """
        try:
            return Manifest.from_json(self._manifest_path.read_bytes())
        except FileNotFoundError:
            return Manifest(self.settings.archive_tasks_per_partition)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(f"{self._manifest_path} cannot be read: {error}") from error

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the right to change the manifest; everybody who replaces it holds this."""
        make_directory(self.directory)
        with locked(self.directory / "archive.lock", self.settings.publish_lock_seconds_max):
            yield

    def replace_manifest(self, manifest: Manifest) -> None:
        """Make `manifest` the truth, durably. Only inside `changing()`."""
        write_durably(self._manifest_path, manifest.as_json())

    def log_id(self) -> str:
        """Return the name of the log that this is the archive of, durably given at the first call.

        A restored archive has the name that it had.
        """
        with self.changing():
            manifest = self.manifest()
            if not manifest.log_id:
                manifest = replace(manifest, log_id=uuid4().hex)
                self.replace_manifest(manifest)
        return manifest.log_id

    def write(self, folder: str, name: str, rows: pl.DataFrame) -> Part:
        """Write rows with a `seq` column to a new immutable file; durable on return."""
        file = Path(folder) / f"{name}-{uuid4().hex[:8]}.parquet"
        path = self.directory / file
        make_directory(path.parent)
        parquet = io.BytesIO()
        rows.write_parquet(parquet, compression="zstd", compression_level=COMPRESSION_LEVEL)
        content = parquet.getvalue()
        write_durably(path, content)
        seqs = rows["seq"]
        first_seq, last_seq = seqs.min(), seqs.max()
        if not isinstance(first_seq, int) or not isinstance(last_seq, int):
            raise ArchiveError(f"nothing to write to {file}")
        digest = hashlib.sha256(content).hexdigest()
        return Part(str(file), first_seq, last_seq, rows.height, digest, len(content))

    def read(self, part: Part) -> pl.DataFrame:
        """Read one file; raises `ArchiveError` when it is gone or is not what was written."""
        return pl.read_parquet(io.BytesIO(self.content(part)))

    def seqs(self, part: Part) -> pl.DataFrame:
        """Read the `seq` column of one file, as `read` does."""
        return pl.read_parquet(io.BytesIO(self.content(part)), columns=["seq"])

    def content(self, part: Part) -> bytes:
        """Return one file's bytes; raises `ArchiveError` as `read` does."""
        try:
            content = (self.directory / part.file).read_bytes()
        except OSError as error:
            raise ArchiveError(f"{part.file} cannot be read: {error}") from error
        # Before it is parsed: a damaged Parquet file can end the whole process.
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise ArchiveError(f"{part.file} is damaged: it is not what was written")
        return content

    def require(self, manifest: Manifest) -> None:
        """Raise `ArchiveError` when a file of votes is gone or has another size; reads none."""
        for part in manifest.votes.values():
            try:
                size = (self.directory / part.file).stat().st_size
            except OSError as error:
                raise ArchiveError(f"{part.file} cannot be read: {error}") from error
            if part.size and size != part.size:
                raise ArchiveError(f"{part.file} is damaged: {size} bytes instead of {part.size}")

    def size(self, part: Part) -> int:
        """Return one file's size in bytes; raises `ArchiveError` when it is gone."""
        if part.size:
            return part.size
        try:
            return (self.directory / part.file).stat().st_size
        except OSError as error:
            raise ArchiveError(f"{part.file} cannot be read: {error}") from error

    def votes(self, manifest: Manifest) -> pl.DataFrame:
        """Return all current samples' narrow part, in the columns of `ARCHIVED_VOTES`."""
        parts = [self.read(part) for part in manifest.votes.values()]
        return pl.concat(parts) if parts else empty(ARCHIVED_VOTES)

    def votes_after(self, manifest: Manifest, seq: int) -> pl.DataFrame:
        """Return the current samples above a seq; reads the files that have one."""
        parts = [self.read(part) for part in manifest.votes.values() if part.last_seq > seq]
        rows = pl.concat(parts) if parts else empty(ARCHIVED_VOTES)
        return rows.filter(pl.col("seq") > seq)

    def files(self, manifest: Manifest) -> ArchiveFiles:
        """Return the files that a generation's `samples` view reads."""
        return ArchiveFiles(
            tuple(self.directory / part.file for part in manifest.votes.values()),
            tuple(self.directory / part.file for part in manifest.texts),
        )

    def remove_unnamed(self, named: set[Path]) -> int:
        """Remove files that neither the manifest nor `named` holds on to; return how many."""
        with self.changing():
            manifest = self.manifest()
            keep = named | {self.directory / part.file for part in manifest.parts()}
            unnamed = [
                path
                for path in self.directory.rglob("*.parquet*")
                if path not in keep and time.time() - path.stat().st_mtime > UNNAMED_AGE_SECONDS_MIN
            ]
            for path in unnamed:
                path.unlink(missing_ok=True)
        return len(unnamed)


def with_vote_parts(manifest: Manifest, parts: dict[str, Part], watermark: int) -> Manifest:
    """Return the manifest after an export that wrote `parts` anew."""
    votes = {**manifest.votes, **parts}
    return replace(
        manifest,
        votes=votes,
        watermark=watermark,
        current_samples=sum(part.rows for part in votes.values()),
    )
