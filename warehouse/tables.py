"""The published tables, each declared once; DDL, Arrow and Polars schemas and checks derive.

Names follow the glossary in ARCHITECTURE.md: hotkeys are SS58 text, instants are integer UTC
milliseconds (`_at_ms`), stakes are integer rao (1e9 rao = 1 TAO), booleans say `is_`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    """The types of columns, by their DuckDB names."""

    INT = "BIGINT"
    FLOAT = "DOUBLE"
    BOOL = "BOOLEAN"
    TEXT = "VARCHAR"


@dataclass(frozen=True)
class Column:
    """One column; `doc` says meaning and unit."""

    name: str
    kind: Kind
    doc: str
    is_nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table. `key` is unique; `order` is the one its rows are compared in.

    They are stored in it, but for verdicts, which are stored by partition.
    """

    name: str
    doc: str
    key: tuple[str, ...]
    order: tuple[tuple[str, Literal["asc", "desc"]], ...]
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    def duckdb_ddl(self) -> str:
        """The CREATE TABLE statement for DuckDB."""
        columns = ", ".join(
            f'"{column.name}" {column.kind.value}{"" if column.is_nullable else " NOT NULL"}'
            for column in self.columns
        )
        return f'CREATE TABLE "{self.name}" ({columns})'


def _text(name: str, doc: str, *, nullable: bool = False) -> Column:
    return Column(name, Kind.TEXT, doc, nullable)


def _int(name: str, doc: str, *, nullable: bool = False) -> Column:
    return Column(name, Kind.INT, doc, nullable)


def _float(name: str, doc: str) -> Column:
    return Column(name, Kind.FLOAT, doc)


def _bool(name: str, doc: str) -> Column:
    return Column(name, Kind.BOOL, doc)


VALIDATORS = Table(
    "validators",
    "Validators of the metagraph snapshot.",
    key=("hotkey",),
    order=(("hotkey", "asc"),),
    columns=(
        _text("hotkey", "SS58 address"),
        _int("uid", "uid in the snapshot"),
        _int("stake_rao", "stake in the snapshot, never negative"),
        _bool(
            "is_registered",
            "stake is at least MIN_VALIDATOR_STAKE: may submit, and its votes weigh",
        ),
    ),
)

# Why a miner is not valid, and what is known of its model; in both tables about miners.
VERDICT = (
    _text("invalid_reason", "why not", nullable=True),
    _text("model_name", "as committed", nullable=True),
    _text("model_revision", "as committed", nullable=True),
    _text("model_hash", "sha256 over its weight files' hashes", nullable=True),
    _text("chute_id", "as committed", nullable=True),
    _text("chute_slug", "as Chutes names it", nullable=True),
)

MINERS = Table(
    "miners",
    "Miners of the metagraph snapshot, valid and invalid.",
    key=("hotkey",),
    order=(("uid", "asc"),),
    columns=(
        _int("uid", "uid in the snapshot"),
        _text("hotkey", "SS58 address"),
        _int("block", "block of its commitment", nullable=True),
        _bool("is_valid", "it passed validation and is not blacklisted"),
        *VERDICT,
        _int("last_validated_at_ms", "when its validity was last established", nullable=True),
    ),
)

NEURONS = Table(
    "neurons",
    "A chain snapshot: every neuron of the subnet at one block, as it was found. Not part of a "
    "generation, but what one is made from; a Parquet file a sync.",
    key=("hotkey",),
    order=(("uid", "asc"),),
    columns=(
        _int("netuid", "the subnet"),
        _int("block", "the block"),
        _text("block_hash", "its hash; null: from a metagraph file", nullable=True),
        _text("genesis_hash", "the chain's block 0; null: from a file", nullable=True),
        _int("uid", "its uid at this block"),
        _text("hotkey", "SS58 address"),
        _text("coldkey", "SS58 address", nullable=True),
        _bool("is_validator", "it has a stake, or the file lists it as a validator"),
        _int("stake_rao", "its stake, never negative; null: the file does not say", nullable=True),
        _bool("is_miner", "it has a revealed commitment, or the file lists it as a miner"),
        _text("revealed", "revealed commitments as JSON [[block, hex]], in order", nullable=True),
        _int("commit_block", "block of the newest commitment", nullable=True),
        Column("is_valid", Kind.BOOL, "before blacklist and duplicates", is_nullable=True),
        *VERDICT,
        _text("chute_fact", "the last definite answer of Chutes, as JSON", nullable=True),
        _text("model_fact", "the last definite answer of Hugging Face, as JSON", nullable=True),
        _int("last_validated_at_ms", "when all that was needed was known", nullable=True),
    ),
)

BLACKLIST = Table(
    "blacklist",
    "The blacklist at the watermark.",
    key=("hotkey",),
    order=(("hotkey", "asc"),),
    columns=(
        _text("hotkey", "SS58 address"),
        _text("reason", "newest reason given", nullable=True),
        _text("added_by", "the admin's hotkey"),
        _int("created_at_ms", "when it was put there"),
    ),
)

SCORES = Table(
    "scores",
    "Score entries: one registered validator's current samples about one valid miner, all history.",
    key=("validator_hotkey", "miner_hotkey"),
    order=(("validator_hotkey", "asc"), ("miner_hotkey", "asc")),
    columns=(
        _text("validator_hotkey", "SS58 address"),
        _text("miner_hotkey", "SS58 address"),
        _int("total_samples", "current samples"),
        _int("total_passed", "of those, passed"),
        _float("score", "total_passed / total_samples"),
        _int("updated_at_ms", "newest receipt among them"),
    ),
)

