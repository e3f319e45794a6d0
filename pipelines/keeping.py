"""What is done by night: retention, and compaction of the archive.

The log lets go of a prefix only after the archive was compared with it, record by record.
"""

import time

import dagster as dg

from pipelines.bucketing import archive_into_bucket, retain_in_bucket
from pipelines.resources import Stores, asset
from warehouse import compaction, export
from warehouse.archive import ArchiveError
from warehouse.files import remove_leftovers
from warehouse.generation import open_generation

DAY_MS = 86_400_000
FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]
StoresParam = dg.ResourceParam[Stores]


@asset(
    group_name="keeping",
    # After retention, which looks for the files that the current generation names.
    deps=["retention"],
    description="Small files of texts and submissions merged, superseded texts dropped.",
)
def compacted_archive(stores: StoresParam) -> dg.MaterializeResult:
    texts = compaction.compact_texts(stores.archive)
    evidence = compaction.compact_evidence(stores.archive)
    return dg.MaterializeResult(
        value=None,
        metadata={
            "text_files_merged": texts,
            "submission_files_merged": evidence,
            **(archive_into_bucket(stores, stores.settings.netuid) if texts or evidence else {}),
        },
    )


@asset(
    group_name="keeping",
    description="Old generations, unnamed archive files, and the archived prefix of the log go.",
)
def retention(stores: StoresParam) -> dg.MaterializeResult:
    removed, named = stores.generations.retain()
    files = stores.archive.remove_unnamed(named)
    leftovers = remove_leftovers(stores.warehouse.warehouse_path)
    if stores.warehouse.log_retention_days:
        # The log lets go only of what would survive this machine, too.
        archive_into_bucket(stores, stores.settings.netuid)
    dropped = drop_archived(stores)
    return dg.MaterializeResult(
        value=None,
        metadata={
            "generations_removed": removed,
            "archive_files_removed": files,
            "leftovers_removed": leftovers,
            "records_dropped_from_log": dropped,
            **retain_in_bucket(stores),
        },
    )


@asset(
    group_name="keeping",
    deps=[compacted_archive],
    description="Dagster's records of old runs go: the sensor starts thousands a day.",
)
def pruned_runs(context: dg.AssetExecutionContext, stores: StoresParam) -> dg.MaterializeResult:
    finished = dg.RunsFilter(statuses=FINISHED)
    run_ids = context.instance.get_run_ids(finished)[stores.settings.dagster_runs_kept :]
    for run_id in run_ids:
        context.instance.delete_run(run_id)
    return dg.MaterializeResult(value=None, metadata={"runs_removed": len(run_ids)})


def drop_archived(stores: Stores) -> int:
    """Let the log drop what is older than LOG_RETENTION_DAYS; return how many records left.

    Raises `ArchiveError` when the archive is not, record by record, what the log holds.
    """
    days = stores.warehouse.log_retention_days
    if not days:
        return 0
    through = stores.log.newest_submission_before(time.time_ns() // 1_000_000 - days * DAY_MS)
    if stores.warehouse.s3_samples_bucket:
        # What waits for object storage is read from the log.
        waiting = stores.log.oldest_waiting_submission()
        through = through if waiting is None else min(through, waiting - 1)
    if not _is_served_from_archive(stores, through):
        return 0
    if found := export.differences(stores.archive, stores.log, through):
        raise ArchiveError(
            f"{len(found)} differences between log and archive, nothing was dropped: {found[:5]}"
        )
    return stores.log.drop_through(through)


def _is_served_from_archive(stores: Stores, through: int) -> bool:
    """Tell whether readers find everything up to `through` in the current generation's views."""
    current, archive = stores.generations.current(), stores.archive
    if current is None:
        return False
    with open_generation(current) as connection:
        rows = connection.execute("SELECT watermark FROM generation").fetchall()
    manifest = archive.manifest()
    texts = {archive.directory / p.file for p in manifest.texts if p.first_seq <= through}
    return bool(
        rows[0][0] >= through
        and manifest.texts_watermark >= through
        and manifest.submissions_watermark >= through
        and stores.generations.archive_files(current) >= texts
    )
