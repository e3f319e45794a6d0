"""The simulated subnet: who is in it, what every validator says, and how it must come out.

Everything follows from the names and the task id, so that two runs say the same. No validator has
half of the stake and at most one errs about a video, so the stake-weighted verdict is always the
truth, and `expected_ranks` can tell the rank table without the pipelines.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from substrateinterface import Keypair

NETUID = 99
BLOCK = 4_500_000
ERROR_RATE = 0.2
# A late miner is judged only in the last part of each demo, far below the completeness threshold.
LATE_SHARE = Fraction(7, 10)

SCENE = (
    "a slow dolly shot across the harbour at dawn while gulls circle above two fishing boats and "
    "the light turns from blue to amber on wet cobblestones a child runs along the pier with a red "
    "kite the camera follows at shoulder height then rises over the roofs to show the bay and a "
    "train crossing the viaduct motion stays smooth hands keep five fingers shadows agree with the "
    "sun reflections ripple consistently texture of the wooden planks is preserved between frames"
)


@dataclass(frozen=True)
class Neuron:
    """A key of the simulated subnet, derived from its name alone."""

    name: str
    uid: int

    @cached_property
    def keypair(self) -> Keypair:
        """The key; it is public knowledge and good for nothing else."""
        return Keypair.create_from_uri(self.uri)

    @property
    def uri(self) -> str:
        """What the key is derived from."""
        return f"//Leoma//demo//{self.name}"

    @property
    def hotkey(self) -> str:
        """Its address."""
        return str(self.keypair.ss58_address)


@dataclass(frozen=True)
class Validator(Neuron):
    """A validator; `stake` in TAO."""

    stake: int


@dataclass(frozen=True)
class Miner(Neuron):
    """A miner. `skill` is the share of tasks that it passes; `copies` another miner's outcomes."""

    skill: Fraction
    block: int
    copies: str | None = None
    is_late: bool = False
    is_valid: bool = True
    is_blacklisted: bool = False

    def passes(self, task_id: int) -> bool:
        """Tell the truth about this miner's video of a task: evenly spread, `skill` of them."""
        seed = self.copies or self.name
        phase = Fraction(random.Random(seed).randrange(100), 100)  # noqa: S311 - a simulation
        steps = [(task_id + offset) * self.skill + phase for offset in (0, 1)]
        return steps[1] // 1 > steps[0] // 1


ADMIN = Neuron("admin", 0)
VALIDATORS = (
    Validator("validator-atlas", 1, 412_000),
    Validator("validator-borealis", 2, 318_500),
    Validator("validator-cygnus", 3, 141_000),
    Validator("validator-draco", 4, 36_250),
    Validator("validator-eridanus", 5, 9_400),
    Validator("validator-fornax", 6, 5_000),
)
MINERS = (
    Miner("miner-cheater", 16, Fraction("0.96"), 4_380_000, is_blacklisted=True),
    Miner("miner-veteran", 10, Fraction("0.55"), 4_400_000),
    Miner("miner-weak", 11, Fraction("0.31"), 4_405_000),
    Miner("miner-steady", 12, Fraction("0.68"), 4_410_000),
    Miner("miner-best", 13, Fraction("0.86"), 4_420_000),
    Miner("miner-copycat", 14, Fraction("0.86"), 4_430_000, copies="miner-best"),
    Miner("miner-broken", 17, Fraction("0.93"), 4_435_000, is_valid=False),
    Miner("miner-latecomer", 15, Fraction("0.98"), 4_440_000, is_late=True),
    Miner("miner-newcomer", 18, Fraction("0.74"), 4_445_000, is_late=True),
)


