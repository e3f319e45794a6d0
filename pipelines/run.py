"""One run now, in this process, without a daemon: what `leoma materialize` and the tests do."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from pipelines.definitions import build_definitions
from pipelines.jobs import KEEP, MATERIALIZE
from pipelines.metagraph import MetagraphError
from pipelines.settings import PipelineSettings
from warehouse.archive import ArchiveError
from warehouse.export import OnProgress, untold
from warehouse.files import LockTimeoutError
from warehouse.generation import GenerationError
from warehouse.log import LogError
from warehouse.objects import ObjectStorageError
from warehouse.settings import WarehouseSettings

EXPECTED = (
    ArchiveError, GenerationError, LockTimeoutError, LogError, MetagraphError, ObjectStorageError
)  # fmt: skip
# The caller prints what matters; step by step is for the UI.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
BEFORE_AN_ASSET = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.LOADED_INPUT)


class MaterializationError(Exception):
    """The run published nothing; the message says why. The last generation stays in force."""


@dataclass(frozen=True)
class Materialized:
    """What one run published. `seconds`: wall time without the start of Dagster.

    `step_seconds`: of each asset the time in its own function, without what Dagster does around it
    (it writes some ten events a step).
    """

    snapshot_id: str
    path: Path
    watermark: int
    seconds: float
    step_seconds: dict[str, float]


def materialize(
    settings: PipelineSettings, warehouse: WarehouseSettings, on_progress: OnProgress = untold
) -> Materialized:
    """Materialise every table and publish a generation; raises `MaterializationError`.

    `on_progress` is told how far the export of the log is.
    """
    begun = time.perf_counter()
    finished, step_seconds = _execute(MATERIALIZE, settings, warehouse, on_progress)
    published = finished.output_for_node("generation")
    archived = finished.output_for_node("archived_samples")
    return Materialized(
        published.snapshot_id,
        published.path,
        archived.manifest.watermark,
        time.perf_counter() - begun,
        step_seconds,
    )


def keep(settings: PipelineSettings, warehouse: WarehouseSettings) -> None:
    """Do the nightly work now; raises `MaterializationError`."""
    _execute(KEEP, settings, warehouse)


def _execute(
    job: str,
    settings: PipelineSettings,
    warehouse: WarehouseSettings,
    on_progress: OnProgress = untold,
) -> tuple[dg.ExecuteInProcessResult, dict[str, float]]:
    definition = build_definitions(settings, warehouse, on_progress).resolve_job_def(job)
    try:
        # Not recorded in DAGSTER_HOME: this works where no Dagster was ever set up.
        with dg.DagsterInstance.ephemeral() as instance:
            finished = definition.execute_in_process(instance=instance, run_config=QUIET)
            return finished, _step_seconds(instance.all_logs(finished.run_id))
    except EXPECTED as error:
        raise MaterializationError(str(error)) from error
    except dg.DagsterError as error:
        raise MaterializationError(f"a check stopped the run: {error}") from error


def _step_seconds(events: Sequence[dg.EventLogEntry]) -> dict[str, float]:
    """Return how long each asset's function ran: from its last input to its first output."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    for event in events:
        if event.step_key is None or event.dagster_event_type is None:
            continue
        if event.dagster_event_type in BEFORE_AN_ASSET:
            begun[event.step_key] = event.timestamp
        elif event.dagster_event_type is dg.DagsterEventType.STEP_OUTPUT:
            ended.setdefault(event.step_key, event.timestamp)
    return {step: ended[step] - begun[step] for step in ended}
