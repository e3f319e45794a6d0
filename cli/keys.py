"""The key file of whoever signs. What is in it is never printed, not in errors either."""

import json
import stat
from pathlib import Path
from typing import Any

from substrateinterface import Keypair

KEY_FILE_BYTES_MAX = 16_384


class KeyFileError(Exception):
    """The key file cannot be used."""


def load_key(path: Path) -> Keypair:
    """Read the key of a file that only its owner may read.

    The file is a Bittensor hotkey (JSON with `secretSeed` or `secretPhrase`), or one line with a
    mnemonic, a seed (`0x` and 64 hex digits) or a development key (`//Alice`).
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyFileError(f"{path} can be read by others: run `chmod 600 {path}` first")
        with path.open("rb") as file:
            content = file.read(KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    if content.startswith(b"$NACL"):
        raise KeyFileError(f"{path} is encrypted: give a hotkey file without a password")
    # The causes are left out below: they may quote the secret.
    try:
        text = content.decode().strip()
        return _from_json(json.loads(text)) if text.startswith("{") else _from_text(text)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None
    except Exception:  # noqa: BLE001 - the libraries raise what they like on a wrong secret
        raise KeyFileError(
            f"{path} holds no key: give a Bittensor hotkey file, a mnemonic, a 0x seed or //Name"
        ) from None


def _from_json(document: dict[str, Any]) -> Keypair:
    secret = document.get("secretSeed") or document.get("secretPhrase")
    if not secret:
        raise KeyFileError("the file has neither secretSeed nor secretPhrase")
    keypair = _from_text(str(secret))
    address = document.get("ss58Address")
    if address not in (None, keypair.ss58_address):
        raise KeyFileError(f"the secret belongs to {keypair.ss58_address}, not to {address}")
    return keypair


def _from_text(secret: str) -> Keypair:
    if not secret:
        raise ValueError("an empty secret")
    if secret.startswith("0x"):
        return Keypair.create_from_seed(secret)
    if "/" in secret:
        return Keypair.create_from_uri(secret)
    return Keypair.create_from_mnemonic(secret)
