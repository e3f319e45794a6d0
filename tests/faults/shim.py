"""The preloaded library from Python: built, told what to do, and its journal read."""

import contextlib
import ctypes
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")
TREE = SOURCE.parents[2]
# The order is that of `enum kind` in shim.c.
KINDS = (
    "write", "truncate", "sync", "create", "rename", "unlink", "mkdir", "symlink", "link", "rmdir",
    "open_read", "open_write", "mark",
)  # fmt: skip
MODES = ("not_applied", "applied", "torn", "killed")
# What changes a disk. Opens fail for want of handles and are asked for by name.
CHANGES = KINDS[: KINDS.index("open_read")]
# Of a child as a whole, and of each case in it.
CHILD_SECONDS_MAX, CASE_SECONDS_MAX = 600, 10

COUNTERS = struct.Struct("<16QQQ")
PLAN = struct.Struct("<QIIiIiI")
HIT = struct.Struct("<II512s")
CLOCK = struct.Struct("<q")
CLOCK_AT = COUNTERS.size + PLAN.size + HIT.size
RECORD = struct.Struct("<IIQQIIQ")


@dataclass(frozen=True)
class Fault:
    """The operation that is to fail: the `nth` (from 1) of these kinds, in this way."""

    nth: int
    mode: str = "not_applied"
    error: int = 5
    kinds: tuple[str, ...] = CHANGES


@dataclass(frozen=True)
class Operation:
    """One line of the journal. `offset` is the new length of a truncated file."""

    kind: str
    is_applied: bool
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


def bits(kinds):
    return sum(1 << KINDS.index(kind) for kind in kinds)


class Control:
    """The page that a test and all its shimmed processes share."""

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.exists():
            self.path.write_bytes(bytes(mmap.PAGESIZE))
        with self.path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.lasting, self.lasting_error, self.syncs_lie = (), 0, False

    def plan(self, fault):
        """Count from 0 again, and let one operation fail (or none)."""
        COUNTERS.pack_into(self._page, 0, *[0] * 18)
        HIT.pack_into(self._page, COUNTERS.size + PLAN.size, 0, 0, b"")
        self._tell(fault)

    def fail_from_now_on(self, kinds, error):
        """Let every operation of these kinds fail until `heal`."""
        self.lasting, self.lasting_error = tuple(kinds), error
        self._tell(None)

    def heal(self):
        self.fail_from_now_on((), 0)

    def set_clock(self, seconds):
        """Have all processes' clock ahead of the machine's, or behind it."""
        CLOCK.pack_into(self._page, CLOCK_AT, seconds)

    @property
    def clock_seconds(self):
        return CLOCK.unpack_from(self._page, CLOCK_AT)[0]

    def lie_about_syncs(self):
        """A sync says yes and does nothing, as a log without syncs would."""
        self.syncs_lie = True
        self._tell(None)

    def _tell(self, fault):
        fault = fault or Fault(nth=0, kinds=())
        PLAN.pack_into(
            self._page, COUNTERS.size, fault.nth, bits(fault.kinds), MODES.index(fault.mode),
            fault.error, bits(self.lasting), self.lasting_error, int(self.syncs_lie),
        )  # fmt: skip

    @property
    def seen(self):
        """Return how many operations of each kind there were since the last plan."""
        return dict(zip(KINDS, COUNTERS.unpack_from(self._page, 0), strict=False))

    @property
    def injected(self):
        return COUNTERS.unpack_from(self._page, 0)[17]

    @property
    def hit(self):
        """Return kind and path of the operation that failed last, None before."""
        if not self.injected:
            return None
        kind, _, path = HIT.unpack_from(self._page, COUNTERS.size + PLAN.size)
        return KINDS[kind], path.rstrip(b"\0").decode()

    def close(self):
        self._page.close()


def build(directory):
    """Compile the library; skip the test where nothing can."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here (cc, gcc, clang): the fault layer cannot be built")
    library = directory / "shim.so"
    command = [compiler, "-O2", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra"]
    built = subprocess.run(
        [*command, "-Werror", "-o", str(library), str(SOURCE)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return library


def environment(library, root, control):
    """Return what a process needs so that its files below `root` are the shim's."""
    return {
        "LD_PRELOAD": str(library),
        "LEOMA_FAULT_ROOT": str(root),
        "LEOMA_FAULT_CONTROL": str(control),
    }


def run_child(library, root, work, module, *, is_killed=False, **task):
    """Run one of the child programs under the shim; return what it reported.

    None where it `is_killed` by a fault, as it must be then.

    `root` is where faults happen; `work` is beside it, for control page, journal and ledgers.
    """
    task = {**task, "root": str(root), "work": str(work)}
    control = Control(work / "control")
    control.close()
    (work / "task.json").write_text(json.dumps(task))
    finished = subprocess.run(
        [sys.executable, "-m", module, str(work / "task.json")],
        cwd=TREE,
        env={**os.environ, **environment(library, root, work / "control")},
        capture_output=True, text=True, check=False,
        timeout=CHILD_SECONDS_MAX + CASE_SECONDS_MAX * len(task.get("cases", ())),
    )  # fmt: skip
    if is_killed:
        assert finished.returncode == -signal.SIGKILL, finished.stderr
        return None
    assert finished.returncode == 0, finished.stderr
    return json.loads((work / "report.json").read_text())


class Inside:
    """The shim as the shimmed process itself sees it."""

    def __init__(self, work):
        self.control = Control(work / "control")
        self._library = ctypes.CDLL(None)
        # Raises where the library is not preloaded: a test without faults would prove nothing.
        self._mark = self._library.leoma_fault_mark
        self._journal = self._library.leoma_fault_journal

    def mark(self, text):
        self._mark(text.encode())

    @contextlib.contextmanager
    def journal(self, path):
        self._journal(str(path).encode())
        try:
            yield
        finally:
            self._journal(None)


def read_journal(path):
    """Return all operations of a journal, in the order in which they happened."""
    content = memoryview(Path(path).read_bytes())
    operations, at = [], 0
    while at < len(content):
        kind, is_applied, inode, offset, *sizes = RECORD.unpack_from(content, at)
        at += RECORD.size
        name, other, data = (
            bytes(content[at + sum(sizes[:n]) : at + sum(sizes[: n + 1])]) for n in range(3)
        )
        at += sum(sizes)
        operations.append(
            Operation(
                KINDS[kind], bool(is_applied), inode, offset, name.decode(), other.decode(), data
            )
        )
    return operations
