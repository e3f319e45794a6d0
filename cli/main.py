"""The `leoma` command: which commands there are, and how failures reach people.

A command's module is imported only when it is called, so that `leoma --help` answers at once: some
of them need Dagster, Polars or the signing library.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

import click

COMMANDS = {
    "demo": ("cli.demo", "Run the whole service with a simulated subnet on this machine."),
    "serve": ("cli.serve", "Serve the API."),
    "courier": ("cli.courier", "Carry results to object storage, and generations from there."),
    "dagster": ("cli.orchestration", "Start one of Dagster's processes."),
    "materialize": ("cli.materialize", "Make and publish all tables now, in this process."),
    "keep": ("cli.materialize", "Do the nightly work now."),
    "healthcheck": ("cli.healthcheck", "Exit with 0 if URL answers with a 2xx status."),
    "outbox": ("cli.outbox", "Show what waits for object storage."),
    "fsck": ("cli.fsck", "Verify the whole installation."),
    "restore": ("cli.restore", "Bring this machine up from a bucket."),
    "recompute": ("cli.recompute", "Compute a published generation anew, and compare."),
    "rank": ("cli.show", "Show the rank table."),
    "weights": ("cli.show", "Show the weights that validators set on chain."),
    "miners": ("cli.miners", "Look into why a miner is valid or not."),
    "tasks": ("cli.admin", "Announce tasks (admins)."),
    "blacklist": ("cli.admin", "Show or change the blacklist (changes: admins)."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    # The contexts are part of click's signatures.
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command; it has the command's name in its module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = getattr(module, cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.{cmd_name} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def show_version(context: click.Context, _: click.Parameter, *is_wanted: bool) -> None:
    """Print the version, which only the installed package knows, and exit."""
    if any(is_wanted):
        click.echo(f"leoma {version('leoma')}")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
def leoma(*, verbose: bool) -> None:
    """The central service of the Leoma subnet: from signed samples to weights.

    Settings come from the environment (LEOMA_HOME, CHAIN_SOURCE, ADMIN_HOTKEYS, ...); the README
    lists them.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code: 0, 1 after a failure, 2 for a wrong call."""
    try:
        return int(leoma.main(list(arguments), "leoma", standalone_mode=False) or 0)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "leoma"
        click.echo(f"Error: {error.format_message()} See `{path} --help`.", err=True)
        return error.exit_code
    except click.ClickException as error:
        if "-v" in arguments or "--verbose" in arguments:
            traceback.print_exception(error.__cause__ or error)
        click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
        return error.exit_code
    except click.Abort:
        click.echo("Aborted.", err=True)
        return 130


def main() -> None:
    """Run `leoma` with the process's arguments."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
