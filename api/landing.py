"""From other threads to the event loop: what a log's writer, or a thread that reads, has found."""

import asyncio
from collections import deque
from concurrent.futures import Future
from functools import partial
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")


class Landing:
    """Hands over the outcomes of futures, all that wait at once. Of the loop that it is made in.

    A commit settles dozens of them, and asyncio would hand over each by itself.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = Lock()
        self._landed: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_called = False

    async def of(self, future: "Future[T]") -> T:
        """Return a future's result, or raise its error; who is cancelled here cancels it."""
        awaited: asyncio.Future[T] = self._loop.create_future()
        future.add_done_callback(partial(self._land, awaited))
        try:
            return await awaited
        except asyncio.CancelledError:
            future.cancel()
            raise

    def _land(self, awaited: asyncio.Future[Any], future: "Future[Any]") -> None:
        with self._changed:
            self._landed.append((awaited, future))
            if self._is_called:
                return
            self._is_called = True
        # With a loop that is closed nobody waits any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._changed:
            landed, self._landed = self._landed, deque()
            self._is_called = False
        for awaited, future in landed:
            # Unless its caller was cancelled.
            if not awaited.done():
                _settle(awaited, future)


def _settle(awaited: asyncio.Future[Any], future: "Future[Any]") -> None:
    if future.cancelled():
        awaited.cancel()
        return
    error = future.exception()
    if error is None:
        awaited.set_result(future.result())
    elif isinstance(error, StopIteration):
        # No future of asyncio takes it, and those behind this one are not to blame.
        awaited.set_exception(RuntimeError(f"a thread raised {error!r}"))
    else:
        awaited.set_exception(error)
