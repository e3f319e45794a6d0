"""A clock that was set back: instants of before lie in the future then."""

import time

# Clocks of machines that work together differ, and are set by as much every day.
DIFFERENCE_MS_MAX = 60_000


def is_ahead(instant_ms: int, now_ms: int | None = None) -> bool:
    """Tell whether an instant lies so far in the future that the clock was set back since.

    Nothing is later for being of before: what was read or made after it is newer.
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    return instant_ms > now_ms + DIFFERENCE_MS_MAX
