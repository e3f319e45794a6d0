"""`leoma serve` as a process: several workers that stop together, however the first one ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from cli.processes import free_port, running_groups

LEOMA = Path(sys.executable).parent / "leoma"


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def serving(tmp_path):
    """Two workers in a process group of their own; yields the supervisor and its URL."""
    port = free_port(0)
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [LEOMA, "serve", "--port", str(port), "--workers", "2"],
            env={**os.environ, "LEOMA_HOME": str(tmp_path)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(lambda: is_alive(f"http://127.0.0.1:{port}"))
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.pid in running_groups():
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_sigterm_stops_all_workers_cleanly(serving):
    process, url = serving
    process.terminate()
    assert process.wait(20) == 0
    # Workers end before it; multiprocessing's resource tracker ends when it sees that all are gone.
    wait_for(lambda: process.pid not in running_groups())
    assert not is_alive(url)


def test_workers_end_when_their_supervisor_is_killed(serving):
    process, url = serving
    process.kill()
    process.wait(10)
    wait_for(lambda: process.pid not in running_groups())
    assert not is_alive(url)
