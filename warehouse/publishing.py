"""Publishing a warehouse to a bucket: content first, then the pointer, replaced conditionally.

Of two publishers that saw the same pointer one wins, and the other publishes nothing. What has lost
its name is removed by age and count, never what the pointer or a kept generation names.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from warehouse.archive import UNNAMED_AGE_SECONDS_MIN, Archive, ArchiveError, Manifest, Part
from warehouse.bucket import POINTER, Pointer, StoredFile, have, read_pointer
from warehouse.generation import (
    NAME,
    SUFFIX,
    Generation,
    GenerationError,
    Generations,
    StaleRunError,
    to_keep,
)
from warehouse.objects import (
    ObjectChangedError,
    ObjectMissingError,
    ObjectStorageError,
    ObjectStore,
    StoredObject,
)
from warehouse.settings import WarehouseSettings

logger = logging.getLogger(__name__)

# Replaced by nobody: a bucket that lets it be replaced does not honour conditions.
PROBE = "conditions"
# A listing costs about as much as a few files do.
RESUMED_FILES_MIN = 20
NO_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class Removed:
    """What retention removed from a bucket."""

    generations: int
    archive_files: int


class WarehouseBucket:
    """One run's way into a bucket: what it saw there first, and what it published.

    `catch_up` comes first. Raises `ObjectStorageError` when the bucket does not do what was asked,
    `StaleRunError` when somebody else has published more, `GenerationError` when it is the bucket
    of another subnet or its service ignores conditions.
    """

    def __init__(self, settings: WarehouseSettings, store: ObjectStore) -> None:
        self._settings = settings
        self._store = store
        self._archive = Archive(settings)
        self._seen: StoredObject | None = None
        self._pointer: Pointer | None = None
        self._manifest = Manifest(settings.archive_tasks_per_partition)

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return self._store.url

    def catch_up(self, generations: Generations, netuid: int) -> None:
        """See what is current in the bucket; have it here if it is newer than what is here."""
        self._seen = read_pointer(self._store)
        if self._seen is None:
            return
        self._pointer = Pointer.from_json(self._seen.content)
        if self._pointer.netuid != netuid:
            raise GenerationError(
                f"{self.url} is the warehouse of netuid {self._pointer.netuid}, not of {netuid}"
            )
        self._manifest = self._read_manifest(self._pointer)
        if self._manifest.log_id and self._manifest.log_id != self._archive.manifest().log_id:
            raise GenerationError(
                f"{self.url} is the warehouse of another log, whose samples would no longer count. "
                "`leoma restore` brings a machine up to it"
            )
        have(self._store, generations, self._pointer)

    def put_archive(self, manifest: Manifest) -> StoredFile:
        """Have all files that a manifest names in the bucket, and then the manifest itself."""
        for name in ("watermark", "texts_watermark", "submissions_watermark", "events_watermark"):
            there, here = getattr(self._manifest, name), getattr(manifest, name)
            if there > here:
                raise StaleRunError(
                    f"the archive in {self.url} has the {name} {there}, this one {here}: it is "
                    "older. `leoma restore` brings a machine up to the bucket"
                )
        manifest = replace(manifest, log_id=self._archive.log_id())
        stored = {part.file for part in self._manifest.parts()}
        missing = [part for part in manifest.parts() if part.file not in stored]
        if len(missing) > RESUMED_FILES_MIN:
            sent = self._sent_before()
            missing = [part for part in missing if sent.get(part.file) != self._archive.size(part)]
        self._put_parts(missing)
        content = _with_sizes(self._archive, manifest).as_json()
        digest = hashlib.sha256(content).hexdigest()
        key = f"archive/manifests/{manifest.watermark:012d}-{digest[:16]}.json"
        if self._pointer is None or self._pointer.manifest.key != key:
            self._store.put(key, content, content_type="application/json")
        self._manifest = manifest
        return StoredFile(key, len(content), digest)

    def _sent_before(self) -> dict[str, int]:
        """Return the sizes of the files that are there, named or not: a publication that was ended
        goes on where it was. A name is used for one content only.

        Beside a pointer those that retention may be about to remove do not count.
        """
        age_ms_max = UNNAMED_AGE_SECONDS_MIN * 1000 // 2
        oldest_ms = time.time_ns() // 1_000_000 - age_ms_max if self._pointer else 0
        return {
            one.key.removeprefix("archive/"): one.size
            for one in self._store.listed("archive/")
            if one.modified_at_ms >= oldest_ms
        }

    def put_content(self, key: str, content: bytes) -> StoredFile:
        """Have an immutable object in the bucket."""
        self._store.put(key, content)
        return StoredFile(key, len(content), hashlib.sha256(content).hexdigest())

    def publish_generation(
        self,
        generation: Generation,
        *,
        made_from: Mapping[str, int],
        netuid: int,
        manifest: StoredFile,
        chain_snapshot: StoredFile,
        chain: Mapping[str, Any],
    ) -> None:
        """Make a whole local generation the bucket's current one."""
        files = [
            # The list first: every generation in the bucket has its own.
            self.put_content(f"generations/{path.name}", path.read_bytes())
            for path in (generation.path.with_suffix(".json"), generation.path)
        ]
        self._point_to(
            Pointer(
                snapshot_id=generation.snapshot_id,
                netuid=netuid,
                watermark=made_from["watermark"],
                metagraph_synced_at_ms=made_from["metagraph_synced_at_ms"],
                generation=files[1],
                archive_files=files[0],
                manifest=manifest,
                chain_snapshot=chain_snapshot,
                chain=chain,
            )
        )

    def publish_archive(self, manifest: Manifest) -> bool:
        """Make a later state of the archive current beside the current generation.

        Returns whether there was anything to publish.
        """
        if self._pointer is None:
            raise GenerationError(f"{self.url} has no generation yet")
        stored = self.put_archive(manifest)
        if stored == self._pointer.manifest:
            return False
        self._point_to(replace(self._pointer, manifest=stored))
        return True

    def retain(self) -> Removed:
        """Remove generations past their time and archive files that nothing kept names."""
        if self._pointer is None:
            return Removed(0, 0)
        current = self._pointer.snapshot_id
        names = (
            one.key.removeprefix("generations/").removesuffix(SUFFIX)
            for one in self._store.listed("generations/")
            if one.key.endswith(SUFFIX)
        )
        # Whatever else somebody has put there is none of ours.
        there = sorted((name for name in names if NAME.fullmatch(name)), reverse=True)
        # One that is newer than the pointer may be on its way to be published.
        published = [snapshot_id for snapshot_id in there if snapshot_id <= current]
        keep = {current, *to_keep(published, self._settings)}
        named = {f"archive/{part.file}" for part in self._manifest.parts()}
        named |= {self._pointer.manifest.key}
        for snapshot_id in published:
            if snapshot_id in keep:
                named |= self._archive_keys(snapshot_id)
        gone = [snapshot_id for snapshot_id in published if snapshot_id not in keep]
        young_ms = time.time_ns() // 1_000_000 - UNNAMED_AGE_SECONDS_MIN * 1000
        unnamed = [
            one.key
            for one in self._store.listed("archive/")
            if one.key not in named and one.modified_at_ms < young_ms
        ]
        # The file before its list: what has no file is never looked at.
        self._store.delete([f"generations/{snapshot_id}{SUFFIX}" for snapshot_id in gone])
        self._store.delete([f"generations/{snapshot_id}.json" for snapshot_id in gone])
        self._store.delete(unnamed)
        return Removed(len(gone), len(unnamed))

    def close(self) -> None:
        """Let go of the connections."""
        self._store.close()

    def _archive_keys(self, snapshot_id: str) -> set[str]:
        found = self._store.get(f"generations/{snapshot_id}.json")
        names = json.loads(found.content) if found else {}
        return {f"archive/{name}" for part in ("votes", "texts") for name in names[part]}

    def _read_manifest(self, pointer: Pointer) -> Manifest:
        found = self._store.get(pointer.manifest.key)
        if found is None or hashlib.sha256(found.content).hexdigest() != pointer.manifest.sha256:
            raise GenerationError(f"{self.url}{pointer.manifest.key} is not what was published")
        try:
            return Manifest.from_json(found.content)
        except (ValueError, KeyError, TypeError) as error:
            raise GenerationError(f"{self.url}{pointer.manifest.key}: {error}") from error

    def _put_parts(self, parts: list[Part]) -> None:
        def put(part: Part) -> int:
            # Read and compared with its digest: a file that was damaged here does not spread.
            content = self._archive.content(part)
            self._store.put(f"archive/{part.file}", content)
            return len(content)

        sent = 0
        with ThreadPoolExecutor(self._settings.s3_concurrency_max) as threads:
            for number, size in enumerate(_in_order(threads, put, parts), 1):
                sent += size
                if number % 100 == 0:
                    logger.info(
                        "%d of %d archive files are in %s, %d MB",
                        *(number, len(parts), self.url, sent // 2**20),
                    )

    def _point_to(self, pointer: Pointer) -> None:
        """Replace the pointer that was seen. Only on return, or if it says so, that was done."""
        self._require_conditions()
        content = pointer.as_json()
        condition: dict[str, Any] = (
            {"if_match": self._seen.etag} if self._seen else {"is_new": True}
        )
        try:
            etag = self._store.put(POINTER, content, content_type="application/json", **condition)
        except ObjectStorageError as error:
            # It may have been applied and only its answer lost.
            now = read_pointer(self._store)
            if now is None or now.content != content:
                if isinstance(error, ObjectChangedError):
                    raise StaleRunError(
                        f"somebody else published to {self.url} meanwhile: this run publishes "
                        "nothing"
                    ) from error
                raise
            etag = now.etag
        self._seen, self._pointer = StoredObject(content, etag), pointer

    def _require_conditions(self) -> None:
        """Raise unless the service refuses a write whose condition does not hold."""
        try:
            self._store.put(PROBE, b"", is_new=True)
            self._store.put(PROBE, b"", is_new=True)
        except ObjectChangedError:
            pass
        else:
            raise GenerationError(_unsafe(self.url, "If-None-Match"))
        try:
            self._store.put(PROBE, b"", if_match=NO_ETAG)
        except (ObjectChangedError, ObjectMissingError):
            return
        raise GenerationError(_unsafe(self.url, "If-Match"))


def _unsafe(url: str, condition: str) -> str:
    return (
        f"the service of {url} ignores {condition}, so that two publishers could both win: use one "
        "with conditional writes, or a directory as WAREHOUSE_URL"
    )


def _with_sizes(archive: Archive, manifest: Manifest) -> Manifest:
    """Return the manifest with the sizes that the first release did not record."""

    def sized(part: Part) -> Part:
        return part if part.size else replace(part, size=archive.size(part))

    return replace(
        manifest,
        votes={name: sized(part) for name, part in manifest.votes.items()},
        texts=tuple(map(sized, manifest.texts)),
        submissions=tuple(map(sized, manifest.submissions)),
        events=tuple(map(sized, manifest.events)),
    )


def _in_order(
    threads: ThreadPoolExecutor, put: Callable[[Part], int], parts: Iterable[Part]
) -> Iterable[int]:
    try:
        yield from threads.map(put, parts)
    except (ObjectStorageError, ArchiveError):
        # What has not begun would only fail as well.
        threads.shutdown(cancel_futures=True)
        raise


def open_bucket(settings: WarehouseSettings) -> WarehouseBucket | None:
    """Return the bucket of WAREHOUSE_URL, None where it is a directory."""
    if settings.warehouse_bucket is None:
        return None
    return WarehouseBucket(settings, ObjectStore(settings, *settings.warehouse_bucket))
