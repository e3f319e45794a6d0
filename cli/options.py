"""Options that several commands share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

DEFAULT_URL = "http://127.0.0.1:8000"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

url_option: Decorator = click.option(
    "--url", envvar="LEOMA_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
    help="Where the API is.",
)  # fmt: skip
json_option: Decorator = click.option(
    "--json", "is_json", is_flag=True, help="Print JSON, for programs."
)
log_level_option: Decorator = click.option(
    "--log-level", default="info", show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)  # fmt: skip
key_option: Decorator = click.option(
    "--key", "key_file", envvar="LEOMA_KEY_FILE", show_envvar=True, required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The admin's key: a Bittensor hotkey file, or a mnemonic, a 0x seed or //Name in a file.",
)  # fmt: skip


def print_json(document: Any) -> None:
    """Print a document for programs."""
    click.echo(json.dumps(document, indent=2, default=str))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned text; columns of numbers go to the right."""
    texts = [[("-" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    is_number = [
        bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        for index in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, texts)])
