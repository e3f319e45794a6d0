"""How many requests a second an address or a hotkey may put, counted by all workers together.

Each has a line of credit that refills evenly (GCRA): one number, the instant at which it would be
full again, says all. The numbers lie in a small file that every worker of the machine maps. It is
not truth and not synced: whoever deletes it gives everybody a full line.
"""

import hashlib
import logging
import mmap
import os
import struct
import time
from functools import lru_cache
from pathlib import Path

from warehouse.files import locked, temporary_beside

# Sets of slots: a key has its place in one set. 65,536 keys take 1 MiB.
SETS, SLOTS = 8_192, 8
SLOT = struct.Struct("<QQ")  # key, nanoseconds at which its line is full
SET = struct.Struct(f"<{2 * SLOTS}Q")
MAGIC = b"leoma rates 1\n\0\0"
SECRET_BYTES = 16
HEADER_BYTES = 64
FILE_BYTES = HEADER_BYTES + SETS * SET.size
CREATED_SECONDS_MAX = 5.0
KEYS_KEPT = 8_192

logger = logging.getLogger(__name__)


class Rates:
    """Lines of credit, shared with whoever else maps `path`. Not for several threads.

    Where the file cannot be had, this worker counts alone, and says so in the log: a disk that is
    full must not stop the reading of what is there. Two workers that grant at the same instant may
    both grant: that one request more is cheaper than a lock a request.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._table = _mapped(path)
        except (OSError, ValueError) as error:
            logger.warning("rates are counted by each worker alone: %s", error)
            self._table = mmap.mmap(-1, FILE_BYTES)
            self._table[: len(MAGIC) + SECRET_BYTES] = MAGIC + os.urandom(SECRET_BYTES)
        secret = self._table[len(MAGIC) : len(MAGIC) + SECRET_BYTES]

        # Keyed, so that nobody finds an address that shares a line with somebody else's.
        def key_of(name: str) -> int:
            digest = hashlib.blake2b(name.encode(), digest_size=8, key=secret).digest()
            return int.from_bytes(digest, "little") or 1

        self._key_of = lru_cache(KEYS_KEPT)(key_of)

    def wait_seconds(self, name: str, per_second: float, burst: int, cost: int = 1) -> float:
        """Take `cost` from a line; return 0, or how long it takes until there is as much to take.

        `burst` is what a full line holds; what costs more takes all of it. A request that is
        refused costs nothing.
        """
        key = self._key_of(name)
        now = time.monotonic_ns()
        interval = int(1e9 / per_second)
        start = HEADER_BYTES + key % SETS * SET.size
        numbers = SET.unpack_from(self._table, start)
        slot, full_at = _found(numbers, key, now)
        # The clock begins anew with the machine: what lies further ahead is from before.
        if not now < full_at <= now + burst * interval:
            full_at = now
        cost = min(cost, burst)
        ahead = full_at + (cost - burst) * interval - now
        if ahead > 0:
            return ahead / 1e9
        SLOT.pack_into(self._table, start + slot * SLOT.size, key, full_at + cost * interval)
        return 0.0

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()


def _found(numbers: tuple[int, ...], key: int, now: int) -> tuple[int, int]:
    """Return a key's slot in its set and its instant; for a new one the slot to take, and now.

    A line that is full needs no slot. When none is, the fullest one goes, whose owner loses least.
    """
    keys, instants = numbers[::2], numbers[1::2]
    if key in keys:
        slot = keys.index(key)
        return slot, instants[slot]
    return min(range(SLOTS), key=instants.__getitem__), now


def _mapped(path: Path) -> mmap.mmap:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock"), CREATED_SECONDS_MAX):
        if not _is_whole(path):
            temporary = temporary_beside(path)
            try:
                with temporary.open("wb") as file:
                    # With its blocks: on a full disk a hole would end the process when written to.
                    os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
                    file.write(MAGIC + os.urandom(SECRET_BYTES))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), FILE_BYTES)


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC and os.fstat(file.fileno()).st_size == FILE_BYTES
    except FileNotFoundError:
        return False
