"""The threads that read: few of them, so that they do not stand in each other's way.

Python runs one thread at a time. With forty, as the framework has them, each waits for thirty-nine
others whenever it comes back from the database, and a page of two hundred samples took nine
milliseconds of CPU instead of two. What takes long has threads of its own, and so has what must
never wait for it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from api.landing import Landing
from api.settings import ApiSettings

BRIEF_THREADS = 2

T = TypeVar("T")


class ReadingThreads:
    """Three kinds of threads. `close` after use; what nobody waits for any more is not begun.

    All of them start now, with `begin`, which opens what a thread will need and raises nothing: so
    a worker holds from its start what it will hold, and no request waits for that.
    """

    def __init__(self, settings: ApiSettings, landing: Landing, begin: Callable[[], None]) -> None:
        self._landing = landing
        self._brief = _begun("reads-brief", BRIEF_THREADS, begin)
        self._log = _begun("reads-log", settings.log_read_threads, begin)
        self._archive = _begun("reads-archive", settings.archive_read_threads, begin)

    async def brief(self, act: Callable[[], T]) -> T:
        """Return what `act` returns: how the service is, who is on the blacklist, what a validator
        that lost an answer must be told.
        """
        return await self._landing.of(self._brief.submit(act))

    async def of_log(self, act: Callable[[], T]) -> T:
        """Return what `act` returns: some rows of the log."""
        return await self._landing.of(self._log.submit(act))

    async def of_archive(self, act: Callable[[], T]) -> T:
        """Return what `act` returns: whatever is of the archive, of the tables, or a whole task."""
        return await self._landing.of(self._archive.submit(act))

    def close(self) -> None:
        """Finish what was begun, and begin nothing more."""
        for threads in (self._brief, self._log, self._archive):
            threads.shutdown(cancel_futures=True)


def _begun(name: str, count: int, begin: Callable[[], None]) -> ThreadPoolExecutor:
    threads = ThreadPoolExecutor(count, name)
    together = Barrier(count)

    def begin_together() -> None:
        # Or one thread would do it for all, and the others not be started.
        together.wait()
        begin()

    for begun in [threads.submit(begin_together) for _ in range(count)]:
        begun.result()
    return threads
