"""What a miner committed to on chain: from the stored bytes to a model, its revision and a chute.

Anybody may commit anything, so every byte here is hostile: whatever cannot be read becomes the
reason why, never an exception. Whether the model and the chute exist is not asked here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pipelines.neurons import Revealed

COMMITS_MAX = 2
DEPTH_MAX = 64
FIELDS = ("model_name", "model_revision", "chute_id")
NAME_START = "leoma"


@dataclass(frozen=True)
class Commitment:
    """A commitment that can be checked: texts that are not empty, under a name that is allowed."""

    model_name: str
    model_revision: str
    chute_id: str


def commitment_text(content: bytes) -> str | None:
    """Return the text behind the SCALE compact length, or None when the bytes are not one.

    The length must be the text's, to the byte, and the text UTF-8.
    """
    prefix_bytes = _compact_bytes(content)
    if prefix_bytes is None or len(content) < prefix_bytes:
        return None
    # The two lowest bits say how the length is written; in the longest form it has bytes of its
    # own after the first.
    if content[0] & 3 == 3:
        length = int.from_bytes(content[1:prefix_bytes], "little")
    else:
        length = int.from_bytes(content[:prefix_bytes], "little") >> 2
    body = content[prefix_bytes:]
    if len(body) != length:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def read_commitment(hotkey: str, revealed: Sequence[Revealed]) -> Commitment | str:
    """Return the newest commitment, which is the last one, or the `invalid_reason`.

    The first rule that fails is the reason: too many, malformed, a field missing, a name that is
    not the miner's own. Who has none at all is no miner; here it counts as malformed.
    """
    if len(revealed) > COMMITS_MAX:
        return f"max_commits_exceeded_{COMMITS_MAX}"
    document = _document(revealed)
    if document is None:
        return "malformed_commitment"
    fields = _texts(document)
    for name in FIELDS:
        if fields[name] is None:
            return f"missing_{name}"
    commitment = Commitment(**{name: text for name, text in fields.items() if text is not None})
    # The user before the slash is anybody's choice; the repository carries the miner's name.
    repository = commitment.model_name.rsplit("/", 1)[-1].lower()
    if not repository.startswith(NAME_START):
        return "model_name_must_start_with_leoma"
    if not repository.endswith(hotkey.lower()):
        return "model_name_must_end_with_hotkey"
    return commitment


def fields_of(revealed: Sequence[Revealed]) -> dict[str, str | None]:
    """Return model_name, model_revision and chute_id of the newest commitment, to be shown.

    What cannot be read is None; a commitment that is invalid may have all three.
    """
    return _texts(_document(revealed) or {})


def committed_since(revealed: Sequence[Revealed]) -> int:
    """Return the block of the first commitment to the model and revision of the newest one.

    A miner that commits again, to move its chute, has not committed to its model any later.
    """
    newest = fields_of(revealed)
    return min(
        one.block
        for number, one in enumerate(revealed, 1)
        if number == len(revealed)
        or all(
            newest[name] is not None and fields_of(revealed[:number])[name] == newest[name]
            for name in ("model_name", "model_revision")
        )
    )


def _compact_bytes(content: bytes) -> int | None:
    """Return how many bytes the compact length takes; None when there are no bytes."""
    if not content:
        return None
    mode = content[0] & 3
    return (content[0] >> 2) + 5 if mode == 3 else 1 << mode


def _document(revealed: Sequence[Revealed]) -> dict[str, object] | None:
    """Return the newest commitment's JSON object."""
    text = commitment_text(revealed[-1].content) if revealed else None
    # Python's parser gives up at a depth that depends on who calls it, which would make the verdict
    # depend on that too. Nothing that is meant to be read comes near this depth.
    if text is None or _depth(text) > DEPTH_MAX:
        return None
    try:
        # NaN is not JSON. Numbers are never looked at, and Python refuses to convert long ones.
        document = json.loads(text, parse_constant=_refuse, parse_int=_ignore, parse_float=_ignore)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _ignore(_number: str) -> int:
    return 0


def _depth(text: str) -> int:
    """Return how deep brackets nest outside strings: an upper bound for a text that is JSON."""
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return 0
    depth = deepest = 0
    is_string = is_escaped = False
    for char in text:
        if is_escaped:
            is_escaped = False
        elif is_string:
            is_escaped = char == "\\"
            is_string = char != '"'
        elif char == '"':
            is_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _texts(document: dict[str, object]) -> dict[str, str | None]:
    return {name: _text(document.get(name)) for name in FIELDS}


def _text(value: object) -> str | None:
    """Return a text that is not empty; a number or half of a surrogate pair is no text."""
    if not isinstance(value, str) or not value:
        return None
    # JSON can name half of a surrogate pair, which no table can store.
    return None if any("\ud800" <= char <= "\udfff" for char in value) else value
