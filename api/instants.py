"""Instants: integer UTC milliseconds inside, ISO 8601 text with milliseconds and Z outside."""

import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
UNIX_SECONDS = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)


def now_ms() -> int:
    """Return the server's clock."""
    return time.time_ns() // 1_000_000


# All samples of a batch were received at the same instant.
@lru_cache(1_024)
def iso8601(instant_ms: int) -> str:
    """Return `2026-11-22T10:00:00.123Z`."""
    seconds, milliseconds = divmod(instant_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def iso8601_or_none(instant_ms: int | None) -> str | None:
    """Return the text of an instant that may be missing."""
    return None if instant_ms is None else iso8601(instant_ms)


def parse_instant_ms(text: str) -> int:
    """Return the instant of ISO 8601 text (UTC where it names no zone) or of Unix seconds.

    Raises `ValueError` for anything else.
    """
    if UNIX_SECONDS.fullmatch(text):
        return int(Decimal(text) * 1000)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        # A `+` that was not percent-encoded arrives as a space.
        parsed = datetime.fromisoformat(text.replace(" ", "+"))
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    # Exact: as a float many an instant is the millisecond before.
    return (aware - EPOCH) // MILLISECOND
