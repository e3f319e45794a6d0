"""What everybody may look at: ranks and weights, as tables for people and JSON for programs."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime

import click
from click.core import ParameterSource

from api.client import LeomaClient, LeomaError, RankEntry, Weights
from cli.failures import one_line
from cli.options import json_option, print_json, table, url_option


def rank_table(ranks: Sequence[RankEntry]) -> str:
    """Return the rank table as text."""
    header = ["rank", "uid", "miner", "passed", "pass rate", "eligible", "commit block"]
    return table(
        header,
        [
            [
                entry.rank,
                entry.uid,
                entry.miner_hotkey,
                entry.passed_count,
                f"{entry.pass_rate:.3f}",
                "yes" if entry.eligible else "no",
                entry.block,
            ]
            for entry in ranks
        ],
    )


def weights_text(weights: Weights, now: datetime) -> str:
    """Return the weights, and what they are worth at `now`, as text."""
    rows = [[entry.uid, entry.miner_hotkey, entry.weight] for entry in weights.miners]
    outcome = (
        f"Winner: uid {weights.winner_uid}, {weights.winner_hotkey}"
        if weights.winner_hotkey
        else f"Burn (uid 0): {weights.burn_reason}"
    )
    usable = "may be set on chain" if weights.is_usable(now) else "must NOT be set on chain"
    return (
        f"{table(['uid', 'miner', 'weight'], rows)}\n\n{outcome}\n"
        f"Snapshot {weights.snapshot_id}: block {weights.block}, log position {weights.watermark}, "
        f"computed {weights.computed_at:%Y-%m-%d %H:%M:%S} UTC\n"
        f"Valid until {weights.valid_until:%Y-%m-%d %H:%M:%S} UTC: {usable} now"
    )


@click.command()
@url_option
@json_option
def rank(*, url: str, is_json: bool) -> None:
    """Show the rank table."""
    with one_line(LeomaError), LeomaClient(url, retries=1) as client:
        ranks = client.rank()
    if is_json:
        print_json([dataclasses.asdict(entry) for entry in ranks])
    else:
        click.echo(rank_table(ranks) if ranks else "No miner is ranked.")


class WeightsGroup(click.Group):
    """`leoma weights` shows them; `leoma weights set` is imported when it is called."""

    # The contexts are part of click's signatures.
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the one command."""
        return ["set"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import `set`: it needs the libraries for chain and keys, which showing does not."""
        if cmd_name != "set":
            return None
        from cli.weights_set import set_weights  # noqa: PLC0415 - see above

        return set_weights


@click.group(cls=WeightsGroup, invoke_without_command=True)
@url_option
@json_option
@click.option("--at", help="A snapshot id or an ISO 8601 time: the weights as they were then.")
@click.pass_context
def weights(context: click.Context, *, url: str, is_json: bool, at: str | None) -> None:
    """Show the weights that validators set on chain."""
    if context.invoked_subcommand is not None:
        # `set` has an address of its own: one that is given too early must not be lost in silence.
        for name in ("url", "is_json", "at"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError("Give the options of `set` after it.")
        return
    with one_line(LeomaError), LeomaClient(url, retries=1) as client:
        answer = client.weights(at)
    now = datetime.now(UTC)
    if is_json:
        print_json({**dataclasses.asdict(answer), "is_usable": answer.is_usable(now)})
    else:
        click.echo(weights_text(answer, now))
