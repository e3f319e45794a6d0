"""The graph, on one page: from chain and log to one published generation.

    chain_snapshot
          ▼
    metagraph ─┬▶ validators ──────┬─────────▶ scores ─────┐
               └▶ miners ◀─ blacklist          │           ▼
    archived_samples ────┴───▶ tallies ─▶ verdicts ─▶ miner_scores ─▶ ranks ─▶ weights
    all of them ─▶ reconciliation ─▶ generation ─▶ archived_submissions ─▶ bucket_archive

Assets are thin: each calls one pure rule and says in metadata what an operator wants to see.
"""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl

from pipelines import checks, ranking, scoring, weighting
from pipelines import metagraph as chain
from pipelines.bucketing import archive_into_bucket, into_bucket
from pipelines.chain_snapshots import Synced
from pipelines.frames import conform
from pipelines.metagraph import MetagraphError
from pipelines.resources import Stores, asset
from pipelines.syncing import about, chain_snapshot
from pipelines.tallies import Tallies, Verdicts
from warehouse import export, tables
from warehouse.archive import Manifest
from warehouse.frames import empty
from warehouse.log_frames import vote_rows
from warehouse.publication import publish
from warehouse.records import AdminState
from warehouse.tables import Table

CODE_VERSION = importlib.metadata.version("leoma")
SECOND_MS = 1_000
# How many of the log's newest records each run looks up in the archive. All of them are compared
# before the log may forget any (`keeping`).
RECONCILED_SEQS = 2_000
StoresParam = dg.ResourceParam[Stores]


@dataclass(frozen=True)
class ArchivedSamples:
    """The files of all current samples, and what admins had said by the manifest's watermark."""

    manifest: Manifest
    admin: AdminState


def _table(frame: pl.DataFrame, table: Table, **metadata: Any) -> dg.MaterializeResult:
    return dg.MaterializeResult(
        value=frame,
        metadata={"dagster/row_count": frame.height, **metadata},
        check_results=[checks.as_declared(table, [frame])],
    )


def _declared(name: str) -> list[dg.AssetCheckSpec]:
    return checks.check_specs(name, checks.AS_DECLARED)


@asset(
    group_name="chain", deps=[chain_snapshot], description="All neurons at the newest synced block."
)
def metagraph(stores: StoresParam) -> dg.MaterializeResult:
    synced = stores.snapshots.newest()
    if synced is None:
        raise MetagraphError("the chain was never read: run the job sync_chain first")
    if synced.metagraph.netuid != stores.settings.netuid:
        raise MetagraphError(
            f"the last snapshot is of netuid {synced.metagraph.netuid}, but NETUID is "
            f"{stores.settings.netuid}: run the job sync_chain first"
        )
    return dg.MaterializeResult(value=synced, metadata=about(stores, synced))


@asset(group_name="log", description="New log rows moved to the archive; all current samples.")
def archived_samples(stores: StoresParam) -> dg.MaterializeResult:
    log = stores.log
    exported = export.export_votes(stores.archive, log, log.head(), stores.on_progress)
    # With the votes: whoever has a generation from the bucket has what admins had said by then.
    events = export.export_events(stores.archive, log, exported.manifest.watermark)
    manifest = stores.archive.manifest()
    # Also what was made of them by an earlier run is of no use without them.
    stores.archive.require(manifest)
    return dg.MaterializeResult(
        value=ArchivedSamples(manifest, log.admin_state_at(manifest.watermark)),
        metadata={
            "dagster/row_count": manifest.current_samples,
            "watermark": manifest.watermark,
            "new_samples": exported.new_rows,
            "new_events": events,
            "partitions_rewritten": exported.partitions,
            "lag_seqs": log.head() - manifest.watermark,
        },
    )


@asset(group_name="log", check_specs=_declared("blacklist"), description=tables.BLACKLIST.doc)
def blacklist(archived_samples: ArchivedSamples) -> dg.MaterializeResult:
    entries = list(archived_samples.admin.blacklist.values())
    frame = pl.DataFrame(entries, schema=tables.BLACKLIST.names, orient="row")
    return _table(conform(frame, tables.BLACKLIST), tables.BLACKLIST)


@asset(group_name="chain", check_specs=_declared("validators"), description=tables.VALIDATORS.doc)
def validators(stores: StoresParam, metagraph: Synced) -> dg.MaterializeResult:
    frame = chain.validators(metagraph.metagraph, stores.settings.parameters())
    registered = frame.filter("is_registered").height
    return _table(frame, tables.VALIDATORS, registered=registered)


@asset(group_name="chain", check_specs=_declared("miners"), description=tables.MINERS.doc)
def miners(metagraph: Synced, blacklist: pl.DataFrame) -> dg.MaterializeResult:
    frame = chain.miners(metagraph.metagraph, blacklist["hotkey"].to_list())
    return _table(frame, tables.MINERS, valid=frame.filter("is_valid").height)


