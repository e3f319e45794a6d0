"""Miners of the current metagraph snapshot, and how their tasks came out. Materialised."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response

from api import rendering
from api.bodies import INT63_MAX
from api.dependencies import Current, MinerHotkey, TheService, materialised, rendered, validator
from api.errors import documented
from api.models import MinerResponse, MinersListResponse, MinerTaskEntry
from api.openapi import signed

router = APIRouter(prefix="/miners", tags=["miners"])


def _private(parts: TheService) -> str:
    return f"private, max-age={parts.settings.cache_max_age_seconds}"


@router.get("/list", response_model=MinersListResponse, responses=documented(503))
async def miners_list(request: Request, snapshot: Current) -> Response:
    """Return all miners, valid and invalid."""
    return materialised(request, snapshot.etag, snapshot.answers["/miners/list"])


@router.get(
    "/all",
    response_model=MinersListResponse,
    responses=documented(401, 413, 503),
    openapi_extra=signed(),
    dependencies=[Depends(validator)],
)
async def miners_all(request: Request, snapshot: Current, parts: TheService) -> Response:
    """Return all miners, for older clients."""
    return materialised(
        request,
        snapshot.etag,
        snapshot.answers["/miners/list"],
        cache_control=_private(parts),
    )


@router.get(
    "/valid",
    response_model=MinersListResponse,
    responses=documented(401, 413, 503),
    openapi_extra=signed(),
    dependencies=[Depends(validator)],
)
async def miners_valid(request: Request, snapshot: Current, parts: TheService) -> Response:
    """Return the valid miners; `total` counts all."""
    return materialised(
        request, snapshot.etag, snapshot.valid_miners, cache_control=_private(parts)
    )


def _miner(request: Request, snapshot: Current, found: bytes | None) -> Response:
    if found is None:
        raise HTTPException(404, "no such miner")
    return materialised(request, snapshot.etag, found)


@router.get("/uid/{uid}", response_model=MinerResponse, responses=documented(400, 404, 503))
async def miner_by_uid(
    request: Request, uid: Annotated[int, Path(ge=0, le=INT63_MAX)], snapshot: Current
) -> Response:
    """Return the miner that has a uid now."""
    return _miner(request, snapshot, snapshot.miners_by_uid.get(uid))


@router.get(
    "/info/{miner_hotkey}", response_model=MinerResponse, responses=documented(400, 404, 503)
)
async def miner_info(request: Request, miner_hotkey: MinerHotkey, snapshot: Current) -> Response:
    """Return a miner by its hotkey."""
    return _miner(request, snapshot, snapshot.miners.get(miner_hotkey))


@router.get("/{miner_hotkey}", response_model=MinerResponse, responses=documented(400, 404, 503))
async def miner(request: Request, miner_hotkey: MinerHotkey, snapshot: Current) -> Response:
    """Return a miner by its hotkey."""
    return _miner(request, snapshot, snapshot.miners.get(miner_hotkey))


@router.get(
    "/{miner_hotkey}/tasks",
    response_model=list[MinerTaskEntry],
    responses=documented(400, 503),
)
async def miner_tasks(request: Request, miner_hotkey: MinerHotkey, snapshot: Current) -> Response:
    """Return how a miner's tasks came out, newest first."""
    return await rendered(request, snapshot, rendering.miner_tasks, miner_hotkey)
