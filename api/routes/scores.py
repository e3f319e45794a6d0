"""Scores and ranks of the current generation. Materialised."""

from fastapi import APIRouter, Request, Response

from api import rendering
from api.dependencies import Current, MinerHotkey, ValidatorHotkey, materialised, rendered
from api.errors import documented
from api.models import (
    AggregatedScoreResponse,
    MinerScoresResponse,
    RankResponse,
    ScoreStatsResponse,
    ValidatorScoresResponse,
    ValidatorSummaryResponse,
)

router = APIRouter(prefix="/scores", tags=["scores"])


@router.get("", response_model=AggregatedScoreResponse, responses=documented(503))
async def scores(request: Request, snapshot: Current) -> Response:
    """Return every scored miner's figures in the scoring window."""
    return materialised(request, snapshot.etag, snapshot.answers["/scores"])


@router.get("/validators", response_model=list[ValidatorSummaryResponse], responses=documented(503))
async def validators(request: Request, snapshot: Current) -> Response:
    """Return a summary of each validator's samples."""
    return materialised(request, snapshot.etag, snapshot.answers["/scores/validators"])


@router.get("/rank", response_model=RankResponse, responses=documented(503))
async def rank(request: Request, snapshot: Current) -> Response:
    """Return the miners in order of rank, the winner first."""
    return materialised(request, snapshot.etag, snapshot.answers["/scores/rank"])


@router.get("/stats", response_model=ScoreStatsResponse, responses=documented(503))
async def stats(request: Request, snapshot: Current) -> Response:
    """Return counts over all scores."""
    return materialised(request, snapshot.etag, snapshot.answers["/scores/stats"])


@router.get(
    "/miner/{miner_hotkey}", response_model=MinerScoresResponse, responses=documented(400, 503)
)
async def miner_scores(request: Request, miner_hotkey: MinerHotkey, snapshot: Current) -> Response:
    """Return one miner's score by each validator; empty for an unknown one."""
    return await rendered(request, snapshot, rendering.miner_scores, miner_hotkey)


@router.get(
    "/validator/{validator_hotkey}",
    response_model=ValidatorScoresResponse,
    responses=documented(400, 503),
)
async def validator_scores(
    request: Request, validator_hotkey: ValidatorHotkey, snapshot: Current
) -> Response:
    """Return one validator's score of each miner; empty for an unknown one."""
    return await rendered(request, snapshot, rendering.validator_scores, validator_hotkey)
