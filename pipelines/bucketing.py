"""What a run does with the bucket, where WAREHOUSE_URL names one; without one nothing."""

import functools
from collections.abc import Callable
from typing import Any

from pipelines.chain_snapshots import Synced
from pipelines.resources import Stores
from warehouse.archive import Manifest
from warehouse.generation import Generation


def into_bucket(
    stores: Stores, metagraph: Synced, manifest: Manifest, made_from: dict[str, int]
) -> Callable[[Generation], None] | None:
    """Put into the bucket what a generation is made from; return what publishes it there.

    None where there is no bucket. All that is large goes before the lock of publishing is held.
    """
    bucket = stores.bucket
    if bucket is None:
        return None
    netuid = metagraph.metagraph.netuid
    bucket.catch_up(stores.generations, netuid)
    chain_snapshot = bucket.put_content(
        f"snapshots/{metagraph.name}", stores.snapshots.content(metagraph.name)
    )
    return functools.partial(
        bucket.publish_generation,
        made_from=made_from,
        netuid=netuid,
        manifest=bucket.put_archive(manifest),
        chain_snapshot=chain_snapshot,
        chain=metagraph.pointed(),
    )


def archive_into_bucket(stores: Stores, netuid: int) -> dict[str, Any]:
    """Publish the archive as it is now; return what an operator wants to see of it."""
    if stores.bucket is None:
        return {"bucket": "none"}
    stores.bucket.catch_up(stores.generations, netuid)
    is_news = stores.bucket.publish_archive(stores.archive.manifest())
    return {"bucket": stores.bucket.url, "is_published": is_news}


def retain_in_bucket(stores: Stores) -> dict[str, Any]:
    """Remove from the bucket what is past its time; return what an operator wants to see of it."""
    if stores.bucket is None:
        return {"bucket": "none"}
    stores.bucket.catch_up(stores.generations, stores.settings.netuid)
    removed = stores.bucket.retain()
    return {
        "bucket": stores.bucket.url,
        "bucket_generations_removed": removed.generations,
        "bucket_archive_files_removed": removed.archive_files,
    }
