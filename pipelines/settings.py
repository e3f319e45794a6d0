"""The pipelines' settings, read once per process, and the scoring parameters that follow from them.

`Parameters` is all that the rules know of them: exact numbers, recorded with every generation.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Self

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

RAO_PER_TAO = 10**9
NODE_SCHEMES = ("ws://", "wss://")


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

    # A node's address may hold a password or a key, as do those of the services.
    model_config = SettingsConfigDict(
        env_prefix="", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    chain_source: str = Field(
        "",
        repr=False,
        description="Where the metagraph comes from: `wss://` or `ws://` addresses of Subtensor "
        "nodes, tried in turn, with commas between them; or the path of a metagraph file.",
    )
    netuid: int = Field(99, ge=0, le=65_535, description="The subnet.")
    chain_genesis: str = Field(
        "",
        pattern="^(0x[0-9a-fA-F]{64})?$",
        description="Hash of the chain's block 0; a node of another chain is refused. Empty: the "
        "chain of the last snapshot, whichever that is.",
    )
    chain_timeout_seconds: float = Field(
        15.0, gt=0, description="How long a node may take to connect, and for each answer."
    )
    chain_sync_seconds_max: float = Field(
        90.0, gt=0, description="How long one node may take for all answers of a sync."
    )
    chain_block_age_seconds_max: float = Field(
        180.0,
        gt=0,
        description="A node whose newest block is older than this does not follow the chain: the "
        "next one is asked.",
    )
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
    chutes_api_url: str = Field(
        "https://api.chutes.ai",
        repr=False,
        description="Where Chutes is asked about miners' chutes.",
    )
    chutes_api_key: SecretStr = Field(
        SecretStr(""), description="Bearer key for Chutes. Never shown."
    )
    hf_endpoint: str = Field(
        "https://huggingface.co",
        repr=False,
        description="Where Hugging Face is asked about miners' models.",
    )
    hf_token: SecretStr = Field(
        SecretStr(""), description="Token for Hugging Face; public models need none. Never shown."
    )
    validation_concurrency_max: int = Field(
        8, gt=0, le=64, description="Questions to Chutes and Hugging Face at the same time."
    )
    validation_timeout_seconds: float = Field(
        10.0, gt=0, description="How long either may take for one answer."
    )
    validation_attempts_max: int = Field(
        3, gt=0, description="How often a question is put before it counts as not answered."
    )
    validation_seconds_max: float = Field(
        120.0,
        gt=0,
        description="Time for all questions of one sync; what is not answered by then keeps its "
        "last answer.",
    )
    validation_denials_held_seconds: int = Field(
        86_400,
        ge=0,
        description="When Chutes or Hugging Face says that all of several miners' chutes or models "
        "are gone at once, it is not believed until the last answers are this old: a wrong address "
        "must not make every miner invalid.",
    )
    model_recheck_seconds: int = Field(
        3600,
        ge=0,
        description="Hugging Face's answer about a revision is used again for this long; Chutes is "
        "asked at every sync.",
    )
    weights_valid_seconds: int = Field(
        900, gt=0, description="Seconds for which published weights may be set on chain."
    )
    sensor_interval_seconds: int = Field(
        5, gt=0, description="Seconds between two looks for new records in the log."
    )
    run_nice: int = Field(
        10,
        ge=0,
        le=19,
        description="How far runs under Dagster give way to the API on this machine (as `nice`). "
        "While both want a processor, 10 leaves them a tenth of it, 0 half.",
    )
    dagster_runs_kept: int = Field(
        1_000, ge=10, description="Newest finished runs that Dagster remembers; by night others go."
    )

    @field_validator("chain_source")
    @classmethod
    def _nodes_or_one_file(cls, chain_source: str) -> str:
        places = [place.strip() for place in chain_source.split(",")]
        are_nodes = [place.startswith(NODE_SCHEMES) for place in places]
        if any(are_nodes) and not all(are_nodes):
            raise ValueError("CHAIN_SOURCE: every address in the list must be ws:// or wss://")
        if "://" in chain_source and not any(are_nodes):
            raise ValueError("CHAIN_SOURCE: give ws:// or wss:// addresses, or a file's path")
        return chain_source

    @field_validator("chutes_api_url", "hf_endpoint")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("give an http:// or https:// address")
        return url.rstrip("/")

    @field_validator("chain_sync_interval_seconds")
    @classmethod
    def _as_cron_says_it(cls, seconds: int) -> int:
        if seconds % 60 or 3600 % seconds:
            raise ValueError("CHAIN_SYNC_INTERVAL_SECONDS: give whole minutes that divide an hour")
        return seconds

    @property
    def chain_endpoints(self) -> tuple[str, ...]:
        """The nodes' addresses in the order they are tried; empty when the source is a file."""
        places = tuple(place.strip() for place in self.chain_source.split(","))
        return places if places[0].startswith(NODE_SCHEMES) else ()

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
