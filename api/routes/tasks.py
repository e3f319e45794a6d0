"""Tasks: the latest one, how one came out, and a miner's. Live, but for the last."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import orjson
from fastapi import APIRouter, HTTPException, Request, Response

from api import rendering
from api.bodies import INT63_MAX, TaskAnnouncement
from api.dependencies import (
    ByAdmin,
    Current,
    HotkeyQuery,
    MinerHotkey,
    Reader,
    Service,
    TaskId,
    TheService,
    admin_body,
    check_hotkey,
    rendered,
)
from api.errors import JsonResponse, documented
from api.history import History
from api.instants import iso8601
from api.media import MediaLinks, first_frame_key, generated_video_key, original_clip_key
from api.models import (
    LatestTaskResponse,
    MinerTaskEntry,
    TaskDetailResponse,
    TaskMinerDetailResponse,
)
from api.openapi import signed
from api.snapshot import Snapshot
from warehouse.log import VoteRow
from warehouse.records import StoredSample

router = APIRouter(prefix="/tasks", tags=["tasks"])

RAO_PER_TAO = 1_000_000_000


def is_passed(votes: Iterable[tuple[int, bool]]) -> bool:
    """Return the verdict on votes of (stake in rao, passed): more than half of the stake passed.

    Exactly half is not enough, and neither is no stake at all. Integers, so no rounding decides.
    """
    stake_rao = passing_rao = 0
    for vote_rao, passed in votes:
        stake_rao += vote_rao
        passing_rao += vote_rao if passed else 0
    return passing_rao * 2 > stake_rao


def verdict(samples: Sequence[StoredSample | VoteRow], snapshot: Snapshot) -> bool:
    """Return the verdict of the current stakes on a task's samples about one miner."""
    return is_passed(
        (snapshot.stake_rao(sample.validator_hotkey), sample.passed) for sample in samples
    )


def newest_latency_ms(samples: Iterable[StoredSample | VoteRow]) -> int | None:
    """Return the latency of the newest sample that has one."""
    timed = [sample for sample in samples if sample.latency_ms is not None]
    return max(timed, key=attrgetter("seq")).latency_ms if timed else None


def aspects(artifacts: str | None) -> tuple[dict[str, int] | None, int | None]:
    """Return aspect_scores and overall_score out of generated_artifacts, None where there is none.

    Validators write what they like into that text; nothing in it is an error.
    """
    try:
        # orjson refuses what could not go out again: lone surrogates, NaN, nesting without end.
        document = orjson.loads(artifacts or "")
    except orjson.JSONDecodeError:
        return None, None
    if not isinstance(document, dict):
        return None, None
    scores = document.get("aspect_scores")
    is_scores = isinstance(scores, dict) and all(_is_score(score) for score in scores.values())
    overall = document.get("overall_score")
    return scores if is_scores else None, overall if _is_score(overall) else None


def _is_score(value: object) -> bool:
    return type(value) is int and -INT63_MAX <= value <= INT63_MAX


def _shared_fields(task_id: int, description: str, media: MediaLinks) -> dict[str, Any]:
    """Return what both details of a task say."""
    first_frame, original_clip = first_frame_key(task_id), original_clip_key(task_id)
    return {
        "task_id": task_id,
        "description": description,
        "s3_prefix": str(task_id),
        "first_frame_path": first_frame,
        "original_clip_path": original_clip,
        "first_frame_url": media.url(first_frame),
        "original_clip_url": media.url(original_clip),
    }


def _detail(answer: dict[str, Any]) -> Response:
    # Live, and its links end: nobody keeps it.
    return JsonResponse(orjson.dumps(answer), headers={"Cache-Control": "no-store"})


@router.get("/latest", response_model=LatestTaskResponse, responses=documented(404, 503))
async def latest(log: Reader, parts: TheService) -> Response:
    """Return the latest announced task; while none was announced, the greatest sampled one."""

    def found() -> int | None:
        announced = log.admin_state().latest_task_id
        return log.latest_sampled_task() if announced is None else announced

    task_id = await parts.threads.brief(found)
    if task_id is None:
        raise HTTPException(404, "there is no task yet")
    return JsonResponse(orjson.dumps({"task_id": task_id}))


