"""The warehouse in a bucket, as its readers see it: one pointer, and what it names.

    current.json                              the pointer, the only object that is ever replaced
    generations/<snapshot id>.duckdb, .json   a generation, and which archive files its views read
    archive/manifests/<watermark>-<digest>.json
    archive/votes/..., texts/..., submissions/..., events/...
    snapshots/<block>-<digest>.parquet        chain snapshots

Whatever a pointer names was there before it, whole, and never changes. So a reader that follows the
pointer sees all of one publication; `publishing` writes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warehouse.files import make_directory
from warehouse.generation import NAME, Generation, GenerationError, Generations, computed_at_ms
from warehouse.objects import ObjectMissingError, ObjectStore, StoredObject

POINTER = "current.json"
POINTER_BYTES_MAX = 65_536
# A key is also the name of a local file: it leads nowhere else.
KEY = re.compile(r"(generations|archive|snapshots)(/[\w-][\w.-]*)+")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """An object that never changes: its key, its size in bytes, and its SHA-256."""

    key: str
    size: int
    sha256: str

    def is_whole(self, path: Path) -> bool:
        """Tell whether a local file is this object already."""
        try:
            if path.stat().st_size != self.size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False

    def bring(self, store: ObjectStore, path: Path) -> None:
        """Have the object as a local file; raises `ObjectStorageError`."""
        if not self.is_whole(path):
            make_directory(path.parent)
            store.download(self.key, path, size=self.size, sha256=self.sha256)


@dataclass(frozen=True)
class Pointer:
    """What is current in a bucket.

    `archive_files` lists the archive's files of the generation, `manifest` those that count now.
    `chain` is what the pointer to the newest chain snapshot said when this was published.
    """

    snapshot_id: str
    netuid: int
    watermark: int
    metagraph_synced_at_ms: int
    generation: StoredFile
    archive_files: StoredFile
    manifest: StoredFile
    chain_snapshot: StoredFile
    chain: Mapping[str, Any]

    @property
    def made_from(self) -> dict[str, int]:
        """What tells an older generation from a newer one."""
        return {
            "watermark": self.watermark,
            "metagraph_synced_at_ms": self.metagraph_synced_at_ms,
        }

    def as_json(self) -> bytes:
        """Return the pointer object's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Pointer":
        """Read a pointer; raises `GenerationError` where it is none."""
        try:
            fields = json.loads(content)
            pointer = cls(
                snapshot_id=fields["snapshot_id"],
                netuid=fields["netuid"],
                watermark=fields["watermark"],
                metagraph_synced_at_ms=fields["metagraph_synced_at_ms"],
                generation=StoredFile(**fields["generation"]),
                archive_files=StoredFile(**fields["archive_files"]),
                manifest=StoredFile(**fields["manifest"]),
                chain_snapshot=StoredFile(**fields["chain_snapshot"]),
                chain=fields["chain"],
            )
            files = (
                pointer.generation, pointer.archive_files, pointer.manifest, pointer.chain_snapshot
            )  # fmt: skip
            numbers = (pointer.netuid, pointer.watermark, pointer.metagraph_synced_at_ms)
            is_whole = (
                NAME.fullmatch(pointer.snapshot_id) is not None
                # An instant that there is: once followed, nothing newer could take its place.
                and computed_at_ms(pointer.snapshot_id) > 0
                and all(type(number) is int and number >= 0 for number in numbers)
                and isinstance(pointer.chain, dict)
                and all(
                    KEY.fullmatch(file.key)
                    and type(file.size) is int
                    and DIGEST.fullmatch(file.sha256)
                    for file in files
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise GenerationError(f"the bucket's pointer cannot be read: {error}") from error
        if not is_whole:
            raise GenerationError("the bucket's pointer cannot be read: it names no generation")
        return pointer


def read_pointer(store: ObjectStore, unless: str | None = None) -> StoredObject | None:
    """Return the pointer object; None where there is none yet, or where its tag is `unless`.

    Raises `ObjectStorageError`, also where there was one and now there is none.
    """
    try:
        return store.get(POINTER, unless=unless, bytes_max=POINTER_BYTES_MAX)
    except ObjectMissingError:
        if unless is not None:
            raise
        return None


def follow(store: ObjectStore, generations: Generations, seen: str | None = None) -> str | None:
    """Have the bucket's current generation on this machine, and make it the current one here.

    Returns the pointer's tag, to be given as `seen` the next time; None before the first
    publication. A generation that is here already is not brought again, and what is current here
    never goes back. Raises `ObjectStorageError` or `GenerationError`; then what is here stays.
    """
    found = read_pointer(store, seen)
    if found is None:
        return seen
    have(store, generations, Pointer.from_json(found.content))
    return found.etag


def have(store: ObjectStore, generations: Generations, pointer: Pointer) -> None:
    """Have what a pointer names on this machine, and current, unless what is here is newer."""

    def bring(generation: Generation) -> None:
        pointer.archive_files.bring(store, generation.path.with_suffix(".json"))
        pointer.generation.bring(store, generation.path)

    if generations.adopt(pointer.snapshot_id, pointer.made_from, bring):
        generations.retain()
        return
    current = generations.current()
    if current and current.snapshot_id == pointer.snapshot_id and _is_cut(current, pointer):
        bring(current)


def _is_cut(generation: Generation, pointer: Pointer) -> bool:
    """Tell whether a file that was whole when it became current has lost something since."""
    try:
        return generation.path.stat().st_size != pointer.generation.size
    except FileNotFoundError:
        return True
