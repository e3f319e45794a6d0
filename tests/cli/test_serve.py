"""`leoma serve` as a process: several workers that stop together, however the first one ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from cli.processes import free_port, running_groups

LEOMA = Path(sys.executable).parent / "leoma"
CONNECTIONS = 120


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


def held(process, port, status):
    """Return how many connections of a port each worker has, of those that have any."""
    workers = psutil.Process(process.pid).children(recursive=True)
    counts = [
        sum(one.laddr.port == port and one.status == status for one in worker.net_connections())
        for worker in workers
    ]
    return sorted(filter(None, counts))


def test_workers_share_the_connections(serving):
    process, url = serving
    port = httpx.URL(url).port
    wait_for(lambda: held(process, port, "LISTEN") == [1, 1])
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_for(lambda: sum(held(process, port, "ESTABLISHED")) >= CONNECTIONS)
        few, many = held(process, port, "ESTABLISHED")
    # Each would have a half of them by a toss of a coin; less than a third is one of 20,000 cases.
    assert few >= CONNECTIONS // 3, (few, many)


def test_a_port_that_another_service_shares_out_is_refused(serving, tmp_path):
    _, url = serving
    port = str(httpx.URL(url).port)
    ended = subprocess.run(
        [LEOMA, "serve", "--port", port, "--workers", "2"],
        env={**os.environ, "LEOMA_HOME": str(tmp_path / "another")},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "cannot listen on" in ended.stderr