@router.get("", response_model=list[MinerTaskEntry], responses=documented(400, 503))
async def tasks_of_miner(
    request: Request, miner_hotkey: HotkeyQuery, snapshot: Current
) -> Response:
    """Return how a miner's tasks came out, newest first."""
    checked = check_hotkey(miner_hotkey)
    return await rendered(request, snapshot, rendering.miner_tasks, checked)


@router.get("/{task_id}", response_model=TaskDetailResponse, responses=documented(400, 404, 503))
async def task(task_id: TaskId, snapshot: Current, parts: TheService) -> Response:
    """Return how a task came out for every miner that was judged on it."""
    return await parts.reading(
        lambda history: _task(task_id, history, snapshot, parts), is_long=True
    )


def _task(task_id: int, history: History, snapshot: Snapshot, parts: Service) -> Response:
    votes = history.votes_of_task(str(task_id))
    if not votes:
        raise HTTPException(404, "no samples of this task")
    by_miner = [
        (miner_hotkey, list(own))
        for miner_hotkey, own in groupby(votes, key=attrgetter("miner_hotkey"))
    ]
    prompt = history.prompt(max(vote.seq for vote in votes)) or ""
    answer = {
        **_shared_fields(task_id, prompt, parts.media),
        "miner_count": len(by_miner),
        "validator_count": len({vote.validator_hotkey for vote in votes}),
        "miners": [
            {
                "miner_hotkey": miner_hotkey,
                "passed": verdict(own, snapshot),
                "validator_count": len(own),
                "latency_ms": newest_latency_ms(own),
                "updated": iso8601(max(vote.received_at_ms for vote in own)),
            }
            for miner_hotkey, own in by_miner
        ],
    }
    return _detail(answer)


def _validator_result(sample: StoredSample, stake_rao: int) -> dict[str, Any]:
    aspect_scores, overall_score = aspects(sample.generated_artifacts)
    return {
        "validator_hotkey": sample.validator_hotkey,
        "passed": sample.passed,
        "stake": stake_rao / RAO_PER_TAO,
        "evaluated_at": iso8601(sample.received_at_ms),
        "confidence": sample.confidence,
        "reasoning": sample.reasoning,
        "aspect_scores": aspect_scores,
        "overall_score": overall_score,
    }


@router.get(
    "/{task_id}/miner/{miner_hotkey}",
    response_model=TaskMinerDetailResponse,
    responses=documented(400, 404, 503),
)
async def task_of_miner(
    task_id: TaskId, miner_hotkey: MinerHotkey, snapshot: Current, parts: TheService
) -> Response:
    """Return how each validator judged one miner on a task."""
    return await parts.reading(
        lambda history: _task_of_miner(task_id, miner_hotkey, history, snapshot, parts)
    )


def _task_of_miner(
    task_id: int, miner_hotkey: str, history: History, snapshot: Snapshot, parts: Service
) -> Response:
    samples = history.samples_of_task(str(task_id), miner_hotkey=miner_hotkey)
    if not samples:
        raise HTTPException(404, "no samples of this task for this miner")
    newest = max(samples, key=attrgetter("seq"))
    generated_video = generated_video_key(task_id, miner_hotkey)
    answer = {
        **_shared_fields(task_id, newest.prompt, parts.media),
        "miner_hotkey": miner_hotkey,
        "generated_video_path": generated_video,
        "generated_video_url": parts.media.url(generated_video),
        "validators": [
            _validator_result(sample, snapshot.stake_rao(sample.validator_hotkey))
            for sample in samples
        ],
        "final_passed": verdict(samples, snapshot),
        "latency_ms": newest_latency_ms(samples),
    }
    return _detail(answer)


@router.post(
    "",
    response_model=LatestTaskResponse,
    responses=documented(401, 403, 409, 413, 422, 503),
    openapi_extra=signed(TaskAnnouncement),
)
async def announce(request: ByAdmin, parts: TheService) -> dict[str, int]:
    """Announce the latest task; it never goes backwards."""
    body = await admin_body(request, TaskAnnouncement, parts)
    await parts.landing.of(parts.writer.announce_task(request, body.task_id))
    return {"task_id": body.task_id}
