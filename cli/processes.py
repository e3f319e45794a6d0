"""Child processes that are started together, watched, and always stopped together."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_SECONDS = 0.1
LOG_TAIL_LINES = 25
KILLED_SECONDS_MAX = 5.0
# A courier finishes its uploads in ten seconds.
CHILD_GRACE_SECONDS = 15.0
RESTART_SECONDS_MAX = 60.0


logger = logging.getLogger(__name__)


class ProcessError(Exception):
    """A child did not start, or ended when it should not have; `tail` is the end of its log."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True)
class Child:
    """A running process, the leader of its own process group, and the file it logs to."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"Last lines of {self.log}:", *(f"  {line}" for line in lines)])


class Processes:
    """Children that end with this process, however it ends.

    Leaving the `with` block stops them: SIGTERM to each one's group, SIGKILL to what is left after
    `grace_seconds`. If this process is killed, the kernel sends them SIGTERM (`cli.leash`).
    """

    def __init__(self, logs: Path, environment: Mapping[str, str], grace_seconds: float) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._grace_seconds = grace_seconds
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all children."""
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Start `python arguments...` in a session of its own, its output in `name`.log."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            # Our own interpreter with our own arguments.
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "cli.leash", str(os.getpid()), sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def run(self, name: str, arguments: Sequence[str], timeout_seconds: float) -> None:
        """Run `python arguments...` to its end; raise `ProcessError` if it fails."""
        child = self.start(name, arguments)
        try:
            code = child.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            message = f"{name} did not end in {timeout_seconds:g} s."
            raise ProcessError(message, child.tail()) from None
        self.children.remove(child)
        if code:
            raise ProcessError(f"{name} failed with exit code {code}.", child.tail())

    def check(self) -> None:
        """Raise `ProcessError` if a child has ended."""
        for child in self.children:
            if (code := child.process.poll()) is not None:
                raise ProcessError(f"{child.name} ended with exit code {code}.", child.tail())

    def wait_until(
        self, child: Child, what: str, is_so: Callable[[], bool], timeout_seconds: float
    ) -> None:
        """Wait until `is_so()`; raise `ProcessError` on a timeout or when a child ends before."""
        deadline = time.monotonic() + timeout_seconds
        while not is_so():
            self.check()
            if time.monotonic() > deadline:
                raise ProcessError(f"Not within {timeout_seconds:g} s: {what}.", child.tail())
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop all children and everything that they started."""
        groups = [child.process.pid for child in self.children]
        for group in groups:
            _signal_group(group, signal.SIGTERM)
        if not self._gone(groups, self._grace_seconds):
            for group in groups:
                _signal_group(group, signal.SIGKILL)
            self._gone(groups, KILLED_SECONDS_MAX)
        for child in self.children:
            # It has ended or was killed: this only takes its exit code.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(KILLED_SECONDS_MAX)
        self.children.clear()

    def _gone(self, groups: Sequence[int], timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while True:
            if not running_groups() & set(groups):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)


def running_groups() -> set[int]:
    """Return the ids of all process groups with a process that is not a zombie (Linux)."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The name before the last parenthesis may hold anything, spaces too.
            state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                found.add(int(group))
    return found


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def free_port(preferred: int) -> int:
    """Return `preferred` if nobody listens there on loopback, else a port that is free."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: a port that was just given up is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise ProcessError("no port is free on loopback")


@contextlib.contextmanager
def kept_running(arguments: Sequence[str]) -> Iterator[None]:
    """Keep `leoma arguments...` running beside this process, with the same output.

    A child that ends is started again after ever longer waits. Leaving the `with` block ends it;
    if this process is killed, the kernel sends it SIGTERM (`cli.leash`).
    """
    stopping = threading.Event()
    # The kernel's parent of a child is a thread: this one lives as long as it is to run.
    thread = threading.Thread(target=_keep_running, args=(arguments, stopping), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _keep_running(arguments: Sequence[str], stopping: threading.Event) -> None:
    failures = 0
    while not stopping.is_set():
        begun = time.monotonic()
        try:
            ended = f"ended with exit code {_run_beside(arguments, stopping)}"
        except OSError as error:
            ended = f"cannot be started: {error}"
        failures = 0 if time.monotonic() - begun > RESTART_SECONDS_MAX else failures + 1
        delay_seconds = min(2.0 ** min(failures, 10), RESTART_SECONDS_MAX)
        if not stopping.is_set():
            logger.warning("leoma %s %s; again in %g s", arguments[0], ended, delay_seconds)
        stopping.wait(delay_seconds)


def _run_beside(arguments: Sequence[str], stopping: threading.Event) -> int:
    """Run `leoma arguments...` until it ends or is to end; return its exit code."""
    command = [sys.executable, "-m", "cli.leash", str(os.getpid())]
    command += [sys.executable, "-m", "cli.main", *arguments]
    # Our own interpreter with our own arguments.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    while process.poll() is None and not stopping.wait(POLL_SECONDS):
        pass
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(CHILD_GRACE_SECONDS)
    process.kill()
    return process.wait(KILLED_SECONDS_MAX)


class StopRequested(BaseException):
    """Somebody asked this process to end: Ctrl-C, SIGTERM, or the terminal was closed.

    Like `KeyboardInterrupt` it is no error, and is not caught as one.
    """


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Raise `StopRequested` at the first signal; ignore further ones, so that cleaning up ends."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(_number: int, _frame: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise StopRequested

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
