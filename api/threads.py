"""The threads that read: few of them, so that they do not stand in each other's way.

Python runs one thread at a time, and SQLite lets go of it for every row: with forty threads, as the
framework has them, a row waits for thirty-nine others, and a page of two hundred samples takes nine
milliseconds of CPU instead of two. What Parquet is needed for takes tens of milliseconds, so it has
threads of its own, and the rest does not wait for it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from api.settings import ApiSettings

T = TypeVar("T")


class ReadingThreads:
    """Threads for questions to the log, and others for the archive. `close` after use."""

    def __init__(self, settings: ApiSettings) -> None:
        self._log = ThreadPoolExecutor(settings.log_read_threads, "reads-log")
        self._archive = ThreadPoolExecutor(settings.archive_read_threads, "reads-archive")

    async def of_log(self, act: Callable[[], T]) -> T:
        """Return what `act` returns; where nobody waits for it any more it is not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._log, act)

    async def of_archive(self, act: Callable[[], T]) -> T:
        """Do the same beside those that only the log is asked."""
        return await asyncio.get_running_loop().run_in_executor(self._archive, act)

    def close(self) -> None:
        """Finish what was begun, and begin nothing more."""
        for threads in (self._log, self._archive):
            threads.shutdown(cancel_futures=True)
