"""When a miner is valid: pure rules over its commitment and what the services said last.

A fact is the last definite answer of a service. That a service does not answer is no fact and no
evidence against a miner; who asks, and keeps facts, is evidence.py. The blacklist and duplicates
among miners are judged where all miners are known; `duplicates` is the rule for the latter.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.commitments import (
    Commitment,
    fields_of,
    read_commitment,
)
from pipelines.neurons import Revealed

NOT_SAID = "has not said so far"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

# In the order in which they are judged. A rule is named by its `invalid_reason`, without what
# follows the equals sign.
RULES = {
    "max_commits_exceeded_2": "it has revealed at most 2 commitments",
    "malformed_commitment": "its newest commitment is a JSON object",
    "missing_model_name": "the commitment names a model",
    "missing_model_revision": "the commitment names the model's revision",
    "missing_chute_id": "the commitment names a chute",
    "model_name_must_start_with_leoma": "the repository's name starts with leoma",
    "model_name_must_end_with_hotkey": "the repository's name ends with the miner's hotkey",
    "chute_fetch_failed": "Chutes has the chute",
    "chute_not_running": "the chute is running",
    "revision_mismatch:chute": "the chute runs the committed revision",
    "hf_model_fetch_failed": "Hugging Face has the model's revision, with weight files",
    "revision_mismatch:hf": "the committed revision is the commit itself, not a name for one",
}


@dataclass(frozen=True)
class ChuteFact:
    """What Chutes said about a chute. `is_found` False: there is none, and the rest is None.

    `slug` and `revision` are None when the chute has none, or states none.
    """

    chute_id: str
    is_found: bool
    slug: str | None
    is_hot: bool | None
    revision: str | None
    answered_at_ms: int


@dataclass(frozen=True)
class ModelFact:
    """What Hugging Face said about a revision. `is_found` False: not there, or not for everybody.

    `sha` is the commit that the revision names; `model_hash` is None when it has no weight files.
    """

    model_name: str
    model_revision: str
    is_found: bool
    sha: str | None
    model_hash: str | None
    answered_at_ms: int


@dataclass(frozen=True)
class Verdict:
    """Whether a miner is valid by its own commitment, why not, and what is known of its model."""

    is_valid: bool
    invalid_reason: str | None
    model_name: str | None
    model_revision: str | None
    model_hash: str | None
    chute_id: str | None
    chute_slug: str | None


@dataclass(frozen=True)
class RuleOutcome:
    """One rule: its `invalid_reason` without details, passed or not, and a sentence about it.

    `is_passed` is None when an earlier rule failed, so that this one was not reached.
    """

    rule: str
    is_passed: bool | None
    text: str


def verdict(
    hotkey: str,
    revealed: Sequence[Revealed],
    chute: ChuteFact | None,
    model: ModelFact | None,
) -> Verdict:
    """Judge one miner by every rule of `RULES`, in their order; the first that fails is the reason.

    `revealed` is not empty. A fact about another chute or revision than the committed one counts as
    never given, and a needed fact that was never given keeps a miner from being valid. All that is
    known is told of an invalid miner as well, but no hash of what a name for a commit means today:
    its owner may let it mean anybody's model, and would be the first to have committed to it.
    """
    commitment = read_commitment(hotkey, revealed)
    failure = _failure(commitment, chute, model)
    fields = fields_of(revealed)
    is_chute_its_own = chute is not None and chute.chute_id == fields["chute_id"]
    is_model_its_own = (
        model is not None
        and _key(model) == (fields["model_name"], fields["model_revision"])
        and model.sha == model.model_revision
    )
    return Verdict(
        is_valid=failure is None,
        invalid_reason=None if failure is None else failure[0],
        model_name=fields["model_name"],
        model_revision=fields["model_revision"],
        model_hash=model.model_hash if model is not None and is_model_its_own else None,
        chute_id=fields["chute_id"],
        chute_slug=chute.slug if chute is not None and is_chute_its_own else None,
    )


def is_undecided(
    hotkey: str,
    revealed: Sequence[Revealed],
    chute: ChuteFact | None,
    model: ModelFact | None,
) -> bool:
    """Tell whether nothing but a service's silence so far keeps a miner from being valid."""
    commitment = read_commitment(hotkey, revealed)
    if isinstance(commitment, str):
        return False
    failures = (_chute_failure(commitment, chute), _model_failure(commitment, model))
    definite = [one for one in failures if one is not None and not one[1].endswith(NOT_SAID)]
    return not definite and any(failures)


