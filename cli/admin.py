"""What admins do: announce tasks, keep the blacklist. Every change is signed with their key."""

from pathlib import Path

import click

from api.client import LeomaClient, LeomaError
from cli.failures import one_line
from cli.keys import KeyFileError, load_key
from cli.options import json_option, key_option, print_json, table, url_option
from warehouse.hotkeys import InvalidHotkeyError, public_key


def admin_client(url: str, key_file: Path) -> LeomaClient:
    """Return a client that signs with the key of a file."""
    with one_line(KeyFileError):
        return LeomaClient(url, load_key(key_file))


def checked_hotkey(_: click.Context, __: click.Parameter, value: str) -> str:
    """Refuse what is no address before anything is signed."""
    try:
        public_key(value)
    except InvalidHotkeyError as error:
        raise click.BadParameter(f"{value!r} is not an SS58 address of prefix 42.") from error
    return value


@click.group()
def tasks() -> None:
    """Announce tasks (admins)."""


@tasks.command()
@click.argument("task_id", type=click.IntRange(0, 2**63 - 1))
@url_option
@key_option
def announce(*, task_id: int, url: str, key_file: Path) -> None:
    """Announce TASK_ID as the latest task; samples of later ones are refused."""
    with admin_client(url, key_file) as client, one_line(LeomaError):
        client.announce_task(task_id)
    click.echo(f"The latest task is {task_id}.")


@click.group()
def blacklist() -> None:
    """Show or change the blacklist (changes: admins)."""


@blacklist.command("list")
@url_option
@json_option
def list_entries(*, url: str, is_json: bool) -> None:
    """Show who is on the blacklist, and why."""
    with one_line(LeomaError), LeomaClient(url, retries=1) as client:
        entries = client.blacklist()
    if is_json:
        print_json(entries)
    elif entries:
        names = ["hotkey", "reason", "added_by", "created_at"]
        click.echo(table(names, [[entry.get(name) for name in names] for entry in entries]))
    else:
        click.echo("Nobody is on the blacklist.")


@blacklist.command()
@click.argument("hotkey", callback=checked_hotkey)
@click.option("--reason", help="Why; up to 255 characters, shown to everybody.")
@url_option
@key_option
def add(*, hotkey: str, reason: str | None, url: str, key_file: Path) -> None:
    """Put HOTKEY on the blacklist, or give its entry a new reason."""
    with admin_client(url, key_file) as client, one_line(LeomaError):
        client.blacklist_add(hotkey, reason)
    click.echo(f"{hotkey} is on the blacklist.")


@blacklist.command()
@click.argument("hotkey", callback=checked_hotkey)
@url_option
@key_option
def remove(*, hotkey: str, url: str, key_file: Path) -> None:
    """Take HOTKEY off the blacklist."""
    with admin_client(url, key_file) as client, one_line(LeomaError):
        client.blacklist_remove(hotkey)
    click.echo(f"{hotkey} is no longer on the blacklist.")
