"""The assets of a sync: the chain is read, the miners are judged, a snapshot is kept.

    chain_state ─▶ miner_validation ─▶ chain_snapshot

Tables are made from the newest snapshot by another job (assets.py), so that nothing here holds up
a vote on its way to the weights.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl

from pipelines.chain_snapshots import Synced
from pipelines.chutes import Chutes
from pipelines.evidence import Evidence, Tally, gather
from pipelines.huggingface import HuggingFace
from pipelines.judging import facts_in, judged
from pipelines.metagraph import Metagraph, MetagraphError
from pipelines.neurons import ChainState
from pipelines.resources import Stores, asset
from pipelines.settings import PipelineSettings
from pipelines.validation import is_undecided

StoresParam = dg.ResourceParam[Stores]


@dataclass(frozen=True)
class ChainRead:
    """What the source said, and when it was asked (UTC ms). A metagraph file has judged already."""

    found: ChainState | Metagraph
    asked_at_ms: int


@asset(group_name="sync", description="Neurons and revealed commitments at one block, read now.")
def chain_state(stores: StoresParam) -> dg.MaterializeResult:
    # Before the question, not after the answer: a snapshot is never younger than it says.
    asked_at_ms = time.time_ns() // 1_000_000
    found = stores.chain.sync()
    size = found.neurons.height if isinstance(found, Metagraph) else len(found.neurons)
    return dg.MaterializeResult(
        value=ChainRead(found, asked_at_ms),
        metadata={"block": found.block, "netuid": found.netuid, "neurons": size},
    )


@asset(
    group_name="sync",
    description="The verdict on every miner: commitment, Chutes, Hugging Face. A service that does "
    "not answer changes no verdict. (Blacklist and duplicates follow in `miners`.)",
)
def miner_validation(
    context: dg.AssetExecutionContext, stores: StoresParam, chain_state: ChainRead
) -> dg.MaterializeResult:
    found = chain_state.found
    if isinstance(found, Metagraph):
        return dg.MaterializeResult(value=found, metadata=_verdicts(found))
    last = _last(context, stores, found)
    evidence = gathered(stores.settings, found, last)
    metagraph = judged(found, evidence.facts, last, time.time_ns() // 1_000_000)
    _refuse_silence(found, evidence, metagraph)
    return dg.MaterializeResult(
        value=metagraph,
        metadata={
            **_verdicts(metagraph),
            **_tally("chutes", evidence.chutes),
            **_tally("hugging_face", evidence.hugging_face),
        },
    )


@asset(group_name="sync", description="What was read and judged, kept as the newest snapshot.")
def chain_snapshot(
    stores: StoresParam, chain_state: ChainRead, miner_validation: Metagraph
) -> dg.MaterializeResult:
    synced = stores.snapshots.keep(
        miner_validation, chain_state.asked_at_ms, stores.settings.chain_genesis
    )
    return dg.MaterializeResult(value=None, metadata=about(stores, synced))


def about(stores: Stores, synced: Synced) -> dict[str, Any]:
    """Return what an operator wants to see of a snapshot."""
    return {
        "block": synced.metagraph.block,
        "netuid": synced.metagraph.netuid,
        "validators": synced.metagraph.validators.height,
        "miners": synced.metagraph.miners.height,
        "snapshot": dg.MetadataValue.path(stores.snapshots.directory / synced.name),
    }


def _last(context: dg.AssetExecutionContext, stores: Stores, found: ChainState) -> Metagraph | None:
    """Return the last metagraph of this subnet, whose facts stand where a service is silent.

    Of a snapshot that cannot be read the one before takes the place: its facts are older, and any
    is better than none.
    """
    try:
        synced = stores.snapshots.newest()
        last = synced.metagraph if synced else None
    except MetagraphError as error:
        context.log.warning("The last snapshot is lost, an older one's facts are used: %s", error)
        last = stores.snapshots.newest_readable()
    return last if last is not None and last.netuid == found.netuid else None


def _refuse_silence(state: ChainState, evidence: Evidence, metagraph: Metagraph) -> None:
    """Raise `MetagraphError` when nobody is valid because a service has never said anything.

    That is not knowing, and would be published as a burn.
    """
    if metagraph.miners["is_valid"].any():
        return
    facts = evidence.facts
    undecided = [
        neuron.hotkey
        for neuron in state.neurons
        if neuron.revealed
        and is_undecided(
            neuron.hotkey, neuron.revealed, facts[neuron.hotkey].chute, facts[neuron.hotkey].model
        )
    ]
    if undecided:
        silent = [
            f"{service} left {tally.unanswered} of {tally.asked} questions unanswered"
            for service, tally in (
                ("Chutes", evidence.chutes),
                ("Hugging Face", evidence.hugging_face),
            )
            if tally.unanswered
        ]
        raise MetagraphError(
            f"no miner is valid, and {len(undecided)} cannot be judged: {', '.join(silent)}"
        )


def gathered(settings: PipelineSettings, state: ChainState, last: Metagraph | None) -> Evidence:
    """Ask Chutes and Hugging Face about the miners of a state; `last` has what they said before."""
    seconds = settings.validation_timeout_seconds
    chutes = Chutes(settings.chutes_api_url, settings.chutes_api_key.get_secret_value(), seconds)
    hugging_face = HuggingFace(settings.hf_endpoint, settings.hf_token.get_secret_value(), seconds)
    with contextlib.closing(chutes), contextlib.closing(hugging_face):
        return gather(
            state.neurons,
            facts_in(last) if last else {},
            chutes,
            hugging_face,
            settings,
            time.time_ns() // 1_000_000,
        )


def _verdicts(metagraph: Metagraph) -> dict[str, Any]:
    miners = metagraph.miners
    kinds = miners.filter(~pl.col("is_valid"))["invalid_reason"].str.split("=").list.first()
    counts = kinds.fill_null("no reason given").value_counts(sort=True).rows()
    lines = ["| reason | miners |", "|---|--:|", *(f"| {kind} | {n} |" for kind, n in counts)]
    return {
        "miners": miners.height,
        "valid": miners.filter("is_valid").height,
        "invalid": dg.MetadataValue.md("\n".join(lines)),
    }


def _tally(service: str, tally: Tally) -> dict[str, Any]:
    return {
        f"{service}_asked": tally.asked,
        f"{service}_unanswered": tally.unanswered,
        f"{service}_reused": tally.reused,
        **({f"{service}_reasons": dict(tally.reasons)} if tally.reasons else {}),
    }
