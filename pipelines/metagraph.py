"""The metagraph: from a chain source to frames, and the snapshots that keep it for ever.

A source that cannot be read, or that says something impossible, raises `MetagraphError`: a failure
is never taken for an empty subnet. Which miner is valid is the source's word here, except for the
blacklist. Scores and weights are not made here.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal
from pathlib import Path
from typing import NoReturn, Protocol

import polars as pl

from pipelines.frames import conform, schema
from pipelines.settings import RAO_PER_TAO, Parameters, PipelineSettings
from warehouse.files import fsync_path, write_durably
from warehouse.hotkeys import ZERO_HOTKEY, is_hotkey
from warehouse.tables import MINERS, VALIDATORS

INT64_MAX = 2**63 - 1
UID_MAX = 2**16 - 1
FILE_BYTES_MAX = 64 * 2**20
VALIDATOR_SCHEMA = pl.Schema({"hotkey": pl.String, "uid": pl.Int64, "stake_rao": pl.Int64})
MINER_TEXTS = ("model_name", "model_revision", "model_hash", "chute_id", "chute_slug")


class MetagraphError(Exception):
    """A sentence that says what is wrong with which source, and where in it."""


@dataclass(frozen=True)
class Metagraph:
    """All neurons of a subnet at one block, each frame by uid.

    `validators` has hotkey, uid and stake_rao (never negative); `miners` the columns of `MINERS`
    with the source's verdict on validity. Every hotkey has one uid, every uid one hotkey, and the
    doubled sum of all stakes fits 64 bits.
    """

    netuid: int
    block: int
    validators: pl.DataFrame
    miners: pl.DataFrame


class ChainSource(Protocol):
    """Whatever tells the metagraph."""

    def sync(self) -> Metagraph:
        """Read the metagraph now; raise `MetagraphError` when that fails in any way."""


@dataclass(frozen=True)
class MetagraphFile:
    """A metagraph file as chain source; read anew at every sync."""

    location: str
    netuid: int

    def sync(self) -> Metagraph:
        """Read the file."""
        if not self.location:
            raise MetagraphError("CHAIN_SOURCE is not set: give the path of a metagraph file")
        return read_metagraph_file(Path(self.location), self.netuid)


def chain_source(settings: PipelineSettings) -> ChainSource:
    """Return the source that the settings name; nothing is read yet."""
    return MetagraphFile(settings.chain_source, settings.netuid)


def validators(metagraph: Metagraph, parameters: Parameters) -> pl.DataFrame:
    """Return the `VALIDATORS` table: who may submit, and whose votes weigh."""
    is_registered = pl.col("stake_rao") >= parameters.min_validator_stake_rao
    return conform(metagraph.validators.with_columns(is_registered=is_registered), VALIDATORS)


def miners(metagraph: Metagraph, blacklisted: Collection[str]) -> pl.DataFrame:
    """Return the `MINERS` table; the blacklist comes before every other reason."""
    is_blacklisted = pl.col("hotkey").is_in(list(blacklisted))
    judged = metagraph.miners.with_columns(
        is_valid=pl.col("is_valid") & ~is_blacklisted,
        invalid_reason=pl.when(is_blacklisted)
        .then(pl.lit("blacklisted"))
        .otherwise("invalid_reason"),
    )
    return conform(judged, MINERS)


def read_metagraph_file(path: Path, netuid: int) -> Metagraph:
    """Read a metagraph file, or raise `MetagraphError` naming the file and the field.

    A stake is TAO with any number of decimals; below one rao it is cut off, negative is 0. Entries
    of the all-zero key, the chain's default for an empty uid, are dropped.
    """
    try:
        return _parsed(_object(_json(path), "the document"), netuid)
    except MetagraphError as error:
        raise MetagraphError(f"metagraph file {path}: {error}") from error


def metagraph_of(
    netuid: int,
    block: int,
    validators: Sequence[Mapping[str, object]],
    miners: Sequence[Mapping[str, object]],
) -> Metagraph:
    """Build a metagraph from the rows of any source and hold it to what `Metagraph` promises."""
    if not validators:
        raise MetagraphError("there are no validators: a subnet without any cannot be right")
    _refuse_conflicts(validators, miners)
    frame = pl.DataFrame(validators, schema=VALIDATOR_SCHEMA, orient="row")
    # Summed as Python integers: the rules sum and double stakes in 64 bits.
    if 2 * sum(frame["stake_rao"].to_list()) > INT64_MAX:
        raise MetagraphError("the stakes sum to 2**62 rao or more: they cannot be right")
    return Metagraph(
        netuid,
        block,
        frame.sort("uid"),
        pl.DataFrame(miners, schema=schema(MINERS), orient="row").sort("uid"),
    )


def write_snapshot(metagraph: Metagraph, directory: Path) -> Path:
    """Keep a metagraph in `directory` and return its file, named by block and content.

    On return the file survives a power cut. The same content again gives the same file and
    rewrites nothing. When it raises, the file is there in full or not at all.
    """
    # JSON, not Parquet: its bytes are the same whatever version wrote them, anything can read it
    # in years to come, and a damaged file is told before it is parsed (Polars dies of some).
    content = json.dumps(
        {
            "netuid": metagraph.netuid,
            "block": metagraph.block,
            "validators": metagraph.validators.to_dicts(),
            "miners": metagraph.miners.to_dicts(),
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    final = directory / f"{metagraph.block}-{_digest(content)}.json.gz"
    if final.exists():
        # An earlier call may have died after the rename and before its name was durable.
        fsync_path(directory)
        return final
    if not directory.exists():
        directory.mkdir(parents=True)
        fsync_path(directory.parent)
    write_durably(final, gzip.compress(content, mtime=0))
    return final


def read_snapshot(path: Path) -> Metagraph:
    """Read what `write_snapshot` wrote; raise `MetagraphError` when it is not that any more."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise MetagraphError(f"chain snapshot {path}: {error}") from error
    if _digest(content) != path.name.removesuffix(".json.gz").rpartition("-")[2]:
        raise MetagraphError(f"chain snapshot {path}: the content is not what its name says")
    document = json.loads(content)
    return Metagraph(
        document["netuid"],
        document["block"],
        pl.DataFrame(document["validators"], schema=VALIDATOR_SCHEMA, orient="row"),
        pl.DataFrame(document["miners"], schema=schema(MINERS), orient="row"),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


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


def _refuse_conflicts(
    validators: Sequence[Mapping[str, object]], miners: Sequence[Mapping[str, object]]
) -> None:
    """Refuse a list that names a neuron twice, and lists that disagree about a uid."""
    hotkey_by_uid: dict[object, object] = {}
    uid_by_hotkey: dict[object, object] = {}
    for name, neurons in (("validators", validators), ("miners", miners)):
        listed = set()
        for neuron in neurons:
            uid, hotkey = neuron["uid"], neuron["hotkey"]
            if hotkey in listed:
                raise MetagraphError(f"{name}: hotkey {hotkey} is listed twice")
            listed.add(hotkey)
            if hotkey_by_uid.setdefault(uid, hotkey) != hotkey:
                raise MetagraphError(f"{name}: uid {uid} is given to two hotkeys")
            if uid_by_hotkey.setdefault(hotkey, uid) != uid:
                raise MetagraphError(f"{name}: hotkey {hotkey} is given two uids")


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
