"""The shapes of answers, with the names that clients know.

They document and test the answers; the routes render the bytes themselves.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MediaUrl = Annotated[
    str | None,
    Field(
        description="A link by which anybody may GET the file, for MEDIA_URL_SECONDS (an hour) at "
        "most and half of them at least. Null without object storage. Whether the file is there "
        "is not checked."
    ),
]


class Answer(BaseModel):
    """An answer; no field beyond the documented ones."""

    model_config = ConfigDict(extra="forbid")


class ErrorResponse(Answer):
    """What went wrong, for people."""

    detail: str


class InvalidField(Answer):
    """One thing that is wrong, and where: `loc` begins with body, query or path."""

    type: str
    loc: list[str | int]
    msg: str


class ValidationErrorResponse(Answer):
    """All that is wrong with the input."""

    detail: list[InvalidField]


class HealthResponse(Answer):
    """The service's own view of itself; `problems` says why it is degraded."""

    status: Literal["healthy", "degraded"]
    version: str
    database: bool = Field(description="The log answers.")
    metagraph_synced: bool = Field(description="A sync succeeded and is recent.")
    last_sync: datetime | None
    snapshot_id: str | None
    snapshot_age_seconds: float | None
    problems: list[str]


class StatusResponse(Answer):
    """A probe's answer."""

    status: str


class TimeResponse(Answer):
    """The server's clock in Unix seconds."""

    unix: int


class MinerResponse(Answer):
    """A miner of the current metagraph snapshot."""

    uid: int
    hotkey: str
    model_name: str | None
    model_revision: str | None
    model_hash: str | None
    chute_id: str | None
    chute_slug: str | None
    is_valid: bool
    invalid_reason: str | None
    block: int | None
    last_validated_at: datetime | None


class MinersListResponse(Answer):
    """Miners by uid. `total` and `valid_count` count all miners, whatever the list shows."""

    miners: list[MinerResponse]
    total: int
    valid_count: int


class MinerTaskEntry(Answer):
    """The stake-weighted outcome of a task for a miner."""

    task_id: int
    passed: bool
    latency_ms: int | None
    updated: datetime | None


class SampleResponse(Answer):
    """A sample as stored. `id` names this version of it and grows with time."""

    id: int
    sample_id: str
    validator_hotkey: str
    miner_hotkey: str
    prompt: str
    s3_bucket: str
    s3_prefix: str
    passed: bool
    confidence: int | None
    reasoning: str | None
    evaluated_at: datetime = Field(description="When the server received it.")
    task_id: int | None
    latency_ms: int | None


class AggregatedScore(Answer):
    """A miner's figures in the scoring window."""

    avg_score: float
    total_samples: int
    total_passed: int
    pass_rate: float
    validator_count: int


class AggregatedScoreResponse(Answer):
    """The window figures of all valid miners with a score, by hotkey."""

    scores: dict[str, AggregatedScore]
    total_validators: int
    updated_at: datetime


class ValidatorSummaryResponse(Answer):
    """One validator's samples about valid miners, all history."""

    validator_hotkey: str
    total_samples: int
    total_passed: int
    avg_score: float
    pass_rate: float
    last_updated: datetime | None


class MinerRankEntry(Answer):
    """A place in the ranking; `eligible` says whether it could win."""

    miner_hotkey: str
    uid: int
    rank: int
    passed_count: int
    pass_rate: float
    block: int | None
    eligible: bool


class RankResponse(Answer):
    """The ranking, the winner first."""

    ranks: list[MinerRankEntry]


class ScoreStatsResponse(Answer):
    """Counts over all score entries; `total_samples` counts all current samples."""

    total_validators: int
    total_miners: int
    total_samples: int
    total_score_entries: int
    overall_pass_rate: float


class ValidatorScoreDetail(Answer):
    """One validator's score of a miner, all history."""

    validator_hotkey: str
    score: float
    total_samples: int
    total_passed: int
    pass_rate: float
    updated_at: datetime


class MinerScoresResponse(Answer):
    """A miner's score by each validator, and its window figures."""

    miner_hotkey: str
    by_validator: list[ValidatorScoreDetail]
    aggregated: AggregatedScore


class MinerScoreEntry(Answer):
    """A validator's score of one miner, all history."""

    miner_hotkey: str
    score: float
    total_samples: int
    total_passed: int
    pass_rate: float
    updated_at: datetime


class ValidatorScoresResponse(Answer):
    """All scores of one validator."""

    validator_hotkey: str
    scores: list[MinerScoreEntry]
    total_miners: int


class LatestTaskResponse(Answer):
    """The latest task."""

    task_id: int


class TaskMinerSummary(Answer):
    """The stake-weighted outcome of a task for one miner; `validator_count` counts its votes."""

    miner_hotkey: str
    passed: bool
    validator_count: int
    latency_ms: int | None
    updated: datetime


class TaskDetailResponse(Answer):
    """A task with every miner that was judged on it."""

    task_id: int
    description: str
    s3_prefix: str
    first_frame_path: str
    original_clip_path: str
    first_frame_url: MediaUrl
    original_clip_url: MediaUrl
    miner_count: int
    validator_count: int
    miners: list[TaskMinerSummary]


class TaskValidatorResult(Answer):
    """One validator's judgement. `stake` in TAO; 0 for a validator that is not registered."""

    validator_hotkey: str
    passed: bool
    stake: float
    evaluated_at: datetime
    confidence: int | None
    reasoning: str | None
    aspect_scores: dict[str, int] | None
    overall_score: int | None


class TaskMinerDetailResponse(Answer):
    """A task for one miner."""

    task_id: int
    miner_hotkey: str
    description: str
    s3_prefix: str
    first_frame_path: str
    original_clip_path: str
    generated_video_path: str
    first_frame_url: MediaUrl
    original_clip_url: MediaUrl
    generated_video_url: MediaUrl
    validators: list[TaskValidatorResult]
    final_passed: bool
    latency_ms: int | None


class MinerWeightEntry(Answer):
    """A miner's weight: 1 for the winner, 0 for the others."""

    miner_hotkey: str
    uid: int
    pass_rate: float
    weight: float


class WeightsResponse(Answer):
    """What validators set on chain, and until when. Weights that are past `valid_until` say
    nothing: leave the chain as it is, and do not burn.
    """

    winner_uid: int = Field(description="0: burn, and `burn_reason` says why.")
    miners: list[MinerWeightEntry]
    winner_hotkey: str | None
    burn_reason: str | None
    snapshot_id: str
    netuid: int = Field(description="The subnet that they are for.")
    block: int
    computed_at: datetime
    valid_until: datetime
    watermark: int = Field(description="The last log position that counted.")


class BlacklistEntryResponse(Answer):
    """An entry of the blacklist."""

    hotkey: str
    reason: str | None
    added_by: str
    created_at: datetime


class BlacklistRemovalResponse(Answer):
    """A hotkey that was taken off the blacklist."""

    success: Literal[True]
    message: str
    removed_by: str
