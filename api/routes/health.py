"""Whether the service works, for people, balancers and clients with a wrong clock. Never cached."""

from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter, Response

from api.dependencies import Service, TheService
from api.errors import JsonResponse, documented, error_response
from api.instants import iso8601, now_ms
from api.looks import answered_at_ms
from api.models import HealthResponse, StatusResponse, TimeResponse
from api.snapshot import Snapshot
from warehouse.clock import is_ahead
from warehouse.log import LogError, LogReader

router = APIRouter(tags=["health"])
VERSION = version("leoma")
# Anybody may ask this route, so it counts only so far.
RESULTS_COUNTED_MAX = 10_000
REMEDY = "look at the disk of LEOMA_HOME and at the limits of open files"


def log_problem(log: LogReader) -> str | None:
    """Return why the log does not answer, None if it does."""
    try:
        log.head()
        log.admin_state()
    except LogError as error:
        return f"{error}; {REMEDY}"
    return None


def silent_bucket(parts: Service, at_ms: int) -> str | None:
    """Return since when the bucket of the warehouse has not answered, None if it does."""
    settings = parts.snapshots.generations.settings
    if settings.warehouse_bucket is None:
        return None
    answered_ms = answered_at_ms(settings)
    if at_ms - answered_ms <= settings.warehouse_stale_seconds * 1000:
        return None
    since = f"since {iso8601(answered_ms)}" if answered_ms else "yet"
    return f"the bucket has not answered {since}, or `leoma courier` does not run"


def waiting_results(parts: Service, at_ms: int) -> str | None:
    """Return how many results wait if the oldest has waited for too long, None if not."""
    settings = parts.snapshots.generations.settings
    if not settings.s3_samples_bucket:
        return None
    try:
        depth, oldest_ms = parts.reader.backlog(RESULTS_COUNTED_MAX)
    except LogError as error:
        return str(error)
    seconds = 0 if oldest_ms is None else (at_ms - oldest_ms) // 1000
    if seconds <= settings.outbox_stale_seconds:
        return None
    or_more = " or more" if depth == RESULTS_COUNTED_MAX else ""
    return (
        f"{depth}{or_more} evaluation results wait for object storage, "
        f"the oldest for {seconds} seconds"
    )


def lagging_log(parts: Service) -> str | None:
    """Return why samples are neither shown nor taken here, None if they are."""
    try:
        parts.check_log()
    except LogError as error:
        return str(error)
    return None


def storing_problems(parts: Service) -> list[str]:
    """Return what is wrong with a log that answers."""
    found = []
    if problem := parts.writer.problem():
        found.append(f"nothing can be stored: {problem}; {REMEDY}")
    if problem := parts.reader.damage():
        found.append(problem)
    return found


def old_sync(latest: Snapshot, at_ms: int, stale_seconds: float) -> str | None:
    """Return what is wrong with the time of the last sync, None if nothing is."""
    age_seconds = (at_ms - latest.metagraph_synced_at_ms) / 1000
    if is_ahead(latest.metagraph_synced_at_ms, at_ms):
        return (
            f"the metagraph was last synced {-age_seconds:.0f} seconds from now: this machine's "
            "clock was set back, or was wrong; set it right and run `leoma materialize`"
        )
    if age_seconds < stale_seconds:
        return None
    return f"the metagraph was last synced {age_seconds:.0f} seconds ago"


def health_of(parts: Service, at_ms: int) -> dict[str, Any]:
    """Return the HealthResponse as of an instant."""
    problems = [problem] if (problem := log_problem(parts.reader)) else []
    is_database_up = not problems
    if is_database_up:
        problems += storing_problems(parts)
    problems += [one for one in (parts.snapshots.problem, parts.media.problem) if one]
    latest = parts.snapshots.latest
    is_synced = False
    if latest is None and not parts.snapshots.problem:
        problems.append("no generation has been published yet")
    if latest is not None:
        if is_database_up and (problem := lagging_log(parts)):
            problems.append(problem)
        problem = old_sync(latest, at_ms, parts.settings.metagraph_stale_seconds)
        is_synced = problem is None
        if problem:
            problems.append(problem)
        if at_ms > latest.valid_until_ms:
            problems.append(f"the weights are valid only until {iso8601(latest.valid_until_ms)}")
    if problem := silent_bucket(parts, at_ms):
        problems.append(problem)
    if is_database_up and (problem := waiting_results(parts, at_ms)):
        problems.append(problem)
    return {
        "status": "degraded" if problems else "healthy",
        "version": VERSION,
        "database": is_database_up,
        "metagraph_synced": is_synced,
        "last_sync": iso8601(latest.metagraph_synced_at_ms) if latest else None,
        "snapshot_id": latest.snapshot_id if latest else None,
        "snapshot_age_seconds": (
            max(0.0, (at_ms - latest.computed_at_ms) / 1000) if latest else None
        ),
        "problems": problems,
    }


@router.get("/health", response_model=HealthResponse)
async def health(parts: TheService) -> Response:
    """Say how the service is; `problems` explains "degraded". 200 in both cases."""
    found = await parts.threads.brief(lambda: health_of(parts, now_ms()))
    content = orjson.dumps(found)
    return JsonResponse(content, headers={"Cache-Control": "no-store"})


@router.get("/health/live", response_model=StatusResponse)
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@router.get("/health/ready", response_model=StatusResponse, responses=documented(503))
async def ready(parts: TheService) -> Any:
    """Say whether this worker can serve: a generation is loaded and the log answers."""
    problem = await parts.threads.brief(lambda: log_problem(parts.reader))
    if problem is None and parts.snapshots.latest is None:
        problem = parts.snapshots.problem or "no generation has been published yet"
    problem = problem or lagging_log(parts)
    if problem is None:
        return {"status": "ready"}
    retry_after = str(parts.settings.retry_after_seconds)
    return error_response(503, problem, {"Retry-After": retry_after})


@router.get("/time", response_model=TimeResponse)
async def server_time(response: Response) -> dict[str, int]:
    """Return the server's clock, for signing."""
    response.headers["Cache-Control"] = "no-store"
    return {"unix": now_ms() // 1000}
