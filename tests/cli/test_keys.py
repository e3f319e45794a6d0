import json
from pathlib import Path

import pytest
from substrateinterface import Keypair

from cli.keys import KeyFileError, load_key

MNEMONIC = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"
SEED = "0x" + "7f" * 32


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (f"{MNEMONIC}\n", Keypair.create_from_mnemonic(MNEMONIC)),
        (f"{MNEMONIC}//hot", Keypair.create_from_uri(f"{MNEMONIC}//hot")),
        (SEED, Keypair.create_from_seed(SEED)),
        ("//Alice\n", Keypair.create_from_uri("//Alice")),
        (json.dumps({"secretSeed": SEED}), Keypair.create_from_seed(SEED)),
        (json.dumps({"secretPhrase": MNEMONIC}), Keypair.create_from_mnemonic(MNEMONIC)),
        (
            json.dumps(
                {
                    "secretSeed": SEED,
                    "secretPhrase": None,
                    "ss58Address": Keypair.create_from_seed(SEED).ss58_address,
                }
            ),
            Keypair.create_from_seed(SEED),
        ),
    ],
)
def test_every_form_of_key_file(tmp_path, content, key):
    loaded = load_key(write(tmp_path / "key", content))
    assert loaded.ss58_address == key.ss58_address
    assert key.verify(b"message", loaded.sign(b"message"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no key"),
        ("bottom drive obey", "holds no key"),
        ("0x1234", "holds no key"),
        (b"\xff\xfe\x00", "holds no key"),
        ("{not json", "holds no key"),
        (json.dumps({"ss58Address": "5F"}), "neither secretSeed nor secretPhrase"),
        (json.dumps({"secretSeed": SEED, "ss58Address": "5Other"}), "not to 5Other"),
        (b"$NACL...", "encrypted"),
    ],
)
def test_what_is_no_key_is_refused_without_quoting_it(tmp_path, content, said):
    with pytest.raises(KeyFileError, match=said) as caught:
        load_key(write(tmp_path / "key", content))
    assert SEED not in str(caught.value)
    assert "bottom" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_file_that_others_may_open_is_refused(tmp_path, mode):
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key(write(tmp_path / "key", MNEMONIC, mode))


def test_a_missing_file(tmp_path):
    with pytest.raises(KeyFileError, match="No such file"):
        load_key(tmp_path / "nothing")
