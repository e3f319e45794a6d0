"""Which log the settings name. A further backend is added here, not in api/ or pipelines/."""

from collections.abc import Callable

from warehouse.log import Log, LogKeeper, LogReader, LogUnavailableError, Outbox, WrongLogError
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_late import SqliteLateLog
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_outbox import SqliteOutbox
from warehouse.sqlite_reads import SqliteReader


def open_log(
    settings: WarehouseSettings, on_commit: Callable[[int, float], None] = lambda *_: None
) -> Log:
    """Open the log to append and to read; raises `WrongLogError`.

    One that cannot be opened now is opened as soon as it can be, and until then raises
    `LogUnavailableError` when it is used. `on_commit` is told of each commit: submissions in it,
    and seconds.
    """
    try:
        return SqliteLog(settings, on_commit)
    except WrongLogError:
        raise
    except LogUnavailableError as error:
        return SqliteLateLog(settings, on_commit, error)


def open_kept_log(settings: WarehouseSettings) -> LogKeeper:
    """Open the log to read and to keep; raises `LogUnavailableError`."""
    return SqliteKeeper(settings)


def open_read_log(settings: WarehouseSettings) -> LogReader:
    """Open the log to read only; raises `LogUnavailableError`."""
    return SqliteReader(settings)


def open_outbox(settings: WarehouseSettings) -> Outbox:
    """Open what waits for object storage; raises `LogUnavailableError`."""
    return SqliteOutbox(settings)