MINER_SCORES = Table(
    "miner_scores",
    "Window figures of every valid miner.",
    key=("miner_hotkey",),
    order=(("miner_hotkey", "asc"),),
    columns=(
        _text("miner_hotkey", "SS58 address"),
        _int("tasks_evaluated", "window tasks with at least one vote about it"),
        _int("passed_count", "of those, verdicts that passed"),
        _float("pass_rate", "passed_count / tasks_evaluated, 0 when none"),
        _float("completeness", "tasks_evaluated / SCORER_TASK_WINDOW"),
        _int("validator_count", "score entries about it"),
        _bool("is_eligible", "it may win"),
    ),
)

VERDICTS = Table(
    "verdicts",
    "The stake-weighted outcome of every task for every miner with a vote, all history.",
    key=("miner_hotkey", "task_id"),
    order=(("miner_hotkey", "asc"), ("task_id", "desc")),
    columns=(
        _text("miner_hotkey", "SS58 address"),
        _int("task_id", "the task"),
        _bool("is_passed", "twice the passing stake exceeds the stake of all votes"),
        _int("stake_passed_rao", "stake of the passing votes"),
        _int("stake_total_rao", "stake of all votes"),
        _int("validator_count", "votes, weightless ones included"),
        _int("latency_ms", "the newest vote's that has one", nullable=True),
        _int("updated_at_ms", "newest receipt among the votes"),
    ),
)

RANKS = Table(
    "ranks",
    "Rank 1 is the winner; the eligible come before the ineligible.",
    key=("miner_hotkey",),
    order=(("rank", "asc"),),
    columns=(
        _int("rank", "1, 2, 3, ..."),
        _text("miner_hotkey", "SS58 address"),
        _int("uid", "uid in the snapshot"),
        _int("passed_count", "window verdicts that passed"),
        _int("tasks_evaluated", "window tasks with a vote about it"),
        _float("pass_rate", "passed_count / tasks_evaluated"),
        _int("block", "block of its commitment", nullable=True),
        _bool("is_eligible", "it may win"),
    ),
)

WEIGHTS = Table(
    "weights",
    "What validators set on chain: 1 for the winner, 0 for the other ranked miners.",
    key=("miner_hotkey",),
    order=(("weight", "desc"), ("uid", "asc")),
    columns=(
        _text("miner_hotkey", "SS58 address"),
        _int("uid", "uid in the snapshot"),
        _float("pass_rate", "as in ranks"),
        _float("weight", "1.0 or 0.0"),
    ),
)

GENERATION = Table(
    "generation",
    "One row: what this generation is, and from what it was made.",
    key=("snapshot_id",),
    order=(("snapshot_id", "asc"),),
    columns=(
        _text("snapshot_id", "the generation's name, never used twice"),
        _int("computed_at_ms", "when it was made"),
        _int("valid_until_ms", "weights are not to be set after this instant"),
        _int("watermark", "the highest seq of the log that counts"),
        _int("netuid", "the subnet"),
        _int("block", "block of the metagraph snapshot"),
        _text("metagraph_snapshot", "file of the metagraph snapshot, below the warehouse"),
        _int("metagraph_synced_at_ms", "when the metagraph was read"),
        _int("latest_task_id", "latest announced task at the watermark", nullable=True),
        _int("window_first", "first task id of the window", nullable=True),
        _int("window_last", "last task id of the window", nullable=True),
        _int("winner_uid", "0: burn"),
        _text("winner_hotkey", "null: burn", nullable=True),
        _text("burn_reason", "why nobody won", nullable=True),
        _int("total_samples", "current samples in log and archive"),
        _text("parameters", "the scoring parameters, as JSON"),
        _text("code_version", "version of this software"),
        _text("tables_sha256", "digest over the rows of all other tables; see generation_file.py"),
    ),
)

# All tables that a run computes, in the order of its graph. `generation` describes them.
COMPUTED_TABLES = (
    VALIDATORS, MINERS, BLACKLIST, SCORES, MINER_SCORES, VERDICTS, RANKS, WEIGHTS
)  # fmt: skip

ARCHIVED_VOTES = Table(
    "archived_votes",
    "The archive's narrow part: the newest version of every sample.",
    key=("task_key", "miner_hotkey", "validator_hotkey"),
    order=(
        ("task_id", "asc"),
        ("miner_hotkey", "asc"),
        ("validator_hotkey", "asc"),
        ("seq", "asc"),
    ),
    columns=(
        _int("seq", "position in the log; the sample's id"),
        _int("received_at_ms", "receipt"),
        _text("validator_hotkey", "SS58 address"),
        _text("miner_hotkey", "SS58 address"),
        _int("task_id", "null for a legacy sample without one", nullable=True),
        _text("task_key", "the task id in decimal, or the legacy sample id"),
        _bool("is_passed", "the validator's judgement"),
        _int("confidence", "0..100", nullable=True),
        _int("latency_ms", "the miner's latency", nullable=True),
    ),
)

ARCHIVED_TEXTS = Table(
    "archived_texts",
    "The archive's wide part, joined to archived_votes by seq.",
    key=("seq",),
    order=(("seq", "asc"),),
    columns=(
        _int("seq", "position in the log; the sample's id"),
        _text("sample_id", "as given, or the task id as text"),
        _text("prompt", "as submitted"),
        _text("s3_bucket", "as submitted"),
        _text("s3_prefix", "as submitted"),
        _text("reasoning", "as submitted", nullable=True),
        _text("original_artifacts", "as submitted", nullable=True),
        _text("generated_artifacts", "as submitted", nullable=True),
        _text("presentation_order", "as submitted", nullable=True),
        _text("evaluation_signature", "as submitted", nullable=True),
    ),
)
