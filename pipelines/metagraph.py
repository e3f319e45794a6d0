"""The metagraph: all neurons of a subnet at one block, and the tables that follow from it.

Something impossible raises `MetagraphError`: a failure is never taken for an empty subnet. Where a
metagraph comes from, and how it is kept, is not said here.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipelines.commitments import committed_since
from pipelines.frames import conform, schema
from pipelines.neurons import revealed_in
from pipelines.settings import Parameters
from pipelines.validation import duplicates
from warehouse.tables import MINERS, NEURONS, VALIDATORS

INT64_MAX = 2**63 - 1
VALIDATOR_COLUMNS = ("hotkey", "uid", "stake_rao")


class MetagraphError(Exception):
    """A sentence that says what is wrong with which source, and where in it."""


@dataclass(frozen=True)
class Metagraph:
    """All neurons of a subnet at one block: a frame in the columns of `NEURONS`, by uid.

    Every hotkey has one uid, every uid one hotkey, there is a validator, and the doubled sum of all
    stakes fits 64 bits.
    """

    neurons: pl.DataFrame

    @property
    def netuid(self) -> int:
        """The subnet."""
        return int(self.neurons.item(0, "netuid"))

    @property
    def block(self) -> int:
        """The block."""
        return int(self.neurons.item(0, "block"))

    @property
    def genesis_hash(self) -> str | None:
        """Which chain it is from; None: from a file."""
        found: str | None = self.neurons.item(0, "genesis_hash")
        return found

    @property
    def validators(self) -> pl.DataFrame:
        """Hotkey, uid and stake_rao (never negative) of all validators, by uid."""
        return self.neurons.filter("is_validator").select(VALIDATOR_COLUMNS)

    @property
    def miners(self) -> pl.DataFrame:
        """The columns of `MINERS` with the verdict on validity before the blacklist, by uid."""
        listed = self.neurons.filter("is_miner").with_columns(block="commit_block")
        return listed.select(MINERS.names)


def validators(metagraph: Metagraph, parameters: Parameters) -> pl.DataFrame:
    """Return the `VALIDATORS` table: who may submit, and whose votes weigh."""
    is_registered = pl.col("stake_rao") >= parameters.min_validator_stake_rao
    return conform(metagraph.validators.with_columns(is_registered=is_registered), VALIDATORS)


def miners(metagraph: Metagraph, blacklisted: Collection[str]) -> pl.DataFrame:
    """Return the `MINERS` table: the blacklist comes before every other reason, duplicates last.

    A copy of a model loses to the earlier commitment of it, also while that one is invalid for
    another reason: else a copy would win whenever the original's chute is cold. Earlier is who
    first committed to this revision of its model, however often it did so since. Who is blacklisted
    stands in nobody's way. Only miners that the chain tells of are compared; a metagraph file has
    judged its own.
    """
    competing = metagraph.neurons.filter(
        pl.col("is_miner")
        & pl.col("revealed").is_not_null()
        & pl.col("model_hash").is_not_null()
        & ~pl.col("hotkey").is_in(list(blacklisted))
    )
    earliest = duplicates(
        (hotkey, uid, committed_since(revealed_in(revealed)), digest)
        for hotkey, uid, revealed, digest in competing.select(
            "hotkey", "uid", "revealed", "model_hash"
        ).rows()
    )
    copies = pl.DataFrame(
        list(earliest.items()), {"hotkey": pl.String, "earliest_uid": pl.Int64}, orient="row"
    )
    is_blacklisted = pl.col("hotkey").is_in(list(blacklisted))
    is_copy = pl.col("is_valid") & pl.col("earliest_uid").is_not_null()
    copied = pl.format("duplicate_model:earliest_uid={}", "earliest_uid")
    judged = metagraph.miners.join(copies, on="hotkey", how="left").with_columns(
        is_valid=pl.col("is_valid") & ~is_blacklisted & ~is_copy,
        invalid_reason=pl.when(is_blacklisted)
        .then(pl.lit("blacklisted"))
        .when(is_copy)
        .then(copied)
        .otherwise("invalid_reason"),
    )
    return conform(judged, MINERS)


def metagraph_of(
    netuid: int,
    block: int,
    validators: Sequence[Mapping[str, object]],
    miners: Sequence[Mapping[str, object]],
) -> Metagraph:
    """Build a metagraph from rows of validators and of judged miners, each by hotkey.

    Validators have hotkey, uid and stake_rao; miners the columns of `MINERS`. Raises
    `MetagraphError` where they are not what `Metagraph` promises.
    """
    _refuse_conflicts(validators, miners)
    rows: dict[object, dict[str, object]] = {}
    for validator in validators:
        rows[validator["hotkey"]] = {**validator, "is_validator": True, "is_miner": False}
    for miner in miners:
        known = rows.get(miner["hotkey"], {"is_validator": False})
        rows[miner["hotkey"]] = {
            **known, **miner, "is_miner": True, "commit_block": miner["block"]
        }  # fmt: skip
    place = {"netuid": netuid, "block": block}
    return metagraph_of_neurons([{**row, **place} for row in rows.values()])


def metagraph_of_neurons(rows: Sequence[Mapping[str, object]]) -> Metagraph:
    """Build a metagraph from rows of `NEURONS`; a nullable column that is left out is null."""
    neurons = pl.DataFrame(rows, schema=schema(NEURONS), orient="row").sort("uid")
    stakes = neurons.filter("is_validator")["stake_rao"].to_list()
    if not stakes:
        raise MetagraphError("there are no validators: a subnet without any cannot be right")
    # Summed as Python integers: the rules sum and double stakes in 64 bits.
    if 2 * sum(stakes) > INT64_MAX:
        raise MetagraphError("the stakes sum to 2**62 rao or more: they cannot be right")
    return Metagraph(neurons)


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
