"""Which file the key comes from."""

from pathlib import Path

import click
import pytest

from cli.keys import KeyFileError
from cli.wallets import hotkey_file, load_hotkey
from tests.builders import hotkey


def write_hotkey(wallets: Path, content: str = "//own", mode: int = 0o600) -> Path:
    path = wallets / "leo" / "hotkeys" / "hot"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_wallets_hotkey_is_where_bittensor_puts_it(tmp_path):
    write_hotkey(tmp_path)
    assert load_hotkey(tmp_path, "leo", "hot", None).ss58_address == hotkey("own")


def test_the_home_directory_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_hotkey(tmp_path / "wallets")
    assert hotkey_file(Path("~/wallets"), "leo", "hot", None) == path
    assert hotkey_file(Path("~/wallets"), None, None, Path("~/key")) == tmp_path / "key"


def test_a_key_file_needs_no_wallet(tmp_path):
    path = write_hotkey(tmp_path, "//other")
    key = load_hotkey(tmp_path, "nobody", "none", path)
    assert key.ss58_address == hotkey("other")


@pytest.mark.parametrize(
    ("wallet", "name", "said"),
    [
        (None, None, "Give --wallet and --hotkey, or --key"),
        ("leo", None, "Give --wallet and --hotkey, or --key"),
        (None, "hot", "Give --wallet and --hotkey, or --key"),
        ("", "hot", "--wallet: give a name"),
        ("leo", "../../other/hotkeys/hot", "--hotkey: give a name"),
        ("..", "hot", "--wallet: give a name"),
    ],
)
def test_names_are_names(tmp_path, wallet, name, said):
    with pytest.raises(click.UsageError) as raised:
        hotkey_file(tmp_path, wallet, name, None)
    assert said in raised.value.message


def test_a_hotkey_that_others_can_read_is_refused(tmp_path):
    path = write_hotkey(tmp_path, mode=0o644)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        load_hotkey(tmp_path, "leo", "hot", None)


def test_a_hotkey_that_is_not_there_is_named(tmp_path):
    with pytest.raises(KeyFileError, match="leo/hotkeys/cold: No such file"):
        load_hotkey(tmp_path, "leo", "cold", None)
