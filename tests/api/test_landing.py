"""What other threads found comes to the event loop: each outcome once, to whoever waits for it."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from api.landing import Landing

SECONDS_MAX = 60


def run(act):
    """Run a coroutine function with a landing of its loop."""

    async def within():
        async with asyncio.timeout(SECONDS_MAX):
            return await act(Landing())

    return asyncio.run(within())


async def waiting(landing, futures):
    tasks = [asyncio.create_task(landing.of(future)) for future in futures]
    await asyncio.sleep(0)
    return tasks


def test_every_outcome_of_many_threads_arrives():
    async def act(landing):
        with ThreadPoolExecutor(8) as threads:
            found = await asyncio.gather(
                *(landing.of(threads.submit(lambda n=n: n)) for n in range(5_000))
            )
        assert found == list(range(5_000))

    run(act)


def test_an_error_arrives_and_one_that_none_may_raise_harms_nobody_else():
    async def act(landing):
        futures = [Future() for _ in range(4)]
        tasks = await waiting(landing, futures)
        futures[0].set_exception(KeyError("a"))
        futures[1].set_exception(StopIteration())
        futures[2].set_result("stored")
        futures[3].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [type(one) for one in found]
        assert kinds == [KeyError, RuntimeError, str, asyncio.CancelledError]

    run(act)


def test_who_gives_up_before_its_turn_wants_nothing():
    async def act(landing):
        begun, queued = Future(), Future()
        begun.set_running_or_notify_cancel()
        tasks = await waiting(landing, [begun, queued])
        for task in tasks:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        await asyncio.sleep(0)
        assert queued.cancelled()
        assert not begun.cancelled()
        # Too late for anybody.
        begun.set_result("stored")
        await asyncio.sleep(0)

    run(act)


def test_an_outcome_after_the_end_of_the_loop_is_nobodys(caplog):
    async def begin(landing):
        future = Future()
        future.set_running_or_notify_cancel()
        await waiting(landing, [future])
        return future

    # A callback that fails is told in the log.
    run(begin).set_result("stored")
    assert not caplog.records
