"""The pipelines' settings, read once per process, and the scoring parameters that follow from them.

`Parameters` is all that the rules know of them: exact numbers, recorded with every generation.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Self

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

RAO_PER_TAO = 10**9


@dataclass(frozen=True)
class Parameters:
    """What the rules are given beside the data. Fractions, so that an exact +5 % lead counts."""

    task_window: int
    completeness_threshold: Fraction
    dominance_threshold: Fraction
    min_validator_stake_rao: int

    def as_json(self) -> str:
        """Return the one canonical text of these values; `from_json` reads it back exactly."""
        return json.dumps(
            {
                "completeness_threshold": _decimal_text(self.completeness_threshold),
                "dominance_threshold": _decimal_text(self.dominance_threshold),
                "min_validator_stake_rao": self.min_validator_stake_rao,
                "task_window": self.task_window,
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what a generation recorded, to recompute it."""
        values = json.loads(text)
        return cls(
            task_window=values["task_window"],
            completeness_threshold=Fraction(values["completeness_threshold"]),
            dominance_threshold=Fraction(values["dominance_threshold"]),
            min_validator_stake_rao=values["min_validator_stake_rao"],
        )


class PipelineSettings(BaseSettings):
    """Settings of the chain, the scoring and the runs; each is an environment variable."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True)

    chain_source: str = Field(
        "", description="Where the metagraph comes from: the path of a metagraph file."
    )
    netuid: int = Field(99, ge=0, le=65_535, description="The subnet.")
    min_validator_stake: Decimal = Field(
        Decimal(5000),
        ge=0,
        le=9_000_000_000,
        decimal_places=9,
        description="Stake in TAO from which a validator may submit and its votes weigh.",
    )
    scorer_task_window: int = Field(
        100, gt=0, le=1_000_000, description="Consecutive tasks that ranks are computed over."
    )
    scorer_completeness_threshold: Decimal = Field(
        Decimal("0.8"),
        ge=0,
        le=1,
        decimal_places=9,
        description="Share of the window's tasks that must have a vote about a miner before it may "
        "win.",
    )
    dominance_threshold: Decimal = Field(
        Decimal("0.05"),
        ge=0,
        le=1,
        decimal_places=9,
        description="Lead in pass rate that a miner needs over every earlier one to win; exactly "
        "this much counts.",
    )
    chain_sync_interval_seconds: int = Field(
        300,
        gt=0,
        le=3600,
        description="Seconds between two reads of the metagraph, each with a full run: whole "
        "minutes that divide an hour. The API calls a metagraph stale after three of them.",
    )
    weights_valid_seconds: int = Field(
        900, gt=0, description="Seconds for which published weights may be set on chain."
    )
    sensor_interval_seconds: int = Field(
        5, gt=0, description="Seconds between two looks for new records in the log."
    )
    dagster_runs_kept: int = Field(
        1_000, ge=10, description="Newest finished runs that Dagster remembers; by night others go."
    )

    @field_validator("chain_source")
    @classmethod
    def _only_files(cls, chain_source: str) -> str:
        if chain_source.startswith(("ws://", "wss://")):
            raise ValueError(
                "CHAIN_SOURCE: reading from a node (ws://, wss://) is not implemented yet; "
                "give the path of a metagraph file"
            )
        if "://" in chain_source:
            raise ValueError("CHAIN_SOURCE: give the path of a metagraph file")
        return chain_source

    @field_validator("chain_sync_interval_seconds")
    @classmethod
    def _as_cron_says_it(cls, seconds: int) -> int:
        if seconds % 60 or 3600 % seconds:
            raise ValueError("CHAIN_SYNC_INTERVAL_SECONDS: give whole minutes that divide an hour")
        return seconds

    def parameters(self) -> Parameters:
        """Return the scoring parameters, exact."""
        return Parameters(
            task_window=self.scorer_task_window,
            completeness_threshold=Fraction(self.scorer_completeness_threshold),
            dominance_threshold=Fraction(self.dominance_threshold),
            min_validator_stake_rao=int(Fraction(self.min_validator_stake) * RAO_PER_TAO),
        )


def _decimal_text(fraction: Fraction) -> str:
    """Write a fraction as a decimal where it is one, else as `n/d`; `Fraction` reads both."""
    if fraction.denominator == 1:
        return str(fraction.numerator)
    for places in range(1, 19):
        scaled = fraction * 10**places
        if scaled.denominator == 1:
            whole, rest = divmod(scaled.numerator, 10**places)
            return f"{whole}.{rest:0{places}d}"
    return str(fraction)
