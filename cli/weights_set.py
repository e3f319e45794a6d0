"""`leoma weights set`: the options, and how a validator hears what came of it."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from substrateinterface import Keypair

from cli.failures import one_line
from cli.keys import KeyFileError
from cli.options import json_option, print_json, url_option
from cli.setting import BURN_REASONS
from cli.submission import EXIT_CODES, Order, Report, set_once
from cli.wallets import load_hotkey, wallet_options
from pipelines.settings import NODE_SCHEMES, PipelineSettings


def _endpoints(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    endpoints = tuple(place.strip() for place in value.split(",") if place.strip())
    if not endpoints or not all(place.startswith(NODE_SCHEMES) for place in endpoints):
        raise click.BadParameter("give ws:// or wss:// addresses of nodes, by comma.")
    return endpoints


def _genesis(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch("(0x[0-9a-fA-F]{64})?", value):
        raise click.BadParameter("give 0x and 64 hex digits.")
    return value


def _tell(report: Report, *, is_json: bool, is_repeated: bool) -> None:
    moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if is_json and is_repeated:
        click.echo(json.dumps({"at": moment, **report.as_json()}))
    elif is_json:
        print_json(report.as_json())
    else:
        is_failure = EXIT_CODES[report.outcome] > 0
        prefix = f"{moment} " if is_repeated else "Error: " if is_failure else ""
        # Part of it may be an API's or a node's: no lines of theirs among ours.
        text = "".join(char if char.isprintable() else " " for char in report.text)
        click.echo(prefix + text, err=is_failure and not is_repeated)


def _repeat(order: Order, keypair: Keypair, every_seconds: float, *, is_json: bool) -> None:
    """Do a round every so often, for ever; no failure of a round ends it."""
    while True:
        began = time.monotonic()
        _tell(set_once(order, keypair), is_json=is_json, is_repeated=True)
        time.sleep(max(every_seconds - (time.monotonic() - began), 0.0))


@click.command()
@url_option
@click.option(
    "--chain", "endpoints", envvar="CHAIN_SOURCE", show_envvar=True, required=True,
    callback=_endpoints, help="Addresses of nodes (ws, wss), by comma; tried in turn.",
)  # fmt: skip
@click.option(
    "--netuid", envvar="NETUID", show_envvar=True, default=99, show_default=True,
    type=click.IntRange(0, 65_535), help="The subnet.",
)  # fmt: skip
@click.option(
    "--genesis", envvar="CHAIN_GENESIS", show_envvar=True, default="", callback=_genesis,
    help="Hash of the chain's block 0; a node of another chain is refused.",
)  # fmt: skip
@wallet_options
@click.option(
    "--allow-burn", "burn_reasons", multiple=True, type=click.Choice(BURN_REASONS),
    help="Burn when the API says so for this reason; may be repeated. By default nothing is burnt.",
)  # fmt: skip
@click.option(
    "--age-max", "age_seconds_max", default=1800.0, show_default=True,
    type=click.FloatRange(min=0), help="Seconds ago that the weights may have been computed.",
)  # fmt: skip
@click.option(
    "--blocks-behind-max", default=300, show_default=True, type=click.IntRange(min=0),
    help="Blocks by which the weights' snapshot may be behind the chain.",
)  # fmt: skip
@click.option(
    "--block-age-max", "block_age_seconds_max", envvar="CHAIN_BLOCK_AGE_SECONDS_MAX",
    show_envvar=True, default=PipelineSettings.model_fields["chain_block_age_seconds_max"].default,
    show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Seconds since a node's newest block, beyond which it does not follow the chain.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_seconds", default=15.0, show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for the API's answer, and for each of a node.",
)  # fmt: skip
@click.option(
    "--wait", "wait_seconds", default=90.0, show_default=True,
    type=click.FloatRange(min=0, min_open=True), help="Seconds until the chain has taken it.",
)  # fmt: skip
@click.option("--finalize", "until_final", is_flag=True, help="Wait until the block is final.")
@click.option(
    "--block-seconds", default=12.0, show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds a block, for the time at which a commit opens.",
)  # fmt: skip
@click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Show what would be sent; send nothing."
)
@click.option(
    "--every", "every_seconds", type=click.FloatRange(min=1), metavar="SECONDS",
    help="Do it again every so often, whatever comes of a round.",
)  # fmt: skip
@json_option
def set_weights(
    *,
    wallet_path: Path,
    wallet: str | None,
    hotkey: str | None,
    key_file: Path | None,
    every_seconds: float | None,
    is_json: bool,
    **order: Any,
) -> None:
    """Set the API's weights on chain, if nothing about them is in doubt (validators).

    Anything in doubt sends nothing, and what is on chain stays: an API that cannot be reached, is
    stale or contradicts itself, clocks that disagree, a winner whose uid is another's on chain, a
    hotkey without a permit, a chain that cannot be read, a rate limit not yet over.

    A burn (all weight to uid 0) is sent only for reasons named with --allow-burn. An API that was
    just installed or lost its log says window_incomplete; think before you allow that one.

    Where the subnet has commit-reveal on, the weights go out as a timelocked commit, which needs
    the extra `leoma[validator]`.

    Exit codes: 0 set and read back from the chain, or committed, or a dry run that would send; 1
    the node or the chain refused it; 2 a wrong call; 3 in doubt, nothing was sent; 4 sent, but what
    came of it was not seen.
    """
    # The other options are the fields of an order, by name.
    asked = Order(**order)
    with one_line(KeyFileError):
        keypair = load_hotkey(wallet_path, wallet, hotkey, key_file)
    if every_seconds is not None:
        _repeat(asked, keypair, every_seconds, is_json=is_json)
    report = set_once(asked, keypair)
    _tell(report, is_json=is_json, is_repeated=False)
    click.get_current_context().exit(EXIT_CODES[report.outcome])
