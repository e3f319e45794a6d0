"""The current generation as this worker serves it, and the thread that follows the pointer.

A snapshot is loaded whole before anybody sees it, and then one reference is replaced: a request
that took a snapshot finishes on it. What is asked often is rendered here once; what is asked for
one hotkey is rendered on demand and kept in a cache bounded by bytes.
"""

import logging
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, NamedTuple

import duckdb
import orjson

from api import rendering
from api.caching import RenderedAnswers
from api.errors import NotReadyError
from api.settings import ApiSettings
from warehouse.generation import (
    Generation,
    GenerationError,
    Generations,
    archived_files,
    open_generation,
)

REMEDY = "`leoma materialize` makes a new one"

logger = logging.getLogger(__name__)


class Validator(NamedTuple):
    """A validator of the metagraph snapshot."""

    stake_rao: int
    is_registered: bool


class Snapshot:
    """One generation, loaded. Threads share it; of all that it tells nothing ever changes.

    Raises `duckdb.Error`, `GenerationError` or `ValueError` when the file is no whole generation.
    """

    def __init__(self, generation: Generation) -> None:
        # Never closed by hand: requests may still read. It closes with the last reference.
        self._connection = connection = open_generation(generation)
        self._path, self._size = generation.path, generation.path.stat().st_size
        self._damage: str | None = None
        row = rendering.generation_row(connection)
        if row["snapshot_id"] != generation.snapshot_id:
            raise ValueError(f"the file of {generation.snapshot_id} holds {row['snapshot_id']}")
        self.snapshot_id = generation.snapshot_id
        self.etag = f'"{generation.snapshot_id}"'
        self.computed_at_ms: int = row["computed_at_ms"]
        self.valid_until_ms: int = row["valid_until_ms"]
        self.metagraph_synced_at_ms: int = row["metagraph_synced_at_ms"]
        validators = connection.execute("SELECT hotkey, stake_rao, is_registered FROM validators")
        self.validators = {
            hotkey: Validator(stake_rao, is_registered)
            for hotkey, stake_rao, is_registered in validators.fetchall()
        }
        self.blacklisted = frozenset(
            hotkey for (hotkey,) in connection.execute("SELECT hotkey FROM blacklist").fetchall()
        )
        miners = rendering.miners(connection)
        self.miners = {miner["hotkey"]: orjson.dumps(miner) for miner in miners}
        self.archive = archived_files(generation)
        self.watermark: int = row["watermark"]
        self._is_covered = False
        self.miners_by_uid = {miner["uid"]: self.miners[miner["hotkey"]] for miner in miners}
        self.valid_miners = rendering.miners_list(miners, only_valid=True)
        self.answers = {
            "/weights": rendering.weights(connection),
            "/scores": rendering.scores(connection, self.computed_at_ms),
            "/scores/rank": rendering.ranks(connection),
            "/scores/stats": rendering.stats(connection),
            "/scores/validators": rendering.validator_summaries(connection),
            "/miners/list": rendering.miners_list(miners, only_valid=False),
        }

    def is_covered_by(self, head: Callable[[], int]) -> bool:
        """Tell whether a log reaches as far as this counts; asked until it does: logs only grow."""
        if not self._is_covered:
            self._is_covered = head() >= self.watermark
        return self._is_covered

    def stake_rao(self, hotkey: str) -> int:
        """Return the weight of a hotkey's votes: its stake if it is registered, else 0."""
        validator = self.validators.get(hotkey)
        return validator.stake_rao if validator and validator.is_registered else 0

    def is_registered(self, hotkey: str) -> bool:
        """Tell whether the hotkey may submit samples."""
        validator = self.validators.get(hotkey)
        return validator is not None and validator.is_registered

    def ask(self, sql: str, bindings: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a query, on a cursor of its own; raises `duckdb.Error`."""
        with self._connection.cursor() as cursor:
            return cursor.execute(sql, bindings).fetchall()

    def render(
        self, question: Callable[[duckdb.DuckDBPyConnection, str], bytes], hotkey: str
    ) -> bytes:
        """Answer a question about one hotkey, on a cursor of its own.

        Raises `GenerationError` where the file is not what it was, or the answer takes too much.
        """
        try:
            with self._connection.cursor() as cursor:
                return question(cursor, hotkey)
        except duckdb.ProgrammingError:
            raise
        except duckdb.OutOfMemoryException as error:
            # Nothing is wrong with the file.
            raise GenerationError(f"{self._path}: {error}") from error
        except duckdb.Error as error:
            self._damage = str(error)
            raise GenerationError(f"{self._path} cannot be read: {error}") from error

    def problem(self) -> str | None:
        """Return what became of the file since it was opened, None for nothing that shows."""
        try:
            size = self._path.stat().st_size
        except OSError as error:
            return f"the file of the current generation cannot be found: {error}; {REMEDY}"
        if size != self._size:
            return f"{self._path} has {size} bytes instead of {self._size}; {REMEDY}"
        return f"{self._path} is damaged: {self._damage}; {REMEDY}" if self._damage else None


class Snapshots:
    """Follows the pointer to the current generation. `open` before use, `close` after it."""

    def __init__(self, settings: ApiSettings, generations: Generations) -> None:
        self.generations = generations
        self.rendered = RenderedAnswers(settings.rendered_bytes_max)
        self.problem: str | None = None
        self._poll_seconds = settings.snapshot_poll_seconds
        self._latest: Snapshot | None = None
        self._closing = Event()
        self._thread = Thread(target=self._follow, name="snapshots", daemon=True)

    def open(self) -> None:
        """Load the current generation if there is one, then follow the pointer."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._closing.set()
        self._thread.join()

    @property
    def latest(self) -> Snapshot | None:
        """The newest generation that could be loaded, None before the first."""
        return self._latest

    def current(self) -> Snapshot:
        """Return the newest generation that could be loaded.

        Raises `NotReadyError` before the first: nothing is known then, and that is not the same as
        an empty answer; `GenerationError` where there is one that could not be loaded.
        """
        if self._latest is None:
            raise GenerationError(self.problem) if self.problem else NotReadyError
        return self._latest

    def refresh(self) -> None:
        """Look at the pointer once. What cannot be loaded leaves the last good one in force."""
        try:
            generation = self.generations.current()
            if generation is None:
                problem = "the pointer to the current generation is gone" if self._latest else None
            elif self._latest and self._latest.snapshot_id == generation.snapshot_id:
                problem = self._latest.problem()
            else:
                self._latest = Snapshot(generation)
                problem = None
                logger.info("serving generation %s", generation.snapshot_id)
        except Exception as error:  # noqa: BLE001  (whatever is wrong, the last good one stays)
            problem = f"the current generation cannot be loaded: {error}; {REMEDY}"
        if problem and problem != self.problem:
            logger.error("%s", problem)
        self.problem = problem

    def _follow(self) -> None:
        while not self._closing.wait(self._poll_seconds):
            self.refresh()
