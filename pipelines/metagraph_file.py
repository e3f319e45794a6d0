"""Metagraph files: frozen metagraphs for demos, tests, replays and proofs.

The file gives its own verdict on every miner. Whatever JSON leaves open is refused.
"""

import json
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal
from pathlib import Path
from typing import NoReturn

from pipelines.metagraph import INT64_MAX, Metagraph, MetagraphError, metagraph_of
from pipelines.settings import RAO_PER_TAO
from warehouse.hotkeys import ZERO_HOTKEY, is_hotkey

UID_MAX = 2**16 - 1
FILE_BYTES_MAX = 64 * 2**20
MINER_TEXTS = ("model_name", "model_revision", "model_hash", "chute_id", "chute_slug")


@dataclass(frozen=True)
class MetagraphFile:
    """A metagraph file as chain source; read anew at every sync."""

    location: str
    netuid: int

    def sync(self) -> Metagraph:
        """Read the file."""
        if not self.location:
            raise MetagraphError("CHAIN_SOURCE is not set: give a node's address or a file's path")
        return read_metagraph_file(Path(self.location), self.netuid)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def read_metagraph_file(path: Path, netuid: int) -> Metagraph:
    """Read a metagraph file, or raise `MetagraphError` naming the file and the field.

    A stake is TAO with any number of decimals; below one rao it is cut off, negative is 0. Entries
    of the all-zero key, the chain's default for an empty uid, are dropped.
    """
    try:
        return _parsed(_object(_json(path), "the document"), netuid)
    except MetagraphError as error:
        raise MetagraphError(f"metagraph file {path}: {error}") from error


def _parsed(document: dict[str, object], netuid: int) -> Metagraph:
    netuid_found = _int(document, "netuid", "netuid", UID_MAX)
    if netuid_found != netuid:
        raise MetagraphError(f"netuid is {netuid_found}, but NETUID is {netuid}")
    return metagraph_of(
        netuid,
        _int(document, "block", "block", INT64_MAX),
        [_validator(*entry) for entry in _entries(document, "validators")],
        [_miner(*entry) for entry in _entries(document, "miners")],
    )


def _json(path: Path) -> object:
    """Parse a file as JSON with exact numbers and without anything that JSON leaves open."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise MetagraphError(f"it has more than {FILE_BYTES_MAX} bytes")
        return json.loads(
            path.read_bytes().decode("utf-8"),
            parse_float=Decimal,
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repeats,
        )
    except OSError as error:
        raise MetagraphError(f"it cannot be read: {error.strerror}") from error
    # Decimal raises ArithmeticError for an exponent beyond its range.
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise MetagraphError(f"it is not JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise MetagraphError(f"{name} is not a number")


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MetagraphError(f"a field is given twice in one object: {[name for name, _ in pairs]}")
    return fields


def _entries(document: dict[str, object], name: str) -> list[tuple[dict[str, object], str]]:
    """Return the neurons of a list, each with its place in the file, without the zero keys."""
    entries = _field(document, name, name)
    if not isinstance(entries, list):
        raise MetagraphError(f"{name} is not a list")
    placed = [
        (_object(entry, f"{name}[{index}]"), f"{name}[{index}]")
        for index, entry in enumerate(entries)
    ]
    return [entry for entry in placed if entry[0].get("hotkey") != ZERO_HOTKEY]


def _validator(entry: dict[str, object], place: str) -> dict[str, object]:
    return {
        "hotkey": _hotkey(entry, place),
        "uid": _int(entry, "uid", f"{place}.uid", UID_MAX),
        "stake_rao": _rao(_field(entry, "stake", f"{place}.stake"), f"{place}.stake"),
    }


def _miner(entry: dict[str, object], place: str) -> dict[str, object]:
    is_valid = _field(entry, "is_valid", f"{place}.is_valid")
    if not isinstance(is_valid, bool):
        raise MetagraphError(f"{place}.is_valid is neither true nor false")
    # A commitment's block decides who is earlier: unknown must be said (null), not left out.
    block = _field(entry, "block", f"{place}.block")
    return {
        "uid": _int(entry, "uid", f"{place}.uid", UID_MAX),
        "hotkey": _hotkey(entry, place),
        "block": None if block is None else _int(entry, "block", f"{place}.block", INT64_MAX),
        "is_valid": is_valid,
        "last_validated_at_ms": None,
        **{name: _text(entry, name, place) for name in ("invalid_reason", *MINER_TEXTS)},
    }


def _object(value: object, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise MetagraphError(f"{place} is not an object")
    return value


def _field(fields: dict[str, object], name: str, place: str) -> object:
    if name not in fields:
        raise MetagraphError(f"{place} is missing")
    return fields[name]


def _int(fields: dict[str, object], name: str, place: str, int_max: int) -> int:
    value = _field(fields, name, place)
    # bool is a subclass of int: `true` would be uid 1.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= int_max:
        raise MetagraphError(f"{place} is not an integer from 0 to {int_max}")
    return value


def _hotkey(entry: dict[str, object], place: str) -> str:
    hotkey = _field(entry, "hotkey", f"{place}.hotkey")
    if not isinstance(hotkey, str) or not is_hotkey(hotkey):
        raise MetagraphError(f"{place}.hotkey is not an SS58 address of prefix 42")
    return hotkey


def _text(entry: dict[str, object], name: str, place: str) -> str | None:
    """Return a text that may be null or left out."""
    value = entry.get(name)
    if value is None:
        return None
    # JSON can name half of a surrogate pair, which no table can store.
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise MetagraphError(f"{place}.{name} is not a text")
    return value


def _rao(stake: object, place: str) -> int:
    """Return a stake in whole rao, exact: below one rao it is cut off, negative is 0."""
    if isinstance(stake, bool) or not isinstance(stake, int | Decimal):
        raise MetagraphError(f"{place} is not a number")
    if stake <= 0:
        return 0
    # Compared before it is scaled: 1e999999 would fill the memory as an integer.
    if stake > INT64_MAX // RAO_PER_TAO:
        raise MetagraphError(f"{place} is more TAO than there can be")
    if isinstance(stake, int):
        return stake * RAO_PER_TAO
    # The default context rounds to 28 digits, and up.
    context = Context(prec=40, rounding=ROUND_DOWN)
    return int(stake.quantize(Decimal("1e-9"), context=context).scaleb(9, context))
