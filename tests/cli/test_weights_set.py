"""`leoma weights set` against a served API and a node: what is sent, what is not, what is said."""

import json
import socket
import subprocess
import sys

import pytest

from cli.main import run
from tests.builders import hotkey
from tests.cli.api_double import ApiDouble

OWN, OWNER_UID, WINNER_UID, OTHER_UID, OWN_UID = "own", 0, 1, 2, 3


@pytest.fixture
def api():
    with ApiDouble() as double:
        yield double


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "hotkey"
    path.write_text(f"//{OWN}")
    path.chmod(0o600)
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


NOBODY = "ws://127.0.0.1:9"


def call(capsys, *arguments):
    """Run `leoma weights set` in this process; return exit code, stdout and stderr."""
    code = run(["weights", "set", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_its_help_names_exit_codes_and_burning(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert out.startswith("Usage: leoma weights set")
    assert "3 in doubt, nothing was sent" in text
    assert "By default nothing is burnt" in text


def test_showing_weights_still_works_and_needs_no_library_of_the_chain(api):
    code = (
        "import sys; from cli.main import run; "
        f"code = run(['weights', '--url', {api.url!r}, '--json']);"
        "print(code, sorted({'substrateinterface', 'bittensor_drand'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = shown.stdout.splitlines()
    assert json.loads("\n".join(lines[:-1]))["winner_hotkey"] == hotkey("winner")
    assert lines[-1] == "0 []"


WRONG_CALLS = {
    "no chain": ([], "Missing option '--chain'"),
    "a file as the chain": (["--chain", "metagraph.json"], "give ws:// or wss:// addresses"),
    "one of two no node": (["--chain", f"{NOBODY},http://x"], "give ws:// or wss:// addresses"),
    "no address at all": (["--chain", ","], "give ws:// or wss:// addresses"),
    "no key": (["--chain", NOBODY], "Give --wallet and --hotkey, or --key"),
    "half a genesis": (["--chain", NOBODY, "--genesis", "0x12"], "give 0x and 64 hex digits"),
    "an unknown reason": (["--chain", NOBODY, "--allow-burn", "fun"], "'fun' is not one of"),
    "no subnet": (["--chain", NOBODY, "--netuid", "70000"], "70000 is not in the range"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, monkeypatch, name):
    for variable in ("CHAIN_SOURCE", "LEOMA_WALLET", "LEOMA_HOTKEY"):
        monkeypatch.delenv(variable, raising=False)
    arguments, said = WRONG_CALLS[name]
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_options_of_set_that_come_too_early_are_not_lost_in_silence(capsys, api):
    for early in (["--url", api.url], ["--json"], ["--at", "x"]):
        code = run(["weights", *early, "set", "--chain", NOBODY])
        err = capsys.readouterr().err
        assert (code, api.requests) == (2, [])
        assert "Give the options of `set` after it" in err


def test_a_key_that_cannot_be_used_stops_before_anything_is_asked(capsys, api, key):
    key.chmod(0o644)
    code, _, err = call(capsys, "--url", api.url, "--chain", NOBODY, "--key", key)
    assert (code, err.count("\n"), api.requests) == (1, 1, [])
    assert f"chmod 600 {key}" in err
    key.chmod(0o600)
    key.write_text("correct horse battery staple")
    code, _, err = call(capsys, "--url", api.url, "--chain", NOBODY, "--key", key)
    assert (code, api.requests) == (1, [])
    assert "holds no key" in err
    assert "horse" not in err
