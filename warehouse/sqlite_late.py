"""A SQLite log that could not be opened when its process started, and opens as soon as it can.

A worker that starts while the disk is read-only, or while no handle is left, serves the published
tables all the same. If it failed, its supervisor would take the application for broken and end
all other workers, too.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from warehouse.log import (
    Backlog,
    LogUnavailableError,
    SubmissionRow,
    Submitted,
    TextRow,
    VoteColumns,
    VoteRow,
    WrongLogError,
)
from warehouse.records import (
    AdminState,
    Appended,
    Evaluation,
    Event,
    RenderedSamples,
    Sample,
    SignedRequest,
    StoredSample,
)
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_reads import SqliteReader
from warehouse.sqlite_schema import close_all

RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class SqliteLateLog:
    """`warehouse.log.LogWriter` and `LogReader` in front of a `SqliteLog` that opens later.

    Until it does, a log that is there is read where SQLite can; whatever else is asked raises
    `LogUnavailableError`, which says why. Who asks never waits for an opening. Threads share one.
    """

    def __init__(
        self,
        settings: WarehouseSettings,
        on_commit: Callable[[int, float], None],
        error: LogUnavailableError,
    ) -> None:
        """`error`: why the log did not open. Raises `WrongLogError`."""
        self._settings, self._on_commit = settings, on_commit
        self._log: SqliteLog | None = None
        self._reader: SqliteReader | None = None
        self._why = ""
        self._note(error)
        try:
            self._reader = SqliteReader(settings, is_inspection=True)
        except WrongLogError:
            raise
        except LogUnavailableError:
            pass
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log-opener", daemon=True)
        self._thread.start()

    def append_samples(
        self,
        request: SignedRequest,
        samples: Sequence[Sample],
        evaluation: Evaluation | None,
        admin_seq: int | None = None,
    ) -> "Future[Appended]":
        return self._writing().append_samples(request, samples, evaluation, admin_seq)

    def announce_task(self, request: SignedRequest, task_id: int) -> "Future[Appended]":
        return self._writing().announce_task(request, task_id)

    def add_to_blacklist(
        self, request: SignedRequest, hotkey: str, reason: str | None
    ) -> "Future[Appended]":
        return self._writing().add_to_blacklist(request, hotkey, reason)

    def remove_from_blacklist(self, request: SignedRequest, hotkey: str) -> "Future[Appended]":
        return self._writing().remove_from_blacklist(request, hotkey)

    def remember_signature(self, signature: bytes, good_at_ms: int = 0) -> "Future[None]":
        return self._writing().remember_signature(signature, good_at_ms)

    def problem(self) -> str | None:
        log = self._log
        return self._why if log is None else log.problem()

    def head(self) -> int:
        return self._reading().head()

    def admin_state(self) -> AdminState:
        return self._reading().admin_state()

    def known_admin_state(self) -> AdminState:
        return self._reading().known_admin_state()

    def admin_state_at(self, seq: int) -> AdminState:
        return self._reading().admin_state_at(seq)

    def submission_samples(self, submission_seq: int) -> list[StoredSample]:
        return self._reading().submission_samples(submission_seq)

    def samples_as_json(
        self,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> RenderedSamples:
        return self._reading().samples_as_json(
            limit, validator_hotkey=validator_hotkey, miner_hotkey=miner_hotkey
        )

    def newest_samples(self, limit: int) -> list[StoredSample]:
        return self._reading().newest_samples(limit)

    def samples_of_validator(self, validator_hotkey: str, limit: int) -> list[StoredSample]:
        return self._reading().samples_of_validator(validator_hotkey, limit)

    def samples_of_miner(self, miner_hotkey: str, limit: int) -> list[StoredSample]:
        return self._reading().samples_of_miner(miner_hotkey, limit)

    def samples_of_task(
        self,
        task_key: str,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> list[StoredSample]:
        return self._reading().samples_of_task(
            task_key, limit, validator_hotkey=validator_hotkey, miner_hotkey=miner_hotkey
        )

    def votes_of_task(self, task_key: str, limit: int) -> list[VoteRow]:
        return self._reading().votes_of_task(task_key, limit)

    def latest_sampled_task(self) -> int | None:
        return self._reading().latest_sampled_task()

    def votes_between(self, after: int, through: int) -> Iterator[VoteColumns]:
        return self._reading().votes_between(after, through)

    def texts_between(self, after: int, through: int) -> Iterator[list[TextRow]]:
        return self._reading().texts_between(after, through)

    def submissions_between(self, after: int, through: int) -> Iterator[list[SubmissionRow]]:
        return self._reading().submissions_between(after, through)

    def events_between(self, after: int, through: int) -> list[Event]:
        return self._reading().events_between(after, through)

    def newest_submission_before(self, received_before_ms: int) -> int:
        return self._reading().newest_submission_before(received_before_ms)

    def dropped_through(self) -> int:
        return self._reading().dropped_through()

    def submitted(self, submission_seq: int) -> Submitted | None:
        return self._reading().submitted(submission_seq)

    def backlog(self, counted_max: int) -> Backlog:
        return self._reading().backlog(counted_max)

    def oldest_waiting_submission(self) -> int | None:
        return self._reading().oldest_waiting_submission()

    def damage(self) -> str | None:
        reader = self._log or self._reader
        return None if reader is None else reader.damage()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        for opened in (self._log, self._reader):
            if opened is not None:
                opened.close()

    def _writing(self) -> SqliteLog:
        if self._log is None:
            raise LogUnavailableError(self._why)
        return self._log

    def _reading(self) -> SqliteReader:
        reader = self._log or self._reader
        if reader is None:
            raise LogUnavailableError(self._why)
        return reader

    def _note(self, error: Exception) -> None:
        why = (
            f"{self._settings.log_path} cannot be opened, "
            f"and is tried every {RETRY_SECONDS:g} s: {error}"
        )
        if why != self._why:
            logger.error("%s", why)
        self._why = why

    def _follow(self) -> None:
        """Try until the log is open, or is to be closed."""
        while not self._closing.wait(RETRY_SECONDS):
            try:
                log = SqliteLog(self._settings, self._on_commit)
            except Exception as error:  # noqa: BLE001  (whatever is wrong, it may end)
                self._note(error)
            else:
                # Those that only read share a mapping that only reads with whoever joins them.
                close_all()
                self._log = log
                logger.info("%s is open", self._settings.log_path)
                return
            if self._reader is None:
                with contextlib.suppress(Exception):
                    self._reader = SqliteReader(self._settings, is_inspection=True)
