"""The demo from end to end, as a person starts it: processes, signatures and Dagster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.processes import free_port
from tests.leoma_serve import running_in
from warehouse.generation import Generations, open_generation
from warehouse.settings import WarehouseSettings

LEOMA = Path(sys.executable).parent / "leoma"


@pytest.mark.parametrize("chain", ["file", "double"])
def test_the_demo_ends_with_checked_weights_and_leaves_nothing_running(tmp_path, chain):
    home = tmp_path / "home"
    # An odd setting of whoever starts it must not reach the simulated subnet.
    environment = {**os.environ, "SCORER_TASK_WINDOW": "10", "MIN_VALIDATOR_STAKE": "1000000"}
    ports = [
        *("--api-port", str(free_port(0))),
        *("--dagster-port", str(free_port(0))),
    ]
    ended = subprocess.run(
        [LEOMA, "demo", "--once", "--tasks", "12", "--home", home, "--chain", chain, *ports],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Checked: ranks and weights are what the simulated subnet must lead to." in ended.stdout
    generation = Generations(WarehouseSettings(leoma_home=home)).current()
    with open_generation(generation) as connection:
        (winner, weight), *others = connection.execute(
            "SELECT uid, weight FROM weights ORDER BY weight DESC"
        ).fetchall()
    assert (winner, weight) == (13, 1.0)
    assert {weight for _, weight in others} == {0.0}
    assert json.loads((home / "demo" / "tasks.json").read_text()) == [
        {"first": 1, "last": 12, "is_played": True}
    ]
    assert running_in(home) == []
