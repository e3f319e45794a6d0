"""The bucket's current generation, brought to this machine. `leoma courier` runs it.

API workers follow the local pointer, and know nothing of a bucket: through an outage they go on
serving what was brought last. When the bucket answered last is noted beside the pointer (`looks`).
"""

import logging
from threading import Event

from api.looks import note_answer
from warehouse.bucket import follow
from warehouse.files import LockTimeoutError, locked
from warehouse.generation import GenerationError, Generations
from warehouse.objects import ObjectStorageError, ObjectStore
from warehouse.settings import WarehouseSettings

# One process of a machine asks the bucket; the others would only ask the same again.
TURN_SECONDS_MAX = 0.05
# The longest wait after failures.
WAIT_SECONDS_MAX = 60.0
EXPONENT_MAX = 10

logger = logging.getLogger(__name__)


class Follower:
    """Looks at the bucket's pointer every WAREHOUSE_POLL_SECONDS, and brings what is new."""

    def __init__(self, settings: WarehouseSettings) -> None:
        if settings.warehouse_bucket is None:
            raise ValueError("WAREHOUSE_URL is not a bucket")
        self._settings = settings
        self._store = ObjectStore(settings, *settings.warehouse_bucket, access="read")
        self._generations = Generations(settings)
        self._seen: str | None = None
        self.problem: str | None = None
        self._failures = 0

    def run(self, stopping: Event) -> None:
        """Follow until `stopping` is set. Whatever fails is tried again."""
        directory = self._settings.warehouse_path
        while not stopping.is_set():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                with locked(directory / "follow.lock", TURN_SECONDS_MAX):
                    while not stopping.is_set():
                        self.look()
                        stopping.wait(self._wait_seconds())
            except LockTimeoutError:
                stopping.wait(self._settings.warehouse_poll_seconds)
            except OSError as error:
                logger.error("the bucket cannot be followed: %s", error)  # noqa: TRY400
                stopping.wait(self._settings.warehouse_poll_seconds)
        self._store.close()

    def _wait_seconds(self) -> float:
        """Return when to look again: later after each failure, as each may have cost a download."""
        poll_seconds = self._settings.warehouse_poll_seconds
        factor = 2.0 ** min(self._failures, EXPONENT_MAX)
        return min(poll_seconds * factor, max(poll_seconds, WAIT_SECONDS_MAX))

    def look(self) -> None:
        """Look once; note how it went."""
        problem = None
        try:
            self._seen = follow(self._store, self._generations, self._seen)
        except (ObjectStorageError, GenerationError, LockTimeoutError) as error:
            problem = str(error)
        except Exception as error:
            # The uploads beside this must not end for what somebody put into the bucket.
            problem = f"a defect: {type(error).__name__}"
            if problem != self.problem:
                logger.exception("a defect")
        self._failures = self._failures + 1 if problem else 0
        if problem != self.problem:
            log = logger.error if problem else logger.info
            log("%s", problem or f"{self._store.url} answers again")
        self.problem = problem
        if problem is None:
            note_answer(self._settings)
