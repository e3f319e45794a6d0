"""`leoma serve` as a real process with real workers, for tests that kill it or load it."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import httpx
import psutil

START_SECONDS_MAX = 60


def lasting_port():
    """Return a free port that no client's end of a connection gets while the server is down."""
    while True:
        port = random.randrange(20_000, 32_000)  # below what the kernel gives to clients
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def spawned_by(pid):
    """Return the processes below one that multiprocessing made: uvicorn's workers, Dagster's runs.

    Dagster's runs start others, which look like them for a moment: these are not among them.
    """
    found = {}
    for one in psutil.Process(pid).children(recursive=True):
        # One that was killed just now may not be buried yet.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(one.cmdline()) and one.ppid() not in found:
                found[one.pid] = one
    return list(found.values())


def running_in(home):
    """Return all processes that have the home in their environment: whatever belongs to it."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get("LEOMA_HOME") == str(home):
                found.append(one)
    return found


class LeomaServe:
    """Two workers in a process group of their own, on one port for all their lives."""

    def __init__(self, home, workers=2, log=None, **settings):
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.workers = workers
        self.log = log  # a file for what it says; else it says it to ours
        self.environment = {**os.environ, "LEOMA_HOME": str(home), **settings}
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "cli.main", "serve", "--workers", str(self.workers)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--log-level", "error"],
            env=self.environment,
            stderr=self.log,
            start_new_session=True,
        )

    def wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        with httpx.Client(trust_env=False) as http:
            while True:
                assert self.process.poll() is None, "the API ended"
                assert time.monotonic() < deadline, "the API did not start"
                try:
                    if http.get(f"{self.url}/health/ready").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.05)

    def wait_until_all_are_ready(self):
        """Wait for every worker."""
        self.wait_until_ready()
        deadline = time.monotonic() + START_SECONDS_MAX
        while len(self.serving()) < self.workers:
            assert time.monotonic() < deadline, "not all workers started"
            time.sleep(0.05)

    def serving(self):
        """Return the workers that have a generation open and listen, which comes last."""
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                has_tables = any(file.path.endswith(".duckdb") for file in one.open_files())
                if has_tables and any(
                    each.status == psutil.CONN_LISTEN for each in one.net_connections()
                ):
                    found.append(one)
        return found

    def kill(self):
        """End everything at once, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