def rules(
    hotkey: str,
    revealed: Sequence[Revealed],
    chute: ChuteFact | None,
    model: ModelFact | None,
) -> list[RuleOutcome]:
    """Return the outcome of every rule, in order, by the same steps as `verdict`."""
    failure = _failure(read_commitment(hotkey, revealed), chute, model)
    if failure is None:
        return [RuleOutcome(rule, is_passed=True, text=text) for rule, text in RULES.items()]
    reason, found = failure
    failed_rule = reason.partition("=")[0]
    names = list(RULES)
    place = names.index(failed_rule)
    return [
        *(RuleOutcome(rule, is_passed=True, text=RULES[rule]) for rule in names[:place]),
        RuleOutcome(failed_rule, is_passed=False, text=f"{RULES[failed_rule]}: {found}"),
        *(RuleOutcome(rule, is_passed=None, text=RULES[rule]) for rule in names[place + 1 :]),
    ]


def is_weight_file(name: str) -> bool:
    """Tell whether a file of a repository holds weights, by its suffix."""
    return name.lower().endswith(WEIGHT_SUFFIXES)


def model_hash(weight_sha256s: Iterable[str]) -> str | None:
    """Return the sha256 of the weight files' sha256s (hex), sorted and joined; None without any."""
    digests = sorted(weight_sha256s)
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


def duplicates(miners: Iterable[tuple[str, int, int, str]]) -> dict[str, int]:
    """Return the earliest uid with the same model, for each hotkey that is not that earliest one.

    `miners` are (hotkey, uid, block of its commitment, model hash). Earlier is the lower block,
    then the lower uid; the order in which they are given does not matter.
    """
    earliest: dict[str, int] = {}
    later: dict[str, int] = {}
    for hotkey, uid, _block, digest in sorted(miners, key=lambda miner: (miner[2], miner[1])):
        if digest in earliest:
            later[hotkey] = earliest[digest]
        else:
            earliest[digest] = uid
    return later


def _failure(
    commitment: Commitment | str, chute: ChuteFact | None, model: ModelFact | None
) -> tuple[str, str] | None:
    """Return the reason of the first rule that fails and what was found instead."""
    if isinstance(commitment, str):
        return commitment, "this is not so"
    return _chute_failure(commitment, chute) or _model_failure(commitment, model)


def _chute_failure(commitment: Commitment, chute: ChuteFact | None) -> tuple[str, str] | None:
    if chute is None or chute.chute_id != commitment.chute_id:
        return "chute_fetch_failed", f"Chutes {NOT_SAID}"
    if not chute.is_found:
        return "chute_fetch_failed", "Chutes says that there is none"
    if not chute.is_hot:
        return "chute_not_running", "it is cold"
    # A chute that states no revision contradicts nothing: only another one is evidence.
    if chute.revision and chute.revision != commitment.model_revision:
        return f"revision_mismatch:chute={chute.revision}", f"it runs {chute.revision}"
    return None


def _model_failure(commitment: Commitment, model: ModelFact | None) -> tuple[str, str] | None:
    if model is None or _key(model) != (commitment.model_name, commitment.model_revision):
        return "hf_model_fetch_failed", f"Hugging Face {NOT_SAID}"
    if not model.is_found:
        return "hf_model_fetch_failed", "Hugging Face says that there is none for everybody to see"
    if model.model_hash is None:
        return "hf_model_fetch_failed", "it has no weight files"
    if model.sha != commitment.model_revision:
        return f"revision_mismatch:hf={model.sha}", f"the commit is {model.sha}"
    return None


def _key(model: ModelFact) -> tuple[str, str]:
    return model.model_name, model.model_revision
