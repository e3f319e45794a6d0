"""`leoma miners check`: one miner's verdict, rule by rule, from what the last sync knew."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import click

from cli.failures import one_line, read_settings
from cli.options import json_option, print_json, table
from pipelines import metagraph as chain
from pipelines.chain_snapshots import ChainSnapshots, Synced
from pipelines.judging import NO_FACTS, facts_in
from pipelines.metagraph import MetagraphError
from pipelines.neurons import revealed_in
from pipelines.outside import printable
from pipelines.validation import RuleOutcome, rules
from warehouse.backends import open_kept_log
from warehouse.hotkeys import is_hotkey
from warehouse.log import LogError
from warehouse.settings import WarehouseSettings

PASSED = {True: "yes", False: "NO", None: "not reached"}


@click.group()
def miners() -> None:
    """Look into why a miner is valid or not."""


@miners.command()
@click.argument("hotkey")
@json_option
def check(*, hotkey: str, is_json: bool) -> None:
    """Explain one miner's verdict, rule by rule.

    Reads the newest chain snapshot (LEOMA_HOME) and the blacklist as the log has it now; asks
    neither the chain nor a service. The exit code is 0 for a valid miner, 1 for an invalid one.
    """
    settings = read_settings(WarehouseSettings)
    with one_line(LogError, MetagraphError, OSError):
        if not is_hotkey(hotkey):
            raise MetagraphError(f"{hotkey} is not an SS58 address of prefix 42")
        synced = ChainSnapshots(settings).newest()
        if synced is None:
            raise MetagraphError("the chain was never read: run `leoma materialize` first")
        log = open_kept_log(settings)
        try:
            blacklisted = set(log.admin_state().blacklist)
        finally:
            log.close()
        explained = explanation(synced, hotkey, blacklisted)
    if is_json:
        print_json(
            {**explained, "rules": [dataclasses.asdict(rule) for rule in explained["rules"]]}
        )
    else:
        click.echo(_text(explained))
    if not explained["is_valid"]:
        click.get_current_context().exit(1)


def explanation(synced: Synced, hotkey: str, blacklisted: set[str]) -> dict[str, Any]:
    """Return what is known of a miner, its verdict, and every rule in the order of judgement.

    Raises `MetagraphError` for a hotkey that is no miner in the snapshot.
    """
    metagraph = synced.metagraph
    found = metagraph.neurons.filter(hotkey=hotkey).to_dicts()
    if not found:
        raise MetagraphError(f"{hotkey} is not registered at block {metagraph.block}")
    row = found[0]
    if not row["is_miner"]:
        raise MetagraphError(
            f"{hotkey} (uid {row['uid']}) has no revealed commitment at block {metagraph.block}: "
            "it is no miner"
        )
    (verdict,) = chain.miners(metagraph, blacklisted).filter(hotkey=hotkey).to_dicts()
    is_blacklisted = hotkey in blacklisted
    outcomes = [RuleOutcome("blacklisted", not is_blacklisted, "it is not on the blacklist")]
    if row["revealed"] is not None:
        facts = facts_in(metagraph).get(hotkey, NO_FACTS)
        outcomes += rules(hotkey, revealed_in(row["revealed"]), facts.chute, facts.model)
        reason = verdict["invalid_reason"] or ""
        is_copy = reason.startswith("duplicate_model")
        is_reached = is_copy or all(one.is_passed for one in outcomes)
        text = "no earlier commitment has the same model"
        outcomes.append(RuleOutcome("duplicate_model", not is_copy if is_reached else None, text))
    return {
        **verdict,
        "snapshot": synced.name,
        "snapshot_block": metagraph.block,
        "chute_fact": row["chute_fact"],
        "model_fact": row["model_fact"],
        "rules": outcomes,
    }


def _text(explained: dict[str, Any]) -> str:
    names = ("uid", "block", "model_name", "model_revision", "model_hash", "chute_id", "chute_slug")
    # Most of it is what the miner wrote, who may write to a terminal otherwise.
    known = [[name, _shown(explained[name])] for name in names]
    validated_at_ms = explained["last_validated_at_ms"]
    if validated_at_ms is not None:
        instant = datetime.fromtimestamp(validated_at_ms / 1000, UTC)
        known.append(["last validated", f"{instant:%Y-%m-%d %H:%M:%S} UTC"])
    outcomes = [[one.rule, PASSED[one.is_passed], one.text] for one in explained["rules"]]
    verdict = "valid" if explained["is_valid"] else f"invalid: {explained['invalid_reason']}"
    judged_elsewhere = "" if len(outcomes) > 1 else "\n(A metagraph file gave the verdict itself.)"
    return (
        f"{table(['', explained['hotkey']], known)}\n\n"
        f"{table(['rule', 'passed', 'which says that'], outcomes)}\n\n"
        f"At block {explained['snapshot_block']}: {verdict}{judged_elsewhere}"
    )


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
