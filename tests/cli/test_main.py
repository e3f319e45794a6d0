"""The `leoma` command as people meet it: help, tables, and failures of one line."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import COMMANDS, leoma, run
from cli.options import table
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import hotkey, write_metagraph
from tests.warehouse.builders import append, sample
from warehouse.archive import Archive
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

NOBODY = "http://127.0.0.1:9"
SUBCOMMANDS = {
    "tasks": ["announce"],
    "blacklist": ["add", "remove", "list"],
    "dagster": ["code-server", "webserver", "daemon"],
    "weights": ["set"],
    "miners": ["check"],
}
CALLS = [
    *([name] for name in COMMANDS),
    *([name, part] for name, parts in SUBCOMMANDS.items() for part in parts),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = WarehouseSettings(leoma_home=tmp_path_factory.mktemp("home"))
    publish_subnet(settings)
    with Server(API_SETTINGS, settings) as running:
        yield running


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def admin_key(tmp_path):
    return write_key(tmp_path / "admin.key", "//admin")


def write_key(path: Path, content: str, mode: int = 0o600) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, stdout and stderr."""
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", CALLS, ids=" ".join)
def test_help_says_what_a_command_does(command):
    shown = CliRunner().invoke(leoma, [*command, "--help"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: leoma {' '.join(command)}")
    assert len(shown.output.splitlines()[2]) > 15


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_the_same_as_each_commands_help(name):
    module, text = COMMANDS[name]
    assert module.startswith("cli.")
    shown = CliRunner().invoke(leoma, [name, "--help"])
    assert text.removesuffix(".") in " ".join(shown.output.split())


def test_help_and_version_need_none_of_the_heavy_libraries():
    code = (
        "import sys; from cli.main import run; run(['--help']); run(['--version']);"
        "print(sorted({'dagster', 'polars', 'fastapi', 'httpx', 'duckdb'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = shown.stdout.splitlines()
    assert lines[0] == "Usage: leoma [OPTIONS] COMMAND [ARGS]..."
    assert lines[-2].startswith("leoma 0.")
    assert lines[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'. See `leoma --help`."),
        (["serve", "--port", "http"], "See `leoma serve --help`."),
        (["tasks", "announce", "-1"], "See `leoma tasks announce --help`."),
        (["tasks", "announce", "5"], "Missing option '--key'"),
        (["blacklist", "add", "5Fake"], "'5Fake' is not an SS58 address"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, monkeypatch, arguments, said):
    monkeypatch.delenv("LEOMA_KEY_FILE", raising=False)
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    "arguments", [["rank"], ["weights"], ["weights", "--json"], ["blacklist", "list"]]
)
def test_a_failure_is_one_line_and_exit_code_1(capsys, arguments):
    code, out, err = call(capsys, *arguments, "--url", NOBODY)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("Error: GET /")
    assert "Connection refused" in err


def test_verbose_shows_where_it_came_from(capsys):
    code, _, err = call(capsys, "-v", "rank", "--url", NOBODY)
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("Error: GET /scores/rank")


def test_bad_settings_are_one_line_that_names_the_variable(capsys, monkeypatch):
    monkeypatch.setenv("NETUID", "ninety")
    monkeypatch.setenv("SCORER_TASK_WINDOW", "0")
    code, out, err = call(capsys, "materialize")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "NETUID: Input should be a valid integer" in err
    assert "SCORER_TASK_WINDOW: Input should be greater than 0" in err


def test_serve_refuses_bad_settings_and_a_taken_port(capsys, monkeypatch, server):
    code, _, err = call(capsys, "serve", "--port", str(server.port))
    assert (code, err.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1:{server.port}: Address already in use" in err
    monkeypatch.setenv("ADMIN_HOTKEYS", "5Fake")
    code, _, err = call(capsys, "serve", "--port", "0")
    assert (code, err.count("\n")) == (1, 1)
    assert "ADMIN_HOTKEYS" in err


def test_rank_is_a_table_for_people_and_json_for_programs(capsys, url):
    code, out, _ = call(capsys, "rank", "--url", url)
    header, _, first, second = out.splitlines()
    assert code == 0
    assert header.split()[:3] == ["rank", "uid", "miner"]
    assert first.split() == ["1", "7", hotkey("old"), "3", "0.750", "yes", "4400000"]
    assert second.split() == ["2", "8", hotkey("young"), "1", "0.250", "no", "-"]
    code, out, _ = call(capsys, "rank", "--url", url, "--json")
    assert [entry["miner_hotkey"] for entry in json.loads(out)] == [hotkey("old"), hotkey("young")]


def test_weights_say_whether_they_may_be_set(capsys, url):
    code, out, _ = call(capsys, "weights", "--url", url)
    assert code == 0
    assert f"Winner: uid 7, {hotkey('old')}" in out
    is_stale = "must NOT be set on chain now" in out
    assert is_stale or "may be set on chain now" in out
    code, out, _ = call(capsys, "weights", "--url", url, "--json")
    answer = json.loads(out)
    assert answer["winner_hotkey"] == hotkey("old")
    assert answer["is_usable"] is not is_stale
    code, _, err = call(capsys, "weights", "--url", url, "--at", "yesterday")
    assert (code, err.count("\n")) == (1, 1)
    assert "400" in err


def test_an_admin_announces_tasks(capsys, url, admin_key, server):
    code, out, _ = call(capsys, "tasks", "announce", "40", "--url", url, "--key", admin_key)
    assert (code, out) == (0, "The latest task is 40.\n")
    assert server.get("/tasks/latest").json() == {"task_id": 40}
    code, out, err = call(capsys, "tasks", "announce", "39", "--url", url, "--key", admin_key)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "409: the latest task is already 40" in err


def test_an_admin_keeps_the_blacklist(capsys, monkeypatch, url, admin_key):
    monkeypatch.setenv("LEOMA_URL", url)
    monkeypatch.setenv("LEOMA_KEY_FILE", admin_key)
    assert call(capsys, "blacklist", "list")[1] == "Nobody is on the blacklist.\n"
    assert call(capsys, "blacklist", "add", hotkey("young"), "--reason", "copies a lot")[0] == 0
    shown = call(capsys, "blacklist", "list")[1].splitlines()[-1]
    assert shown.split()[:4] == [hotkey("young"), "copies", "a", "lot"]
    assert json.loads(call(capsys, "blacklist", "list", "--json")[1])[0]["reason"] == "copies a lot"
    assert call(capsys, "blacklist", "remove", hotkey("young"))[0] == 0
    code, _, err = call(capsys, "blacklist", "remove", hotkey("young"))
    assert (code, err.count("\n")) == (1, 1)
    assert "404" in err


def test_somebody_else_is_no_admin(capsys, url, tmp_path):
    key = write_key(tmp_path / "key", "//big")
    code, _, err = call(capsys, "tasks", "announce", "99", "--url", url, "--key", key)
    assert (code, err.count("\n")) == (1, 1)
    assert "403: this hotkey is not an admin" in err


def test_a_key_that_others_can_read_is_refused_before_anything_is_sent(capsys, tmp_path):
    key = write_key(tmp_path / "key", "//admin", 0o640)
    code, _, err = call(capsys, "tasks", "announce", "1", "--url", NOBODY, "--key", key)
    assert (code, err.count("\n")) == (1, 1)
    assert f"chmod 600 {key}" in err


def test_materialize_publishes_and_says_what(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEOMA_HOME", str(tmp_path))
    code, _, err = call(capsys, "materialize")
    assert (code, err.count("\n")) == (1, 1)
    assert "CHAIN_SOURCE" in err
    path = write_metagraph(tmp_path / "metagraph.json", validators=[{"hotkey": hotkey("big")}])
    monkeypatch.setenv("CHAIN_SOURCE", str(path))
    code, out, _ = call(capsys, "materialize", "--json")
    made = json.loads(out)
    assert code == 0
    assert made["watermark"] == 0
    assert Path(made["path"]).exists()
    code, out, _ = call(capsys, "materialize")
    assert code == 0
    assert out.startswith("Published 2")
    assert (tmp_path / "warehouse" / "current.duckdb").exists()


def test_materialize_can_archive_everything_at_once_and_shows_how_far_it_is(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("LEOMA_HOME", str(tmp_path))
    monkeypatch.setenv("ARCHIVE_TEXTS_PER_RUN_MAX", "1")
    monkeypatch.setattr("warehouse.sqlite_reads.TEXTS_CHUNK_ROWS", 1)
    monkeypatch.setattr("cli.materialize.PROGRESS_SEQS_MIN", 1)
    path = write_metagraph(tmp_path / "metagraph.json", validators=[{"hotkey": hotkey("v1")}])
    monkeypatch.setenv("CHAIN_SOURCE", str(path))
    log = SqliteLog(WarehouseSettings(leoma_home=tmp_path))
    for task in range(3):
        append(log, sample(task=task))
    log.close()
    archive = Archive(WarehouseSettings(leoma_home=tmp_path))
    assert call(capsys, "materialize")[0] == 0
    assert archive.manifest().texts_watermark == 2
    code, _, err = call(capsys, "materialize", "--all-texts")
    assert code == 0
    assert archive.manifest().texts_watermark == archive.manifest().submissions_watermark == 6
    assert [line.split()[0] for line in err.splitlines() if line] == ["Texts", "Submissions"]


def test_columns_of_numbers_go_to_the_right():
    assert table(["n", "who"], [[1, "ab"], [22, None]]).splitlines() == [
        " n  who",
        "--  ---",
        " 1  ab",
        "22  -",
    ]
    assert table(["n"], []).splitlines() == ["n", "-"]


def test_the_installed_command_runs():
    path = Path(sys.executable).parent / "leoma"
    assert path.stat().st_mode & stat.S_IXUSR
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("leoma ")
