"""Reading SCALE, as the chain stores it: strict, and never more work than the bytes are worth.

A number of items that the bytes cannot hold is an error before the first of them is read: bytes
that are read as something else than they are seem to announce a thousand million items. Types that
only the runtime's metadata knows are for the library.
"""

from collections.abc import Callable
from typing import TypeVar

Item = TypeVar("Item")


class ScaleError(ValueError):
    """The bytes are not what they were read as."""


class ScaleReader:
    """Reads values off bytes, one after the other; each raises `ScaleError` if it is not there."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._offset = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._content) - self._offset

    def take(self, count: int) -> bytes:
        """Return the next bytes, exactly so many."""
        if count > self.left:
            raise ScaleError(f"{count} bytes are announced and {self.left} are there")
        self._offset += count
        return self._content[self._offset - count : self._offset]

    def unsigned(self, bits: int) -> int:
        """Return a number of fixed width."""
        return int.from_bytes(self.take(bits // 8), "little")

    def compact(self) -> int:
        """Return a number of variable width: the lowest two bits say how many bytes it has."""
        first = self.unsigned(8)
        mode = first & 3
        if mode == 3:
            return int.from_bytes(self.take((first >> 2) + 4), "little")
        rest = int.from_bytes(self.take((1 << mode) - 1), "little")
        return (rest << 8 | first) >> 2

    def flag(self) -> bool:
        """Return a truth value."""
        value = self.unsigned(8)
        if value > 1:
            raise ScaleError(f"{value} is neither true nor false")
        return value == 1

    def blob(self) -> bytes:
        """Return bytes behind their number."""
        return self.take(self.compact())

    def vector(self, item: Callable[[], Item]) -> list[Item]:
        """Return what `item` reads, as often as the number before it says."""
        count = self.compact()
        # No item takes less than a byte.
        if count > self.left:
            raise ScaleError(f"{count} items are announced and {self.left} bytes are there")
        return [item() for _ in range(count)]

    def end(self) -> None:
        """Refuse bytes that nobody read."""
        if self.left:
            raise ScaleError(f"{self.left} bytes too many")
