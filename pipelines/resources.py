"""What the assets work on, opened for a run and closed after it; and how frames travel."""

import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from pipelines.chain_snapshots import ChainSnapshots
from pipelines.settings import PipelineSettings
from pipelines.sources import ChainSource, chain_source
from pipelines.tallies import TallyKeeper
from warehouse.archive import Archive
from warehouse.backends import open_kept_log
from warehouse.export import OnProgress, untold
from warehouse.generation import Generations
from warehouse.log import LogKeeper
from warehouse.publishing import WarehouseBucket, open_bucket
from warehouse.settings import WarehouseSettings

# From the annotation `MaterializeResult` Dagster infers that nothing is handed on, and then
# compares the frame with a sentinel, which a frame cannot do.
asset = functools.partial(dg.asset, dagster_type=dg.Any)


@dataclass(frozen=True)
class Stores:
    """Everything that a run reads from or writes to."""

    settings: PipelineSettings
    warehouse: WarehouseSettings
    chain: ChainSource
    snapshots: ChainSnapshots
    log: LogKeeper
    archive: Archive
    generations: Generations
    # None: WAREHOUSE_URL is a directory.
    bucket: WarehouseBucket | None = None
    # Told how far a long export is.
    on_progress: OnProgress = untold

    @property
    def tallies(self) -> TallyKeeper:
        """What is kept of the archive's votes from run to run."""
        return TallyKeeper(self.archive, self.warehouse.warehouse_path / "tallies")


def stores_resource(
    settings: PipelineSettings, warehouse: WarehouseSettings, on_progress: OnProgress = untold
) -> dg.ResourceDefinition:
    """Return the resource; nothing is opened before a run asks for it."""

    @dg.resource(description="Chain source, log, archive, generations and bucket.")
    def stores(_: dg.InitResourceContext) -> Iterator[Stores]:
        # A full garbage collection looks at Dagster's million objects, which takes 0.2 s, and
        # reading rows sets one off. A run lasts seconds and its frames are in no cycles.
        was_collecting = gc.isenabled()
        gc.disable()
        snapshots = ChainSnapshots(warehouse)
        log, chain = None, chain_source(settings, snapshots)
        bucket = open_bucket(warehouse)
        try:
            log = open_kept_log(warehouse)
            yield Stores(
                settings,
                warehouse,
                chain,
                snapshots,
                log,
                Archive(warehouse),
                Generations(warehouse),
                bucket,
                on_progress,
            )
        finally:
            chain.close()
            if log is not None:
                log.close()
            if bucket is not None:
                bucket.close()
            if was_collecting:
                gc.enable()

    return stores


class RunMemory(dg.IOManager):
    """Hands values from asset to asset within one run, in memory.

    A table is never mixed from two runs: what this run did not make is not there, so that a part of
    the graph cannot be materialised on its own with another run's watermark.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, dg.AssetKey], Any] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Keep what an asset returned."""
        self._values[context.run_id, context.asset_key] = obj

    def load_input(self, context: dg.InputContext) -> Any:
        """Return what the asset upstream returned in this run."""
        run_id = context.step_context.run_id
        try:
            return self._values[run_id, context.asset_key]
        except KeyError:
            raise dg.DagsterInvariantViolationError(
                f"{context.asset_key.to_user_string()} was not materialised in this run. All "
                "tables of a generation come from one run: launch the whole job, not a part."
            ) from None