@asset(group_name="scoring", description="What each partition's samples come to, at these stakes.")
def tallies(
    stores: StoresParam, archived_samples: ArchivedSamples, validators: pl.DataFrame
) -> dg.MaterializeResult:
    made = stores.tallies.tallies(archived_samples.manifest, validators)
    partitions = len(archived_samples.manifest.votes)
    return dg.MaterializeResult(
        value=made,
        metadata={
            "partitions": partitions,
            "partitions_made_anew": made.anew,
            "partitions_read": len(made.read),
        },
    )


@asset(group_name="scoring", check_specs=_declared("verdicts"), description=tables.VERDICTS.doc)
def verdicts(tallies: Tallies) -> dg.MaterializeResult:
    # The others were looked at when they were made, and no two partitions share a task.
    made = tallies.verdicts
    return dg.MaterializeResult(
        value=made,
        metadata={
            "dagster/row_count": made.count,
            "rows_made_anew": sum(made.summaries[name].verdicts for name in made.anew),
        },
        check_results=[checks.as_declared(tables.VERDICTS, map(made.frame, made.anew))],
    )


@asset(group_name="scoring", check_specs=_declared("scores"), description=tables.SCORES.doc)
def scores(
    tallies: Tallies, validators: pl.DataFrame, miners: pl.DataFrame
) -> dg.MaterializeResult:
    return _table(scoring.scores(tallies.entries, validators, miners), tables.SCORES)


@asset(group_name="scoring", description="The tasks that count.")
def scoring_window(
    stores: StoresParam, archived_samples: ArchivedSamples, tallies: Tallies
) -> dg.MaterializeResult:
    window = scoring.scoring_window(
        tallies.counting_tasks,
        archived_samples.admin.latest_task_id,
        stores.settings.parameters(),
    )
    return dg.MaterializeResult(
        value=window,
        metadata={"window": "none" if window is None else f"{window.first}..{window.last}"},
    )


@asset(
    group_name="scoring", check_specs=_declared("miner_scores"), description=tables.MINER_SCORES.doc
)
def miner_scores(
    stores: StoresParam,
    verdicts: Verdicts,
    scores: pl.DataFrame,
    miners: pl.DataFrame,
    scoring_window: scoring.Window | None,
) -> dg.MaterializeResult:
    window = scoring_window
    in_window = verdicts.of_tasks(window.first, window.last) if window else empty(tables.VERDICTS)
    frame = scoring.miner_scores(in_window, scores, miners, window, stores.settings.parameters())
    eligible = frame.filter("is_eligible").height
    return _table(frame, tables.MINER_SCORES, eligible=eligible)


@asset(group_name="weights", check_specs=_declared("ranks"), description=tables.RANKS.doc)
def ranks(
    stores: StoresParam, miner_scores: pl.DataFrame, miners: pl.DataFrame
) -> dg.MaterializeResult:
    frame = ranking.ranks(miner_scores, miners, stores.settings.parameters())
    return _table(frame, tables.RANKS, ranks=dg.MetadataValue.md(markdown(frame)))


@asset(
    group_name="weights",
    check_specs=[
        *_declared("weights"),
        *checks.check_specs("weights", "sum_to_one_or_burn", "winner_is_eligible"),
    ],
    description=tables.WEIGHTS.doc,
)
def weights(
    ranks: pl.DataFrame,
    miners: pl.DataFrame,
    blacklist: pl.DataFrame,
    scoring_window: scoring.Window | None,
) -> dg.MaterializeResult:
    frame = weighting.weights(ranks)
    outcome = weighting.outcome(ranks, miners, scoring_window)
    winner = outcome.winner_hotkey
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "dagster/row_count": frame.height,
            "winner_uid": outcome.winner_uid,
            "winner": winner or f"burn: {outcome.burn_reason}",
        },
        check_results=[
            checks.as_declared(tables.WEIGHTS, [frame]),
            checks.result("sum_to_one_or_burn", checks.sums_to_one_or_burns(frame, winner)),
            checks.result(
                "winner_is_eligible", checks.winner_is_eligible(ranks, miners, blacklist, winner)
            ),
        ],
    )


@asset(
    group_name="weights",
    deps=[weights],
    check_specs=checks.check_specs("reconciliation", "log_and_tables_reconcile"),
    description="Every sample is accounted for on its way from the log to the tables.",
)
def reconciliation(
    stores: StoresParam,
    archived_samples: ArchivedSamples,
    tallies: Tallies,
    scores: pl.DataFrame,
) -> dg.MaterializeResult:
    manifest = archived_samples.manifest
    after = max(manifest.watermark - RECONCILED_SEQS, stores.log.dropped_through())
    found = [
        *tallies.problems,
        *checks.reconciled(
            recent=vote_rows(stores.log.votes_between(after, manifest.watermark)),
            archived=stores.archive.votes_after(manifest, after),
            manifest=manifest,
            tallies=tallies,
            scores=scores,
        ),
    ]
    return dg.MaterializeResult(
        value=None, check_results=[checks.result("log_and_tables_reconcile", found)]
    )


