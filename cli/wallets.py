"""The key that signs on chain, as options: the hotkey of a Bittensor wallet, or a key file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from substrateinterface import Keypair

from cli.keys import load_key

WALLET_PATH = Path("~/.bittensor/wallets")

wallet_path_option = click.option(
    "--wallet-path", default=WALLET_PATH, show_default=True, envvar="LEOMA_WALLET_PATH",
    show_envvar=True, type=click.Path(path_type=Path, file_okay=False),
    help="Where the wallets are.",
)  # fmt: skip
wallet_option = click.option(
    "--wallet", envvar="LEOMA_WALLET", show_envvar=True, metavar="NAME", help="The wallet's name."
)
hotkey_option = click.option(
    "--hotkey", envvar="LEOMA_HOTKEY", show_envvar=True, metavar="NAME",
    help="The hotkey's name in the wallet; it must have no password.",
)  # fmt: skip
key_file_option = click.option(
    "--key", "key_file", type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the hotkey, whatever wallet is named.",
)  # fmt: skip


def wallet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --wallet-path, --wallet, --hotkey and --key."""
    for option in (key_file_option, hotkey_option, wallet_option, wallet_path_option):
        command = option(command)
    return command


def hotkey_file(
    wallet_path: Path, wallet: str | None, hotkey: str | None, key_file: Path | None
) -> Path:
    """Return the file of the key that signs; raise `click.UsageError` where that is not clear."""
    if key_file is not None:
        return key_file.expanduser()
    if wallet is None or hotkey is None:
        raise click.UsageError("Give --wallet and --hotkey, or --key.")
    for option, name in (("--wallet", wallet), ("--hotkey", hotkey)):
        if not name or name in {".", ".."} or "/" in name:
            raise click.UsageError(f"{option}: give a name, not a path; --wallet-path is for that.")
    return wallet_path.expanduser() / wallet / "hotkeys" / hotkey


def load_hotkey(
    wallet_path: Path, wallet: str | None, hotkey: str | None, key_file: Path | None
) -> Keypair:
    """Read the key that signs; raise `cli.keys.KeyFileError`, which never quotes the secret."""
    return load_key(hotkey_file(wallet_path, wallet, hotkey, key_file))
