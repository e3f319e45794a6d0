"""What validators set on chain: now, or as any kept generation had it. Materialised."""

import logging
from typing import Annotated

import duckdb
from fastapi import APIRouter, HTTPException, Query, Request, Response

from api import rendering
from api.dependencies import Service, TheService, is_known, materialised
from api.errors import documented
from api.instants import parse_instant_ms
from api.models import WeightsResponse
from warehouse.generation import NAME, Generation, GenerationError, Generations, open_generation

logger = logging.getLogger(__name__)
router = APIRouter(tags=["weights"])

AT_LENGTH_MAX = 64


def found_generation(generations: Generations, at: str) -> tuple[Generation, bool]:
    """Return the generation that `at` means, and whether it names it.

    Raises 400 for text that is neither a snapshot id nor a time, 404 where nothing is kept.
    """
    generation = generations.find(at)
    if generation:
        return generation, True
    if not NAME.fullmatch(at):
        try:
            generation = generations.at(parse_instant_ms(at))
        except ValueError:
            raise HTTPException(
                400, "at is neither a snapshot id nor an ISO 8601 time nor Unix seconds"
            ) from None
    if generation is None:
        kept = generations.kept()
        oldest = f"the oldest one kept is {kept[-1].snapshot_id}" if kept else "none is kept"
        raise HTTPException(404, f"no such snapshot; {oldest}")
    return generation, False


def weights_of(generation: Generation) -> bytes:
    """Render the weights of any generation.

    Raises 404 if retention has just removed it, 503 if its file is there but cannot be read.
    """
    try:
        with open_generation(generation) as connection:
            return rendering.weights(connection)
    except (GenerationError, duckdb.Error, ValueError) as error:
        if not generation.path.exists():
            detail = f"snapshot {generation.snapshot_id} is no longer kept"
            raise HTTPException(404, detail) from None
        logger.error("%s", error)  # noqa: TRY400  (the message says all; no fault of this code)
        detail = f"snapshot {generation.snapshot_id} cannot be read"
        raise HTTPException(503, detail, {"Retry-After": "60"}) from None


def _past(request: Request, parts: Service, at: str) -> Response:
    if len(at) > AT_LENGTH_MAX:
        raise HTTPException(400, "at is too long")
    generation, is_named = found_generation(parts.snapshots.generations, at)
    age = parts.settings.past_weights_max_age_seconds
    etag, content = f'"{generation.snapshot_id}"', b""
    if not is_known(request, etag):
        content = parts.snapshots.rendered.get(
            (generation.snapshot_id, "weights"), lambda: weights_of(generation)
        )
    return materialised(
        request,
        etag,
        content,
        # A name means the same for ever; a time means another one when generations come and go.
        cache_control=f"public, max-age={age}, immutable" if is_named else None,
    )


@router.get("/weights", response_model=WeightsResponse, responses=documented(400, 404, 503))
async def weights(
    request: Request,
    parts: TheService,
    at: Annotated[
        str | None,
        Query(description="A snapshot id, an ISO 8601 time (UTC without a zone) or Unix seconds."),
    ] = None,
) -> Response:
    """Return the weights to set on chain; do not set them after `valid_until`."""
    snapshot = parts.snapshots.current()
    if at is not None:
        return await parts.threads.of_archive(lambda: _past(request, parts, at))
    return materialised(request, snapshot.etag, snapshot.answers["/weights"])