@asset(
    group_name="weights",
    deps=[reconciliation],
    description="All tables of this run in one immutable DuckDB file, and the pointer to it.",
)
def generation(
    stores: StoresParam,
    metagraph: Synced,
    archived_samples: ArchivedSamples,
    scoring_window: scoring.Window | None,
    validators: pl.DataFrame,
    miners: pl.DataFrame,
    blacklist: pl.DataFrame,
    scores: pl.DataFrame,
    miner_scores: pl.DataFrame,
    verdicts: Verdicts,
    ranks: pl.DataFrame,
    weights: pl.DataFrame,
) -> dg.MaterializeResult:
    outcome = weighting.outcome(ranks, miners, scoring_window)
    manifest, settings = archived_samples.manifest, stores.settings
    frames = {
        "validators": validators, "miners": miners, "blacklist": blacklist, "scores": scores,
        "miner_scores": miner_scores, "ranks": ranks, "weights": weights,
    }  # fmt: skip
    made_from = {
        "watermark": manifest.watermark,
        "metagraph_synced_at_ms": metagraph.synced_at_ms,
    }
    published = publish(
        stores.generations,
        {name: frame.to_arrow() for name, frame in frames.items()},
        {
            "valid_until_ms": metagraph.synced_at_ms + settings.weights_valid_seconds * SECOND_MS,
            **made_from,
            "netuid": metagraph.metagraph.netuid,
            "block": metagraph.metagraph.block,
            "metagraph_snapshot": f"snapshots/{metagraph.name}",
            "latest_task_id": archived_samples.admin.latest_task_id,
            "window_first": scoring_window.first if scoring_window else None,
            "window_last": scoring_window.last if scoring_window else None,
            "winner_uid": outcome.winner_uid,
            "winner_hotkey": outcome.winner_hotkey,
            "burn_reason": outcome.burn_reason,
            "total_samples": manifest.current_samples,
            "parameters": settings.parameters().as_json(),
            "code_version": CODE_VERSION,
        },
        stores.archive.files(manifest),
        before_current=into_bucket(stores, metagraph, manifest, made_from),
        verdicts=verdicts,
    )
    removed, _ = stores.generations.retain()
    return dg.MaterializeResult(
        value=published,
        metadata={
            "snapshot_id": published.snapshot_id,
            "file": dg.MetadataValue.path(published.path),
            "bytes": published.path.stat().st_size,
            "watermark": manifest.watermark,
            "lag_seqs": stores.log.head() - manifest.watermark,
            "generations_removed": removed,
            "ranks": dg.MetadataValue.md(markdown(ranks)),
        },
    )


@asset(
    group_name="log",
    deps=[generation],
    description="New submissions as they arrived, and the texts of their samples, moved to the "
    "archive when the weights are out.",
)
def archived_submissions(
    stores: StoresParam, archived_samples: ArchivedSamples
) -> dg.MaterializeResult:
    exported = export.export_submitted(
        stores.archive,
        stores.log,
        archived_samples.manifest.watermark,
        stores.warehouse.archive_texts_per_run_max,
        stores.on_progress,
    )
    manifest = stores.archive.manifest()
    return dg.MaterializeResult(
        value=None,
        metadata={
            "dagster/row_count": exported["submissions"],
            "texts": exported["texts"],
            "texts_watermark": manifest.texts_watermark,
            "submissions_watermark": manifest.submissions_watermark,
        },
    )


@asset(
    group_name="log",
    deps=[archived_submissions],
    description="The archive as it is now, in the bucket (where WAREHOUSE_URL is one).",
)
def bucket_archive(stores: StoresParam, metagraph: Synced) -> dg.MaterializeResult:
    return dg.MaterializeResult(
        value=None, metadata=archive_into_bucket(stores, metagraph.metagraph.netuid)
    )


def markdown(ranks: pl.DataFrame) -> str:
    """Return the rank table for people."""
    lines = ["| rank | uid | miner | passed | tasks | pass rate | eligible |", "|--:" * 7 + "|"]
    lines += [
        f"| {row['rank']} | {row['uid']} | `{row['miner_hotkey']}` | {row['passed_count']} "
        f"| {row['tasks_evaluated']} | {row['pass_rate']:.4f} "
        f"| {'yes' if row['is_eligible'] else 'no'} |"
        for row in ranks.iter_rows(named=True)
    ]
    return "\n".join(lines)
