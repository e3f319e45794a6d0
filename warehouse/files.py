"""Files that survive a power cut, and a lock between processes; not what is in them."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

# How often a waiting process looks whether a lock is free. Two workers hand the log's lock to each
# other at every commit: at 2 ms they took in 10,700 samples/s, at 0.5 ms 13,700; at 0.2 ms and less
# looking takes more than is gained.
LOCK_POLL_SECONDS = 0.0005
# A sync of much at once holds up everybody else's: while 60 MB were written, that of 200 kB took
# 25 ms in one piece, and 5 ms in pieces of 2 MiB.
SYNC_BYTES = 2 * 2**20
# A leftover of a process that was killed is not touched while its writer may still be at work.
LEFTOVER_AGE_SECONDS_MIN = 3_600


class LockTimeoutError(TimeoutError):
    """Another process holds the lock for longer than the caller would wait."""


def fsync_path(path: Path) -> None:
    """Make a file's content, or a directory's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Have a directory; its name, and those of all that lead to it, survive a power cut."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        fsync_path(one.parent)


def replace_durably(temporary: Path, final: Path) -> None:
    """Give a finished file its final name; on return name and content survive a power cut."""
    fsync_path(temporary)
    temporary.replace(final)
    fsync_path(final.parent)


def write_durably(final: Path, content: bytes) -> None:
    """Replace `final` by `content`: readers see the old or the new, never a part."""
    temporary = temporary_beside(final)
    try:
        with temporary.open("wb") as file, memoryview(content) as view:
            for start in range(0, max(len(content), 1), SYNC_BYTES):
                if start:
                    file.flush()
                    os.fdatasync(file.fileno())
                file.write(view[start : start + SYNC_BYTES])
        replace_durably(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(final: Path) -> Path:
    """Return a name in the same directory that no other writer uses and that readers ignore."""
    return final.with_name(f".{final.name}.{os.getpid()}-{uuid4().hex[:8]}.tmp")


def remove_leftovers(directory: Path) -> int:
    """Remove the temporary files of writers that were killed, wherever below; return how many."""
    removed = 0
    for path in directory.rglob(".*.tmp*"):
        # Its writer may just have given it its name.
        with contextlib.suppress(FileNotFoundError):
            # The file's own age: a link to a file that is gone goes, too.
            if time.time() - path.lstat().st_mtime > LEFTOVER_AGE_SECONDS_MIN:
                path.unlink()
                removed += 1
    return removed


@contextlib.contextmanager
def locked(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel drops it when the holder dies."""
    descriptor = _locked(path, timeout_seconds, time.monotonic() + timeout_seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def next_lock_path(path: Path) -> Path:
    """Return the lock of who gets the lock at `path` next."""
    return path.with_name(path.name + ".next")


@contextlib.contextmanager
def locked_in_turn(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold such a lock; who had it last does not get it again before somebody who waits for it.

    A second lock belongs to whoever is next. Who lets go of the first one and wants it again finds
    the second one taken, where `locked` would have it back before others look the next time. Who
    of several others is next is chance.
    """
    deadline = time.monotonic() + timeout_seconds
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as waiting:
            waiting.callback(os.close, _locked(next_lock_path(path), timeout_seconds, deadline))
            held.callback(os.close, _locked(path, timeout_seconds, deadline))
        yield


def _locked(path: Path, timeout_seconds: float, deadline: float) -> int:
    """Return a descriptor that has the lock for as long as it is open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeoutError(
                        f"{path} has been locked by another process for {timeout_seconds:g} s"
                    ) from None
                time.sleep(LOCK_POLL_SECONDS)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
