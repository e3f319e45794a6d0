"""The shapes of bodies and answers, with the names that clients know.

Request models decide what is accepted; strict, so that "1" is no integer and 1 is no boolean.
Response models document and test the answers; the routes render the bytes themselves.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from warehouse.hotkeys import HOTKEY_LENGTH_MAX, is_hotkey
from warehouse.records import Sample

INT63_MAX = 2**63 - 1
SAMPLES_PER_BATCH_MAX = 100  # the published limit; ApiSettings may set another


def _without_nul(text: str) -> str:
    # Not as a pattern: a regular expression over every text takes half of all validation.
    if "\0" in text:
        raise PydanticCustomError("nul_character", "Text must hold no NUL character")
    return text


NoNul = AfterValidator(_without_nul)

Int63 = Annotated[int, Field(ge=0, le=INT63_MAX)]
Text64 = Annotated[str, StringConstraints(max_length=64), NoNul]
Text255 = Annotated[str, StringConstraints(max_length=255), NoNul]
Text256 = Annotated[str, StringConstraints(max_length=256), NoNul]
Text512 = Annotated[str, StringConstraints(max_length=512), NoNul]
Text4096 = Annotated[str, StringConstraints(max_length=4096), NoNul]
Text8192 = Annotated[str, StringConstraints(max_length=8192), NoNul]
HexSignature = Annotated[str, StringConstraints(max_length=256, pattern=r"^(0[xX])?[0-9a-fA-F]*$")]


def task_id_of(sample_id: str) -> int | None:
    """Return the task id that a legacy sample id of ASCII digits gives, None for any other text."""
    return int(sample_id) if sample_id.isascii() and sample_id.isdigit() else None


def _checked_hotkey(text: str) -> str:
    if not is_hotkey(text):
        raise PydanticCustomError("ss58_address", "Invalid SS58 address format")
    return text


def _checked_sample_id(text: str) -> str:
    if (task_id_of(text) or 0) > INT63_MAX:
        raise PydanticCustomError("sample_id", "A sample_id of digits must fit 63 bits")
    return text


Hotkey = Annotated[
    str,
    Field(
        max_length=HOTKEY_LENGTH_MAX,
        description="SS58 address",
        examples=["5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"],
    ),
    AfterValidator(_checked_hotkey),
]


class Body(BaseModel):
    """A request body. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class SampleSubmission(Body):
    """One judged video. One of `task_id` and `sample_id` is required."""

    task_id: Int63 | None = Field(None, description="The task.")
    sample_id: Annotated[Text255, AfterValidator(_checked_sample_id)] | None = Field(
        None, description="Legacy; digits alone give the task id where there is no task_id."
    )
    miner_hotkey: Hotkey
    prompt: Text4096
    s3_bucket: Text255
    s3_prefix: Text512
    passed: bool
    confidence: Annotated[int, Field(ge=0, le=100)] | None = None
    reasoning: Text4096 | None = None
    latency_ms: Int63 | None = None
    original_artifacts: Text8192 | None = None
    generated_artifacts: Text8192 | None = None
    presentation_order: Text64 | None = None
    evaluation_signature: Text256 | None = Field(
        None, description="The validator's signature over the evaluation payload."
    )

    @model_validator(mode="after")
    def _has_a_task(self) -> Self:
        if self.task_id is None and not self.sample_id:
            raise PydanticCustomError("task_missing", "Either task_id or sample_id is required")
        return self

    def to_sample(self) -> Sample:
        """Return the record to store."""
        given = self.sample_id or None
        task_id = self.task_id if self.task_id is not None else task_id_of(given or "")
        task_key = given or "" if task_id is None else str(task_id)
        return Sample(
            self.miner_hotkey,
            task_id,
            task_key,
            given or task_key,
            self.passed,
            self.confidence,
            self.latency_ms,
            self.prompt,
            self.s3_bucket,
            self.s3_prefix,
            self.reasoning,
            self.original_artifacts,
            self.generated_artifacts,
            self.presentation_order,
            self.evaluation_signature,
        )


class SampleBatch(Body):
    """Samples that are stored all or not at all."""

    signature: HexSignature | None = Field(
        None,
        description="Hex of the validator's signature over the evaluation payload of these "
        "samples, which then all belong to one task.",
    )
    samples: Annotated[
        list[SampleSubmission],
        Field(min_length=1, json_schema_extra={"maxItems": SAMPLES_PER_BATCH_MAX}),
    ]


class TaskAnnouncement(Body):
    """The latest task."""

    task_id: Int63


class BlacklistAddition(Body):
    """A hotkey to put on the blacklist."""

    hotkey: Hotkey
    reason: Text255 | None = None


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
    """A task with every miner that was judged on it. URLs are null without object storage."""

    task_id: int
    description: str
    s3_prefix: str
    first_frame_path: str
    original_clip_path: str
    first_frame_url: str | None
    original_clip_url: str | None
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
    """A task for one miner. URLs are null without object storage."""

    task_id: int
    miner_hotkey: str
    description: str
    s3_prefix: str
    first_frame_path: str
    original_clip_path: str
    generated_video_path: str
    first_frame_url: str | None
    original_clip_url: str | None
    generated_video_url: str | None
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
