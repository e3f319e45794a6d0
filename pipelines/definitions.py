"""The code location that Dagster loads: `workspace.yaml` names this module."""

import dagster as dg

from pipelines import assets, keeping, syncing
from pipelines.jobs import keep_job, materialize_job, sync_job, tables_job
from pipelines.resources import RunMemory, stores_resource
from pipelines.schedules import news_sensor, schedules
from pipelines.settings import PipelineSettings
from warehouse.export import OnProgress, untold
from warehouse.settings import WarehouseSettings


def build_definitions(
    settings: PipelineSettings, warehouse: WarehouseSettings, on_progress: OnProgress = untold
) -> dg.Definitions:
    """Return all assets, jobs, schedules and sensors on these settings; opens nothing."""
    return dg.Definitions(
        assets=dg.load_assets_from_modules([assets, keeping, syncing]),
        jobs=[materialize_job, tables_job, sync_job, keep_job],
        schedules=schedules(settings),
        sensors=[news_sensor(settings)],
        resources={
            "stores": stores_resource(settings, warehouse, on_progress),
            # One instance a process: it holds the frames of the runs under way in it.
            "io_manager": RunMemory(),
        },
        # One process for a whole run: frames stay in memory, and a run takes 5 s instead of 20.
        executor=dg.in_process_executor,
    )


defs = build_definitions(PipelineSettings(), WarehouseSettings())
