"""When the bucket of the warehouse answered last: noted by `leoma courier`, told by /health.

A file beside the local pointer, so that API workers need no S3 library to know.
"""

import json
import time

from warehouse.files import write_durably
from warehouse.settings import WarehouseSettings

NAME = "bucket.json"


def note_answer(settings: WarehouseSettings) -> None:
    """Note that the bucket answered just now."""
    noted = {"answered_at_ms": time.time_ns() // 1_000_000}
    write_durably(settings.warehouse_path / NAME, json.dumps(noted).encode())


def answered_at_ms(settings: WarehouseSettings) -> int:
    """Return when the bucket answered last (UTC ms), 0 if that is not known."""
    try:
        noted = json.loads((settings.warehouse_path / NAME).read_bytes())["answered_at_ms"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return noted if isinstance(noted, int) else 0
