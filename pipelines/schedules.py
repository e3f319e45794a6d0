"""When runs start: by the clock, and when there is something new to make tables from.

Reading the chain and making tables are jobs apart: a chain that cannot be read, or a service that
is slow about a miner's model, holds up no vote on its way to the weights.
"""

import json
import time

import dagster as dg

from pipelines.jobs import KEEP, MATERIALIZE, SYNC, TABLES, sync_job, tables_job
from pipelines.resources import Stores
from pipelines.settings import PipelineSettings

# How long after a run that failed, or was lost, the same is asked for again.
RETRY_SECONDS = 60
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
        dg.ScheduleDefinition(
            name="chain_sync",
            job_name=SYNC,
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


def news_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    """Return the sensor that has tables made when the log has grown or the chain was read anew.

    It compares the log's head and the newest snapshot with what the current generation was made
    from, so that nothing is forgotten, whatever became of an earlier run. Its cursor is what it
    asked for last, and when: the same is asked for again only after `RETRY_SECONDS`. While a run
    waits or is under way it asks for none.
    """

    @dg.sensor(
        name="log_growth",
        jobs=[tables_job, sync_job],
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def log_growth(
        context: dg.SensorEvaluationContext, stores: dg.ResourceParam[Stores]
    ) -> dg.SensorResult | dg.SkipReason:
        newest = stores.snapshots.newest_name()
        # Until the chain was read once nobody knows who is a validator: that cannot wait for the
        # schedule.
        job = TABLES if newest else SYNC
        wanted = [stores.log.head(), newest[1] if newest else 0]
        made_from = stores.generations.made_from()
        if made_from and list(made_from) == wanted:
            return dg.SkipReason(
                f"the current generation counts the log up to its end, {wanted[0]}"
            )
        now_seconds = int(time.time())
        asked = json.loads(context.cursor or "{}")
        # A clock that was set back must not silence the sensor.
        age_seconds = abs(now_seconds - asked.get("asked_at_seconds", 0))
        if asked.get("wanted") == wanted and age_seconds < RETRY_SECONDS:
            return dg.SkipReason(f"asked for {age_seconds} seconds ago")
        unfinished = sum(
            context.instance.get_runs_count(dg.RunsFilter(job_name=name, statuses=UNFINISHED))
            for name in (job, MATERIALIZE)
        )
        if unfinished:
            return dg.SkipReason(f"{unfinished} runs are not finished")
        return dg.SensorResult(
            run_requests=[dg.RunRequest(job_name=job, tags={"leoma/log_head": str(wanted[0])})],
            cursor=json.dumps({"wanted": wanted, "asked_at_seconds": now_seconds}),
        )

    return log_growth
