"""From what the chain and the services said to a metagraph, and back to what they said last.

The verdict on each miner is made here, by validation.py, and kept with what it was made from. The
last snapshot is the only memory that there is of earlier answers.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pipelines.evidence import Facts
from pipelines.metagraph import Metagraph, metagraph_of_neurons
from pipelines.neurons import ChainState, Neuron, revealed_text
from pipelines.validation import ChuteFact, ModelFact, verdict

NO_FACTS = Facts(chute=None, model=None, is_complete=False)


def judged(
    state: ChainState, facts: Mapping[str, Facts], last: Metagraph | None, now_ms: int
) -> Metagraph:
    """Return the metagraph of a chain state, each miner with its verdict.

    `facts`: what is known of each miner, by hotkey. Where a service did not say what was needed,
    the time of the last validation stays what it was in `last`, if the commitments are the same.
    Raises `MetagraphError` when the state cannot be right.
    """
    validated_before = {
        row["hotkey"]: (row["revealed"], row["last_validated_at_ms"])
        for row in (last.neurons.iter_rows(named=True) if last else ())
    }
    rows = []
    for neuron in state.neurons:
        row = _chain_row(state, neuron)
        if neuron.revealed:
            known = facts.get(neuron.hotkey, NO_FACTS)
            revealed, validated_at_ms = validated_before.get(neuron.hotkey, (None, None))
            row |= _miner_row(neuron, known)
            if known.is_complete:
                row["last_validated_at_ms"] = now_ms
            elif revealed == row["revealed"]:
                row["last_validated_at_ms"] = validated_at_ms
        rows.append(row)
    return metagraph_of_neurons(rows)


def facts_in(metagraph: Metagraph) -> dict[str, Facts]:
    """Return the facts that a snapshot keeps, by hotkey. None counts as complete: they are old."""
    known = {}
    for row in metagraph.neurons.iter_rows(named=True):
        chute, model = row["chute_fact"], row["model_fact"]
        if chute is not None or model is not None:
            known[row["hotkey"]] = Facts(
                chute=None if chute is None else ChuteFact(**json.loads(chute)),
                model=None if model is None else ModelFact(**json.loads(model)),
                is_complete=False,
            )
    return known


def _chain_row(state: ChainState, neuron: Neuron) -> dict[str, Any]:
    return {
        "netuid": state.netuid,
        "block": state.block,
        "block_hash": state.block_hash,
        "genesis_hash": state.genesis_hash,
        "uid": neuron.uid,
        "hotkey": neuron.hotkey,
        "coldkey": neuron.coldkey,
        "is_validator": neuron.stake_rao > 0,
        "stake_rao": neuron.stake_rao,
        "is_miner": bool(neuron.revealed),
    }


def _miner_row(neuron: Neuron, facts: Facts) -> dict[str, Any]:
    found = verdict(neuron.hotkey, neuron.revealed, facts.chute, facts.model)
    return {
        **dataclasses.asdict(found),
        "revealed": revealed_text(neuron.revealed),
        "commit_block": neuron.revealed[-1].block,
        "chute_fact": _fact_text(facts.chute),
        "model_fact": _fact_text(facts.model),
    }


def _fact_text(fact: ChuteFact | ModelFact | None) -> str | None:
    if fact is None:
        return None
    return json.dumps(dataclasses.asdict(fact), sort_keys=True, separators=(",", ":"))
