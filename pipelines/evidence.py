"""The facts about all miners of one sync: who is asked what, how often, and what is kept.

A question that gets no definite answer leaves the last fact in force, whatever its age, and is
counted. Neither service is asked by more than a limit at once, nor longer than a limit, nor again
before it wants to be. What the facts mean for a miner is validation.py's business.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pipelines.commitments import Commitment, read_commitment
from pipelines.inquiry import Inquiry, Limits, settle
from pipelines.neurons import Neuron
from pipelines.settings import PipelineSettings
from pipelines.validation import ChuteFact, ModelFact

# So many things, and everything that a service was asked about, do not end at the same time.
GONE_AT_ONCE_MIN = 2

Fact = TypeVar("Fact", ChuteFact, ModelFact)
Key = TypeVar("Key")
ModelKey = tuple[str, str]


class AsksChutes(Protocol):
    """`Chutes`, or whatever answers like it."""

    def fact(self, chute_id: str, timeout_seconds: float | None = None) -> ChuteFact:
        """Return a definite answer or raise `NoAnswer`."""


class AsksHuggingFace(Protocol):
    """`HuggingFace`, or whatever answers like it."""

    def fact(
        self, model_name: str, model_revision: str, timeout_seconds: float | None = None
    ) -> ModelFact:
        """Return a definite answer or raise `NoAnswer`."""


@dataclass(frozen=True)
class Facts:
    """The last definite answers about what a miner commits to now.

    `is_complete`: each that its verdict needs is of this sync, or recent enough to be used again.
    """

    chute: ChuteFact | None
    model: ModelFact | None
    is_complete: bool


@dataclass(frozen=True)
class Tally:
    """How one service answered the questions of a sync: `asked` is `answered` + `unanswered`.

    `reused` questions needed no new answer. `reasons` counts why questions stayed unanswered.
    """

    asked: int
    answered: int
    unanswered: int
    reused: int
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """The facts by hotkey, for every neuron with a commitment, and how they were come by."""

    facts: Mapping[str, Facts]
    chutes: Tally
    hugging_face: Tally


def gather(  # noqa: PLR0917 - one sync's parts, of types that cannot be mistaken for each other
    miners: Sequence[Neuron],
    previous: Mapping[str, Facts],
    chutes: AsksChutes,
    hugging_face: AsksHuggingFace,
    settings: PipelineSettings,
    now_ms: int,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> Evidence:
    """Ask both services about all miners; return the facts that are in force afterwards.

    `previous` are the facts of the last sync by hotkey. A fact is about a chute or a revision, not
    about a hotkey: it holds for whoever commits to the same, and for nobody who does not. Miners
    whose commitment already fails a rule are not asked about. Neurons without one are left out. A
    service that has lost everything at once is not believed for
    `VALIDATION_DENIALS_HELD_SECONDS`: it is another one than before.
    `on_progress` is told how many questions are settled, of how many. Never raises for what a
    service does; no thread outlives the call. `clock` is in seconds; `sleep` passes them.
    """
    commitments = {
        miner.hotkey: read_commitment(miner.hotkey, miner.revealed)
        for miner in miners
        if miner.revealed
    }
    wanted = [one for one in commitments.values() if isinstance(one, Commitment)]
    known_chutes = _newest(
        (facts.chute.chute_id, facts.chute)
        for facts in previous.values()
        if facts.chute is not None
    )
    known_models = _newest(
        ((facts.model.model_name, facts.model.model_revision), facts.model)
        for facts in previous.values()
        if facts.model is not None
    )
    models = {(one.model_name, one.model_revision) for one in wanted}
    recent = {key for key in models if _is_recent(known_models.get(key), settings, now_ms)}
    chute_inquiry = Inquiry({one.chute_id for one in wanted}, chutes.fact)
    model_inquiry = Inquiry(
        models - recent, lambda model, seconds: hugging_face.fact(*model, seconds)
    )
    limits = Limits(
        concurrency_max=settings.validation_concurrency_max,
        attempts_max=settings.validation_attempts_max,
        seconds_max=settings.validation_seconds_max,
    )
    settle([chute_inquiry, model_inquiry], limits, on_progress, clock, sleep)
    _hold_denials(chute_inquiry, known_chutes, settings, now_ms)
    _hold_denials(model_inquiry, known_models, settings, now_ms)
    fresh_models = recent | model_inquiry.answers.keys()
    known_chutes |= chute_inquiry.answers
    known_models |= model_inquiry.answers

    def facts_of(commitment: Commitment | str) -> Facts:
        if isinstance(commitment, str):
            return Facts(chute=None, model=None, is_complete=True)
        model = (commitment.model_name, commitment.model_revision)
        return Facts(
            chute=known_chutes.get(commitment.chute_id),
            model=known_models.get(model),
            is_complete=commitment.chute_id in chute_inquiry.answers and model in fresh_models,
        )

    return Evidence(
        facts={hotkey: facts_of(commitment) for hotkey, commitment in commitments.items()},
        chutes=_tally(chute_inquiry, reused=0),
        hugging_face=_tally(model_inquiry, reused=len(recent)),
    )


def _is_recent(fact: ModelFact | None, settings: PipelineSettings, now_ms: int) -> bool:
    """Tell whether an answer is used again without asking. What was not there may be by now."""
    if fact is None or not fact.is_found:
        return False
    # One from the future is of a clock that was wrong, and would not be asked for again.
    return 0 <= now_ms - fact.answered_at_ms < settings.model_recheck_seconds * 1000


def _hold_denials(
    inquiry: Inquiry[Key, Fact], known: Mapping[Key, Fact], settings: PipelineSettings, now_ms: int
) -> None:
    """Take back each answer that something is not there, if of all that was there nothing is."""
    held_ms = settings.validation_denials_held_seconds * 1000
    denied = [key for key, fact in inquiry.answers.items() if not fact.is_found]
    gone = [
        key
        for key in denied
        if key in known and known[key].is_found and now_ms - known[key].answered_at_ms < held_ms
    ]
    if len(gone) < GONE_AT_ONCE_MIN or len(denied) < len(inquiry.answers):
        return
    for key in denied:
        del inquiry.answers[key]
    inquiry.reasons["everything is gone at once: not believed"] += len(denied)


def _newest(facts: Iterable[tuple[Key, Fact]]) -> dict[Key, Fact]:
    """Return the newest fact about each thing."""
    newest: dict[Key, Fact] = {}
    for key, fact in facts:
        if key not in newest or newest[key].answered_at_ms < fact.answered_at_ms:
            newest[key] = fact
    return newest


def _tally(inquiry: Inquiry[Key, Fact], *, reused: int) -> Tally:
    return Tally(
        asked=len(inquiry.questions),
        answered=len(inquiry.answers),
        unanswered=len(inquiry.questions) - len(inquiry.answers),
        reused=reused,
        reasons=dict(inquiry.reasons),
    )
