"""When runs start: by the clock, and when the log has grown."""

import dagster as dg

from pipelines.resources import Stores
from pipelines.settings import PipelineSettings

MATERIALIZE = "materialize_everything"
KEEP = "keep_the_warehouse"
NIGHTLY = "17 3 * * *"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def schedules(settings: PipelineSettings) -> list[dg.ScheduleDefinition]:
    """Return the schedules; both run unless an operator stops them in the UI."""
    minutes = settings.chain_sync_interval_seconds // 60
    cron = "0 * * * *" if minutes == 60 else f"*/{minutes} * * * *"
    return [
        # Stake moves also when no sample arrives.
        dg.ScheduleDefinition(
            name="chain_sync",
            job_name=MATERIALIZE,
            cron_schedule=cron,
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
        dg.ScheduleDefinition(
            name="nightly_keeping",
            job_name=KEEP,
            cron_schedule=NIGHTLY,
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
    ]


def log_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    """Return the sensor that starts a run when samples or events have arrived.

    Its cursor is the last seq that it asked a run for; the first look always asks. While a run
    waits or is under way it asks for none: that one, or the next look, takes what has arrived.
    """

    @dg.sensor(
        name="log_growth",
        job_name=MATERIALIZE,
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def log_growth(
        context: dg.SensorEvaluationContext, stores: dg.ResourceParam[Stores]
    ) -> dg.SensorResult | dg.SkipReason:
        head = stores.log.head()
        # Without a cursor this is the first look of all: a run is due even on an empty log, since
        # until the first generation nobody knows who is a validator. A head below the cursor is
        # another log: its records have not been asked for.
        if context.cursor == str(head):
            return dg.SkipReason(f"the log still ends at seq {head}")
        unfinished = context.instance.get_runs_count(
            dg.RunsFilter(job_name=MATERIALIZE, statuses=UNFINISHED)
        )
        if unfinished:
            return dg.SkipReason(f"{unfinished} runs are not finished")
        return dg.SensorResult(
            run_requests=[dg.RunRequest(tags={"leoma/log_head": str(head)})], cursor=str(head)
        )

    return log_growth
