"""A past generation, computed anew from the log and its chain snapshot, and compared.

Not through Dagster and not from the archive: whoever has the log and the snapshots can check what
was published, and who was paid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl

from pipelines import metagraph as chain
from pipelines import ranking, scoring, weighting
from pipelines import votes as voting
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.frames import conform
from pipelines.settings import Parameters
from warehouse import arrow
from warehouse.generation import Generation, GenerationError, open_generation
from warehouse.generation_file import tables_sha256, whole_tables_sha256
from warehouse.log import LogReader
from warehouse.log_frames import newest_versions, vote_rows
from warehouse.records import AdminState
from warehouse.tables import BLACKLIST, COMPUTED_TABLES, GENERATION, VERDICTS

# Versions of the same sample are merged after so many rows: memory is bounded by current samples.
MERGE_ROWS = 500_000


@dataclass(frozen=True)
class Recomputed:
    """How a generation compares with what log and snapshot lead to.

    `differences`: a sentence for each table or value that is not the same; empty: all is proven.
    """

    snapshot_id: str
    watermark: int
    block: int
    differences: tuple[str, ...]


def recompute(
    generation: Generation,
    log: LogReader,
    snapshots: ChainSnapshots,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Recomputed:
    """Compute a generation's tables anew and compare them, rows and digest.

    `on_progress` is given log positions read, and to read. Raises `GenerationError` when it cannot
    be computed (the log no longer has its beginning, the file is damaged), `MetagraphError` when
    the chain snapshot is gone or damaged.
    """
    watermark = int(_published(generation)[1]["watermark"])
    if log.dropped_through():
        raise GenerationError(
            f"the log begins only after {log.dropped_through()}: retention has dropped what "
            f"{generation.snapshot_id} was computed from"
        )
    if watermark > log.head():
        raise GenerationError(
            f"{generation.snapshot_id} counts the log up to {watermark}, but the log ends at "
            f"{log.head()}: it is another or an older log"
        )
    samples = current_samples(log, watermark, on_progress)
    return recompute_from(generation, samples, log.admin_state_at(watermark), snapshots)


def recompute_from(
    generation: Generation, samples: pl.DataFrame, admin: AdminState, snapshots: ChainSnapshots
) -> Recomputed:
    """Compute a generation's tables anew from the samples that it counts, and compare them.

    `samples` are the current ones at its watermark, in the columns of `ARCHIVED_VOTES`; `admin` is
    what events up to there left. Raises as `recompute`.
    """
    published, info = _published(generation)
    metagraph = snapshots.read(str(info["metagraph_snapshot"]).removeprefix("snapshots/"))
    frames, outcome = tables(
        samples, admin, metagraph, Parameters.from_json(str(info["parameters"]))
    )
    differences = [
        f"the table {table.name} is not what follows from log and snapshot"
        for table in COMPUTED_TABLES
        if not frames[table.name].equals(published[table.name])
    ]
    arrow = [(table, _arrow(frames[table.name], table)) for table in COMPUTED_TABLES]
    digest = tables_sha256(arrow)
    if info["tables_sha256"] == (old := whole_tables_sha256(arrow)):
        digest = old
    found = {
        "tables_sha256": digest,
        "block": metagraph.block,
        "netuid": metagraph.netuid,
        **outcome,
    }
    differences += [
        f"{name} is {info[name]}, but {value} follows from log and snapshot"
        for name, value in found.items()
        if info[name] != value
    ]
    return Recomputed(
        generation.snapshot_id, int(info["watermark"]), metagraph.block, tuple(differences)
    )


def current_samples(
    log: LogReader, watermark: int, on_progress: Callable[[int, int], None]
) -> pl.DataFrame:
    """Return the newest version of each sample up to a position of the log."""
    merged, waiting, rows = [vote_rows([])], [], 0
    for chunk in log.votes_between(0, watermark):
        waiting.append(vote_rows([chunk]))
        rows += len(chunk.seq)
        if rows >= MERGE_ROWS:
            merged, waiting, rows = [newest_versions([*merged, *waiting])], [], 0
        on_progress(chunk.seq[-1], watermark)
    on_progress(watermark, watermark)
    return newest_versions([*merged, *waiting])


def tables(
    samples: pl.DataFrame, admin: AdminState, metagraph: chain.Metagraph, parameters: Parameters
) -> tuple[dict[str, pl.DataFrame], dict[str, object]]:
    """Return all computed tables, and what the generation's own row says of the outcome."""
    entries = list(admin.blacklist.values())
    blacklist = pl.DataFrame(entries, schema=BLACKLIST.names, orient="row")
    validators = chain.validators(metagraph, parameters)
    miners = chain.miners(metagraph, blacklist["hotkey"].to_list())
    votes = voting.votes(samples, validators)
    verdicts = voting.verdicts(votes)
    scores = scoring.scores(scoring.score_entries(samples), validators, miners)
    window = scoring.scoring_window(scoring.counting_tasks(votes), admin.latest_task_id, parameters)
    miner_scores = scoring.miner_scores(verdicts, scores, miners, window, parameters)
    ranks = ranking.ranks(miner_scores, miners, parameters)
    outcome = weighting.outcome(ranks, miners, window)
    frames = {
        "validators": validators,
        "miners": miners,
        "blacklist": conform(blacklist, BLACKLIST),
        "scores": scores,
        "miner_scores": miner_scores,
        "verdicts": verdicts,
        "ranks": ranks,
        "weights": weighting.weights(ranks),
    }
    return frames, {
        "total_samples": samples.height,
        "latest_task_id": admin.latest_task_id,
        "window_first": window.first if window else None,
        "window_last": window.last if window else None,
        "winner_uid": outcome.winner_uid,
        "winner_hotkey": outcome.winner_hotkey,
        "burn_reason": outcome.burn_reason,
    }


def _published(generation: Generation) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    try:
        with open_generation(generation) as connection:
            frames = {table.name: connection.table(table.name).pl() for table in COMPUTED_TABLES}
            # They are stored by partition.
            frames[VERDICTS.name] = conform(frames[VERDICTS.name], VERDICTS)
            info = connection.table(GENERATION.name).pl().to_dicts()[0]
    except (duckdb.Error, IndexError, pl.exceptions.PolarsError) as error:
        raise GenerationError(f"{generation.path} cannot be read: {error}") from error
    return frames, info


def _arrow(frame: pl.DataFrame, table: Any) -> Any:
    return frame.to_arrow().select(table.names).cast(arrow.schema(table))
