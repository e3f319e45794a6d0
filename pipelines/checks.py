"""What must hold before anything is published, as blocking asset checks.

A check that fails stops the run before `generation`: the last good one stays in force.
"""

from collections.abc import Iterable, Sequence

import dagster as dg
import polars as pl

from pipelines.frames import violations
from pipelines.tallies import Tallies
from warehouse.archive import UNTASKED, Manifest
from warehouse.tables import ARCHIVED_VOTES, Table

AS_DECLARED = "as_declared"


def check_specs(asset: str, *names: str) -> list[dg.AssetCheckSpec]:
    """Declare blocking checks of an asset."""
    return [dg.AssetCheckSpec(name, asset=asset, blocking=True) for name in names]


def result(name: str, found: Sequence[str], **metadata: int) -> dg.AssetCheckResult:
    """Return a check's result: passed when nothing was found, else what was."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=not found,
        metadata={
            **metadata,
            **({"found": dg.MetadataValue.md("\n".join(found))} if found else {}),
        },
    )


def as_declared(table: Table, frames: Iterable[pl.DataFrame]) -> dg.AssetCheckResult:
    """Check schema, nulls and unique keys against the table's declaration.

    Each frame by itself, and one after the other: they are parts of a table that share no key.
    """
    return result(AS_DECLARED, [found for frame in frames for found in violations(frame, table)])


def sums_to_one_or_burns(weights: pl.DataFrame, winner_hotkey: str | None) -> list[str]:
    """Exactly the winner has weight 1; without a winner everybody has 0."""
    positive = weights.filter(pl.col("weight") != 0)
    expected = [(winner_hotkey, 1.0)] if winner_hotkey else []
    if positive.select("miner_hotkey", "weight").rows() == expected:
        return []
    return [f"weights: {positive.rows()} where {expected} was expected"]


def winner_is_eligible(
    ranks: pl.DataFrame, miners: pl.DataFrame, blacklist: pl.DataFrame, winner_hotkey: str | None
) -> list[str]:
    """The winner is ranked first, eligible, valid and not blacklisted, and no uid is shared."""
    if winner_hotkey is None:
        eligible = ranks.filter("is_eligible").height
        return [f"{eligible} miners are eligible, but nobody won"] if eligible else []
    found = []
    first = ranks.filter((pl.col("rank") == 1) & pl.col("is_eligible"))
    if first["miner_hotkey"].to_list() != [winner_hotkey]:
        found.append(f"rank 1 is {first['miner_hotkey'].to_list()}, the winner {winner_hotkey}")
    valid = miners.filter("is_valid")["hotkey"]
    if winner_hotkey not in valid.to_list():
        found.append(f"the winner {winner_hotkey} is not a valid miner")
    if winner_hotkey in blacklist["hotkey"].to_list():
        found.append(f"the winner {winner_hotkey} is blacklisted")
    return found


def reconciled(
    *,
    recent: pl.DataFrame,
    archived: pl.DataFrame,
    manifest: Manifest,
    tallies: Tallies,
    scores: pl.DataFrame,
) -> list[str]:
    """Every current sample is accounted for on its way from log and archive to tables.

    `recent`: the newest rows of the log up to the watermark, each of which the archive must hold,
    or a newer version of it; what holds one is itself as recent, and so in `archived`.
    Samples without a task are those of a partition of their own, and have no verdict.
    """
    found = []
    newer = recent.join(archived, on=list(ARCHIVED_VOTES.key), suffix="_archived")
    held = newer.filter(pl.col("seq_archived") >= pl.col("seq"))
    if held.height < recent.height:
        found.append(f"{recent.height - held.height} new samples of the log are not archived")
    changed = held.filter(
        (pl.col("seq") == pl.col("seq_archived"))
        & (pl.col("is_passed") != pl.col("is_passed_archived"))
    )
    if changed.height:
        found.append(f"{changed.height} new samples of the log are archived otherwise")
    current_samples = manifest.current_samples
    if (counted := tallies.entries["total_samples"].sum()) != current_samples:
        found.append(f"{counted} samples are counted, {current_samples} archived")
    tasked = sum(part.rows for name, part in manifest.votes.items() if name != UNTASKED)
    if (counted := tallies.verdicts.votes) != tasked:
        found.append(f"{tasked} samples have a task, {counted} count in verdicts")
    if scores["total_samples"].sum() > current_samples:
        found.append("the score entries count more samples than there are")
    return found