@dataclass(frozen=True)
class Period:
    """The tasks of one demo, first and last included."""

    first: int
    last: int
    late_from: int = field(init=False)

    def __post_init__(self) -> None:
        """Find the first task on which late miners are judged."""
        length = self.last - self.first + 1
        object.__setattr__(self, "late_from", self.first + -(-length * LATE_SHARE // 1))

    def judged(self, task_id: int) -> list[Miner]:
        """Return the miners that are judged on one of these tasks."""
        return [miner for miner in MINERS if not miner.is_late or task_id >= self.late_from]


@dataclass(frozen=True)
class ExpectedRank:
    """What a line of the rank table must say."""

    hotkey: str
    passed_count: int
    tasks_evaluated: int
    is_eligible: bool


def metagraph() -> dict[str, Any]:
    """Return the subnet as a metagraph file."""
    return {
        "netuid": NETUID,
        "block": BLOCK,
        "validators": [
            {"uid": neuron.uid, "hotkey": neuron.hotkey, "stake": neuron.stake}
            for neuron in VALIDATORS
        ],
        "miners": [
            {
                "uid": miner.uid,
                "hotkey": miner.hotkey,
                "block": miner.block,
                "is_valid": miner.is_valid,
                "invalid_reason": None if miner.is_valid else "chute_not_running",
                **model(miner),
            }
            for miner in MINERS
        ],
    }


def model(miner: Miner) -> dict[str, str]:
    """Return what a miner has committed to, and what is known of it."""
    return {
        "model_name": f"demo/leoma-{miner.name}-{miner.hotkey}",
        "model_revision": f"{miner.block:040x}",
        "model_hash": f"{miner.uid:064x}",
        "chute_id": f"demo-{miner.name}",
        "chute_slug": f"demo-{miner.name}",
    }


def samples(validator: Validator, task_id: int, judged: Sequence[Miner]) -> list[dict[str, Any]]:
    """Return what one validator submits about one task."""
    return [_sample(validator, task_id, miner) for miner in judged]


def _sample(validator: Validator, task_id: int, miner: Miner) -> dict[str, Any]:
    about = random.Random(f"{task_id}/{miner.name}")  # noqa: S311 - a simulation
    is_error = about.random() < ERROR_RATE and about.choice(VALIDATORS) == validator
    own = random.Random(f"{task_id}/{miner.name}/{validator.name}")  # noqa: S311 - a simulation
    passed = miner.passes(task_id) != is_error
    score = own.randint(62, 97) if passed else own.randint(12, 58)
    return {
        "task_id": task_id,
        "miner_hotkey": miner.hotkey,
        "prompt": _text(random.Random(task_id), 60),  # noqa: S311 - a simulation
        "s3_bucket": "leoma-demo",
        "s3_prefix": str(task_id),
        "passed": passed,
        "confidence": own.randint(55, 99),
        "reasoning": _text(own, 110),
        "latency_ms": own.randint(9_000, 48_000),
        "original_artifacts": _text(own, 40),
        "generated_artifacts": _aspects(own, score),
        "presentation_order": own.choice(("original,generated", "generated,original")),
    }


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(SCENE.split(), k=words))


def _aspects(chance: random.Random, score: int) -> str:
    names = ("motion", "identity", "lighting", "prompt_adherence", "artifacts")
    scores = ", ".join(f'"{name}": {max(0, score - chance.randint(0, 12))}' for name in names)
    return f'{{"aspect_scores": {{{scores}}}, "overall_score": {score}}}'


def expected_ranks(
    periods: Sequence[Period], window: int, completeness: Fraction, dominance: Fraction
) -> list[ExpectedRank]:
    """Return the rank table that these tasks must lead to, the winner first if there is one."""
    last = periods[-1].last
    passed: Mapping[str, list[bool]] = {miner.name: [] for miner in MINERS}
    for period in periods:
        for task_id in range(max(period.first, last - window + 1), period.last + 1):
            for miner in period.judged(task_id):
                passed[miner.name].append(miner.passes(task_id))
    table = [
        (
            miner,
            ExpectedRank(
                miner.hotkey,
                sum(passed[miner.name]),
                len(passed[miner.name]),
                last >= window and len(passed[miner.name]) >= completeness * window,
            ),
        )
        for miner in MINERS
        if miner.is_valid and not miner.is_blacklisted and passed[miner.name]
    ]
    winner: str | None = None
    best: Fraction | None = None
    # MINERS is ordered by commit block.
    for _, line in table:
        rate = Fraction(line.passed_count, line.tasks_evaluated)
        if line.is_eligible and (best is None or rate >= best + dominance):
            winner = line.hotkey
        if line.is_eligible and (best is None or rate > best):
            best = rate
    return sorted(
        (line for _, line in table),
        key=lambda line: (
            line.hotkey != winner, not line.is_eligible, -line.passed_count, line.hotkey
        ),
    )  # fmt: skip
