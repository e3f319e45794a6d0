import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test

from cli.orchestration import (
    LOCATION,
    dagster,
    dagster_home,
    fail_orphaned_runs,
    workspace_options,
)
from cli.processes import Processes
from pipelines.jobs import WORK


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LEOMA_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", "")  # as if unset, and restored after the test
    return tmp_path / "dagster"


def test_dagsters_home_is_made_with_our_settings(home):
    assert dagster_home() == home
    settings = yaml.safe_load((home / "dagster.yaml").read_text())
    assert settings["telemetry"] == {"enabled": False}
    with DagsterInstance.from_config(str(home)) as instance:
        assert instance.telemetry_enabled is False
        assert instance.run_monitoring_enabled
        queue = instance.get_concurrency_config().run_queue_config
        # The chain is read beside the runs that publish; of these there is one at a time.
        assert queue.max_concurrent_runs > 1
        assert queue.tag_concurrency_limits == [
            {"key": WORK, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
        ]


def test_an_operators_own_settings_stay(home, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    assert dagster_home() == tmp_path / "elsewhere"
    assert "run_monitoring" not in (tmp_path / "elsewhere" / "dagster.yaml").read_text()


def test_processes_that_start_together_do_not_break_dagsters_tables(home, tmp_path):
    code = "from cli.orchestration import dagster_home; dagster_home()"
    with (
        Processes(tmp_path, {"LEOMA_HOME": str(tmp_path)}, 5) as processes,
        ThreadPoolExecutor(3) as pool,
    ):
        started = [processes.start(f"home-{number}", ["-c", code]) for number in range(3)]
        codes = list(pool.map(lambda child: child.process.wait(60), started))
    assert codes == [0, 0, 0]
    with DagsterInstance.from_config(str(dagster_home())) as instance:
        assert instance.get_runs_count() == 0


def test_runs_of_a_killed_code_server_do_not_block_the_queue(home):
    with DagsterInstance.from_config(str(dagster_home())) as instance:
        begun = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
        ended = create_run_for_test(instance, status=DagsterRunStatus.SUCCESS)
        assert fail_orphaned_runs() == 1
        assert instance.get_run_by_id(begun.run_id).status is DagsterRunStatus.FAILURE
        assert instance.get_run_by_id(ended.run_id).status is DagsterRunStatus.SUCCESS
    assert fail_orphaned_runs() == 0


def test_the_location_keeps_its_name_when_the_port_changes(home):
    for port in (4000, 4001):
        _, path = workspace_options("127.0.0.1", port)
        (entry,) = yaml.safe_load(Path(path).read_text())["load_from"]
        assert entry["grpc_server"] == {
            "host": "127.0.0.1",
            "port": port,
            "location_name": LOCATION,
        }


AUTOGROUP = Path("/proc/self/autogroup")


def priority_of(nice, *, is_leader):
    """The niceness of a process that gave way, and what the kernel says of its session's group."""
    code = (
        "import os, pathlib; from cli.orchestration import give_way; "
        f"give_way({nice}); print(os.nice(0)); print(pathlib.Path('{AUTOGROUP}').read_text())"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=is_leader, timeout=60
    )
    own, _, group = ended.stdout.partition("\n")
    return own, group.strip()


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no groups of sessions")
def test_runs_give_way_to_others_of_their_session_and_to_other_sessions():
    own, group = priority_of(7, is_leader=True)
    assert own == str(os.nice(0) + 7)
    # Nothing is said of a session that began before the kernel made groups, or in a cgroup.
    assert group == "" or group.endswith(" nice 7")
    # Who shares a session must not slow down the others in it.
    before = AUTOGROUP.read_text().strip()
    assert priority_of(7, is_leader=False) == (own, before)
    assert AUTOGROUP.read_text().strip() == before


def test_dagsters_logs_have_the_form_of_ours(home, monkeypatch):
    made = []
    monkeypatch.setattr("os.execv", lambda _, command: made.append(command))
    monkeypatch.setenv("LOG_FORMAT", "json")
    for command in (["daemon"], ["webserver"]):
        CliRunner().invoke(dagster, command)
    assert [command[-2:] for command in made] == [["--log-format", "json"]] * 2
