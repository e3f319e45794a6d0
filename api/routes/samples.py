"""Samples: taken in from validators, and read from the log the moment they are stored. Live."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi.exceptions import RequestValidationError

from api.bodies import INT63_MAX, SampleBatch, SampleSubmission, task_id_of
from api.dependencies import (
    BySubmitter,
    HotkeyQuery,
    MinerHotkey,
    RowLimit,
    Service,
    TheService,
    ValidatorHotkey,
    appended,
    check_hotkey,
    fitted,
    parsed_json,
    read,
    refusals_bind_admins,
    validator,
)
from api.errors import JsonResponse, documented
from api.instants import iso8601
from api.models import SampleResponse
from api.openapi import signed
from warehouse.evaluation import evaluation
from warehouse.records import Evaluation, Sample, SignedRequest, StoredSample

router = APIRouter(prefix="/samples", tags=["samples"])


def _answer(
    sample: Sample | StoredSample, seq: int, validator_hotkey: str, received_at_ms: int
) -> dict[str, Any]:
    # As `warehouse.sqlite_questions.TOLD` has SQLite write it.
    return {
        "id": seq,
        "sample_id": sample.sample_id,
        "validator_hotkey": validator_hotkey,
        "miner_hotkey": sample.miner_hotkey,
        "prompt": sample.prompt,
        "s3_bucket": sample.s3_bucket,
        "s3_prefix": sample.s3_prefix,
        "passed": sample.passed,
        "confidence": sample.confidence,
        "reasoning": sample.reasoning,
        "evaluated_at": iso8601(received_at_ms),
        "task_id": sample.task_id,
        "latency_ms": sample.latency_ms,
    }


def _stored(samples: Sequence[StoredSample]) -> list[dict[str, Any]]:
    return [_answer(one, one.seq, one.validator_hotkey, one.received_at_ms) for one in samples]


def _answers(samples: Sequence[StoredSample]) -> Response:
    return JsonResponse(orjson.dumps(_stored(samples)))


def _listed(rendered: bytes | None, ask: Callable[[], Sequence[StoredSample]]) -> Response:
    """Answer with what the log has rendered, else with what is found when the archive is asked."""
    return _answers(ask()) if rendered is None else JsonResponse(rendered)


async def _append(
    parts: Service, request: SignedRequest, samples: list[Sample], judged: Evaluation | None
) -> list[dict[str, Any]]:
    """Return the answers about the samples as stored, durably.

    For a signature that was used before they are those of the submission that used it, so that a
    client that lost the answer gets it; 409 if that was another request than this one. A refused
    submission uses its signature up.
    """
    found = await appended(parts, request, samples, judged)
    if not found.is_replay:
        parts.metrics.samples.inc(len(samples))
        return [
            _answer(sample, seq, request.hotkey, found.received_at_ms)
            for seq, sample in enumerate(samples, found.submission_seq + 1)
        ]
    used_by = (found.method, found.path, found.sample_count)
    if used_by == (request.method, request.path, len(samples)):
        stored = await parts.threads.brief(
            lambda: parts.reader.submission_samples(found.submission_seq)
        )
        if len(stored) == len(samples):
            return _stored(stored)
    raise HTTPException(409, "this signature was already used for another request")


def _verified_header(judged: Evaluation | None) -> dict[str, str]:
    if judged is None:
        return {}
    return {"X-Evaluation-Verified": "true" if judged.is_verified else "false"}


@router.post(
    "",
    response_model=SampleResponse,
    responses=documented(400, 401, 409, 413, 422, 503),
    openapi_extra=signed(SampleSubmission),
)
async def submit(request: BySubmitter, parts: TheService) -> Response:
    """Store one sample. 200 means that it is durable and that every reader sees it.

    `X-Evaluation-Verified` says whether an `evaluation_signature` verifies.
    """
    async with refusals_bind_admins(parts, request):
        sample = read(SampleSubmission, request.body).to_sample()
    given = sample.evaluation_signature
    judged = evaluation(request.hotkey, given, [sample]) if given else None
    stored = await _append(parts, request, [sample], judged)
    return JsonResponse(orjson.dumps(stored[0]), headers=_verified_header(judged))


def _batch(body: bytes, samples_max: int) -> tuple[SampleBatch, list[Sample]]:
    """Return a batch and its samples; raise what is wrong with it."""
    document = parsed_json(body)
    listed = document.get("samples") if isinstance(document, dict) else None
    # Counted before any of them is looked at.
    if isinstance(listed, list) and len(listed) > samples_max:
        raise HTTPException(400, f"a batch has at most {samples_max} samples")
    batch = fitted(SampleBatch, document, body)
    samples = [submission.to_sample() for submission in batch.samples]
    if batch.signature and len({sample.task_key for sample in samples}) > 1:
        raise HTTPException(400, "with a signature, all samples must have the same task_id")
    return batch, samples


@router.post(
    "/batch",
    response_model=list[SampleResponse],
    responses=documented(400, 401, 409, 413, 422, 503),
    openapi_extra=signed(SampleBatch),
)
async def submit_batch(request: BySubmitter, parts: TheService) -> Response:
    """Store samples, all or none, and return them in order.

    `X-Evaluation-Verified` says whether a `signature` verifies.
    """
    async with refusals_bind_admins(parts, request):
        batch, samples = _batch(request.body, parts.settings.samples_per_batch_max)
    judged = evaluation(request.hotkey, batch.signature, samples) if batch.signature else None
    stored = await _append(parts, request, samples, judged)
    return JsonResponse(orjson.dumps(stored), headers=_verified_header(judged))


@router.get("/list", response_model=list[SampleResponse], responses=documented(422, 503))
async def newest(parts: TheService, limit: RowLimit = 200) -> Response:
    """Return the newest samples of all, newest first."""
    return await parts.reading(
        lambda history: _listed(history.as_json(limit), lambda: history.newest_samples(limit))
    )


def _required_task_key(task_id: int | None, sample_id: str | None) -> str:
    """Return the key of the task that a query names; 400 if it names none that there can be."""
    if task_id is not None:
        return str(task_id)
    if not sample_id:
        problem = {"type": "missing", "loc": ("query", "sample_id"), "msg": "Field required"}
        raise RequestValidationError([problem])
    from_sample_id = task_id_of(sample_id)
    if from_sample_id is None:
        return sample_id
    if from_sample_id > INT63_MAX:
        text = "A sample_id of digits must fit 63 bits"
        problem = {"type": "sample_id", "loc": ("query", "sample_id"), "msg": text}
        raise RequestValidationError([problem])
    return str(from_sample_id)


@router.get("/task", response_model=list[SampleResponse], responses=documented(400, 503))
async def samples_of_task(
    parts: TheService,
    validator_hotkey: HotkeyQuery,
    sample_id: Annotated[
        str | None, Query(max_length=255, description="Required without a task_id.")
    ] = None,
    task_id: Annotated[int | None, Query(ge=0, le=INT63_MAX)] = None,
) -> Response:
    """Return one validator's samples of one task, by miner."""
    hotkey = check_hotkey(validator_hotkey)
    task_key = _required_task_key(task_id, sample_id)
    return await parts.reading(
        lambda history: _answers(history.samples_of_task(task_key, validator_hotkey=hotkey)),
        is_long=True,
    )


@router.get(
    "/validator/{validator_hotkey}",
    response_model=list[SampleResponse],
    responses=documented(400, 401, 413, 422, 503),
    openapi_extra=signed(),
    dependencies=[Depends(validator)],
)
async def samples_of_validator(
    parts: TheService, validator_hotkey: ValidatorHotkey, limit: RowLimit = 100
) -> Response:
    """Return one validator's samples, newest first."""
    return await parts.reading(
        lambda history: _listed(
            history.as_json(limit, validator_hotkey=validator_hotkey),
            lambda: history.samples_of_validator(validator_hotkey, limit),
        )
    )


@router.get(
    "/miner/{miner_hotkey}",
    response_model=list[SampleResponse],
    responses=documented(400, 401, 413, 422, 503),
    openapi_extra=signed(),
    dependencies=[Depends(validator)],
)
async def samples_of_miner(
    parts: TheService, miner_hotkey: MinerHotkey, limit: RowLimit = 100
) -> Response:
    """Return the samples about one miner, newest first."""
    return await parts.reading(
        lambda history: _listed(
            history.as_json(limit, miner_hotkey=miner_hotkey),
            lambda: history.samples_of_miner(miner_hotkey, limit),
        )
    )
