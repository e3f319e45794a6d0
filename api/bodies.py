"""What a request's body must look like, with the names that clients know.

Strict: "1" is no integer and 1 is no boolean. JSON itself is `api.dependencies.parsed_json`.
"""

from collections.abc import Iterable
from typing import Annotated, Self

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


Int63 = Annotated[int, Field(ge=0, le=INT63_MAX)]
Text64 = Annotated[str, StringConstraints(max_length=64)]
Text255 = Annotated[str, StringConstraints(max_length=255)]
Text256 = Annotated[str, StringConstraints(max_length=256)]
Text512 = Annotated[str, StringConstraints(max_length=512)]
Text4096 = Annotated[str, StringConstraints(max_length=4096)]
Text8192 = Annotated[str, StringConstraints(max_length=8192)]
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

    def nuls(self) -> list[tuple[str | int, ...]]:
        """Return the places of all texts with a NUL character, which no text may hold."""
        return _nuls(self, ())


def _nuls(value: object, place: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    if isinstance(value, str):
        return [place] if "\0" in value else []
    within: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, Body):
        within = value
    elif isinstance(value, list):
        within = enumerate(value)
    return [found for name, inner in within for found in _nuls(inner, (*place, name))]


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
