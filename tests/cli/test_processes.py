"""Real child processes: started, watched, and gone afterwards."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cli.processes import (
    ProcessError,
    Processes,
    StopRequested,
    free_port,
    running_groups,
    stop_signals,
)

FOREVER = "import time; print('up', flush=True); time.sleep(600)"
# Ignores SIGTERM, and so does the child that it starts in its group.
STUBBORN = (
    "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('up', flush=True); c.wait()"
)


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path, os.environ, grace_seconds=1) as made:
        yield made


def start(processes, name, code):
    child = processes.start(name, ["-c", code])
    processes.wait_until(child, "it is up", lambda: "up" in child.log.read_text(), 20)
    return child


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_children_end_with_the_block(tmp_path):
    with Processes(tmp_path, os.environ, grace_seconds=5) as processes:
        groups = {start(processes, name, FOREVER).process.pid for name in ("one", "two")}
        assert groups <= running_groups()
    assert not groups & running_groups()


def test_children_end_when_the_block_fails(tmp_path):
    groups = []

    def fail() -> None:
        with Processes(tmp_path, os.environ, 5) as processes:
            groups.append(start(processes, "one", FOREVER).process.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert groups[0] not in running_groups()


def test_what_ignores_sigterm_is_killed_with_its_children(processes):
    group = start(processes, "stubborn", STUBBORN).process.pid
    processes.stop()
    assert group not in running_groups()


def test_children_do_not_outlive_a_starter_that_is_killed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from cli.processes import Processes;"
        f"p = Processes(Path({str(tmp_path)!r}), os.environ, 5);"
        f"print(p.start('orphan', ['-c', {FOREVER!r}]).process.pid, flush=True); sys.stdin.read()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with starter:
        group = int(starter.stdout.readline())
        wait_for(lambda: "up" in (tmp_path / "orphan.log").read_text())
        starter.kill()
    wait_for(lambda: group not in running_groups())


def test_a_child_that_ends_is_noticed_with_the_end_of_its_log(processes):
    child = processes.start("short", ["-c", "print('line\\n' * 50 + 'the reason'); exit(3)"])
    with pytest.raises(ProcessError, match="short ended with exit code 3") as caught:
        processes.wait_until(child, "never", lambda: False, 20)
    assert caught.value.tail.splitlines()[-1].strip() == "the reason"
    assert len(caught.value.tail.splitlines()) == 26


def test_a_wait_ends(processes):
    child = start(processes, "slow", FOREVER)
    with pytest.raises(ProcessError, match=r"Not within 0.2 s: it answers"):
        processes.wait_until(child, "it answers", lambda: False, 0.2)


def test_a_command_is_run_to_its_end(processes):
    processes.run("good", ["-c", "print(1)"], 20)
    assert processes.children == []
    with pytest.raises(ProcessError, match="bad failed with exit code 4"):
        processes.run("bad", ["-c", "exit(4)"], 20)


def test_a_command_that_hangs_is_given_up(processes):
    with pytest.raises(ProcessError, match=r"hangs did not end in 0\.5 s"):
        processes.run("hangs", ["-c", FOREVER], 0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_to_stop_once(number):
    before = signal.getsignal(number)
    with stop_signals():
        with pytest.raises(StopRequested):
            signal.raise_signal(number)
        signal.raise_signal(number)  # while things are stopped, a second one does no harm
    assert signal.getsignal(number) is before


def test_a_taken_port_is_replaced_by_a_free_one():
    preferred = free_port(0)
    assert free_port(preferred) == preferred
    with socket.create_server(("127.0.0.1", preferred)):
        other = free_port(preferred)
        assert other not in (0, preferred)
