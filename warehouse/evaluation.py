"""The evaluation payload: what a validator signs about its own judgements, beside the request.

The request's signature proves who sent it; this one goes out with the published results, so that
anybody can check them without having seen the request. The uploader and the client build the same
entries from here. Nothing is stored or sent from here.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from warehouse.hotkeys import parse_signature, verify
from warehouse.records import Evaluation, Sample

DELETE = "\x7f"


def evaluation_entry(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return one sample's entry; fields that `sample` lacks are null.

    `sample` has the names of a submission: `miner_hotkey`, `passed`, `confidence` and so on.
    """
    is_passed = bool(sample["passed"])
    return {
        "hotkey": sample["miner_hotkey"],
        "passed": is_passed,
        "status": "passed" if is_passed else "failed",
        "confidence": sample.get("confidence"),
        "reasoning": sample.get("reasoning"),
        "latency_ms": sample.get("latency_ms"),
        "original_artifacts": sample.get("original_artifacts"),
        "generated_artifacts": sample.get("generated_artifacts"),
        "presentation_order": sample.get("presentation_order"),
    }


def evaluation_entries(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Return the entries of stored samples, in their order."""
    return [evaluation_entry(sample._asdict()) for sample in samples]


def evaluation_payload(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the 32 bytes that are signed: the SHA-256 of the entries as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(list(entries), sort_keys=True).encode()).digest()


def payload_of(samples: Iterable[Sample]) -> bytes:
    """Return `evaluation_payload` of samples as stored, in a third of the time."""
    # Texts are nearly all of it, and the standard library escapes them character by character.
    entries = [
        f'{{"confidence": {_number(one.confidence)}, '
        f'"generated_artifacts": {_text(one.generated_artifacts)}, '
        f'"hotkey": {_text(one.miner_hotkey)}, "latency_ms": {_number(one.latency_ms)}, '
        f'"original_artifacts": {_text(one.original_artifacts)}, '
        f'"passed": {"true" if one.passed else "false"}, '
        f'"presentation_order": {_text(one.presentation_order)}, '
        f'"reasoning": {_text(one.reasoning)}, '
        f'"status": "{"passed" if one.passed else "failed"}"}}'
        for one in samples
    ]
    return hashlib.sha256(f"[{', '.join(entries)}]".encode()).digest()


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


def _text(value: str | None) -> str:
    if value is None:
        return "null"
    # Of ASCII both libraries make the same, but for the one character that only json escapes.
    if value.isascii() and DELETE not in value:
        return orjson.dumps(value).decode()
    return json.dumps(value)


def evaluation(hotkey: str, signature: str, samples: Iterable[Sample]) -> Evaluation:
    """Return the signature as given, and whether `hotkey` signed these samples with it.

    A text that is no signature is kept like one that does not verify: it is what was said.
    """
    try:
        signed = parse_signature(signature)
    except ValueError:
        return Evaluation(signature, is_verified=False)
    return Evaluation(signature, is_verified=verify(hotkey, signed, payload_of(samples)))
