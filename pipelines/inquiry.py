"""Many questions to services that owe us nothing: at once, but not too many; again, but not soon.

What is asked, and what an answer means, is the caller's business. An inquiry is a round of
questions to one service; several share one limit on what is under way, and one on time.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import tenacity

from pipelines.outside import Cause, NoAnswer

# So many questions in a row, each with all its attempts, and the service counts as down.
FAILURES_IN_A_ROW_MAX = 5
BACKOFF = tenacity.wait_exponential_jitter(multiplier=0.5, jitter=0.5, max=10)

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """What an inquiry keeps to. `seconds_max` is for all of it, with every wait."""

    concurrency_max: int
    attempts_max: int
    seconds_max: float


@dataclass(frozen=True)
class Inquiry(Generic[Question, Answer]):
    """Questions to one service, and its answers once `settle` returns.

    `ask` is called from several threads, with the seconds that are left; it returns an answer or
    raises `NoAnswer`. Every question is then in `answers` or counted in `reasons`.
    """

    questions: Collection[Question]
    ask: Callable[[Question, float], Answer]
    answers: dict[Question, Answer] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)


def settle(
    inquiries: Sequence[Inquiry[Any, Any]],
    limits: Limits,
    on_progress: Callable[[int, int], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> None:
    """Put all questions of all inquiries; when it returns or raises, no thread of it is left.

    A question that fails for the service's sake is put again after a growing, random wait. A
    service that asks to be left alone is, by all of its questions; one that fails several times in
    a row is asked no more. `on_progress` hears how many questions are settled, of how many.
    """
    is_over = threading.Event()

    def rest(seconds: float) -> None:
        # Ends early when the whole inquiry is given up.
        is_over.wait(seconds)

    race = _Race(limits, clock, sleep or rest, is_over)
    # Threads for each service, since those of one may all be waiting for it; what is under way is
    # limited by the race's slots.
    executors = [ThreadPoolExecutor(limits.concurrency_max, "inquiry") for _ in inquiries]
    asked: dict[Future[Any], tuple[Inquiry[Any, Any], Any]] = {}
    try:
        for inquiry, executor in zip(inquiries, executors, strict=True):
            service = _Service(race)
            # In another order each time: when time runs out, it is not always the same miners who
            # wait, and nobody can place several bad questions in a row.
            questions = list(inquiry.questions)
            random.SystemRandom().shuffle(questions)
            for question in questions:
                future = executor.submit(service.put, partial(inquiry.ask, question))
                asked[future] = inquiry, question
        for done, future in enumerate(as_completed(asked), start=1):
            inquiry, question = asked[future]
            try:
                inquiry.answers[question] = future.result()
            except NoAnswer as failure:
                inquiry.reasons[failure.reason] += 1
            on_progress(done, len(asked))
    finally:
        is_over.set()
        for executor in executors:
            executor.shutdown(cancel_futures=True)


class _Race:
    """What all services have in common: the time, and the slots of what is under way."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        is_over: threading.Event,
    ) -> None:
        self.attempts_max = limits.attempts_max
        self.slots = threading.BoundedSemaphore(limits.concurrency_max)
        self.clock = clock
        self.sleep = sleep
        self.is_over = is_over
        self._due_at = clock() + limits.seconds_max

    def seconds_left(self) -> float:
        # No more than a lock can be waited for.
        return min(self._due_at - self.clock(), threading.TIMEOUT_MAX)


class _Service:
    """One service: whether it wants to be left alone, and whether it seems to be there at all."""

    def __init__(self, race: _Race) -> None:
        self._race = race
        self._lock = threading.Lock()
        self._free_at = -float("inf")
        self._failures_in_a_row = 0

    def put(self, ask: Callable[[float], Answer]) -> Answer:
        """Put one question until it is answered, or raise why it is not."""
        try:
            answer: Answer = tenacity.Retrying(
                retry=tenacity.retry_if_exception(_is_outage),
                stop=self._is_enough,
                wait=BACKOFF,
                sleep=self._race.sleep,
                reraise=True,
            )(self._attempt, ask)
        except NoAnswer as failure:
            # An answer that cannot be used says nothing about the service: somebody may have made
            # it so.
            if failure.cause is not Cause.UNUSABLE:
                with self._lock:
                    self._failures_in_a_row += 1
            raise
        with self._lock:
            self._failures_in_a_row = 0
        return answer

    def _attempt(self, ask: Callable[[float], Answer]) -> Answer:
        with self._slot():
            try:
                return ask(self._race.seconds_left())
            except NoAnswer as failure:
                if failure.retry_after_seconds is not None:
                    with self._lock:
                        free_at = self._race.clock() + failure.retry_after_seconds
                        self._free_at = max(self._free_at, free_at)
                raise

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        """Wait for one of the slots at a time when the service may be asked."""
        while True:
            self._wait_until_free()
            if not self._race.slots.acquire(timeout=max(0.0, self._race.seconds_left())):
                raise _not_asked("there was no time left")
            # While this thread waited for the slot, another may have been sent away.
            if self._seconds_until_free() <= 0:
                break
            self._race.slots.release()
        try:
            yield
        finally:
            self._race.slots.release()

    def _wait_until_free(self) -> None:
        """Wait while the service wants to be left alone; raise when it is not to be asked more."""
        while True:
            if self._failures_in_a_row >= FAILURES_IN_A_ROW_MAX:
                raise _not_asked("the service failed several times in a row")
            pause_seconds, seconds_left = self._seconds_until_free(), self._race.seconds_left()
            if self._race.is_over.is_set() or seconds_left <= 0:
                raise _not_asked("there was no time left")
            if pause_seconds >= seconds_left:
                raise _not_asked("the service asked for a longer pause than there was time")
            if pause_seconds <= 0:
                return
            self._race.sleep(pause_seconds)

    def _seconds_until_free(self) -> float:
        return self._free_at - self._race.clock()

    def _is_enough(self, state: tenacity.RetryCallState) -> bool:
        """Tell whether a question has been put often enough, or the next time would be too late."""
        is_last = state.attempt_number >= self._race.attempts_max
        return is_last or state.upcoming_sleep >= self._race.seconds_left()


def _is_outage(failure: BaseException) -> bool:
    return isinstance(failure, NoAnswer) and failure.cause is Cause.OUTAGE


def _not_asked(why: str) -> NoAnswer:
    return NoAnswer(f"not asked: {why}", Cause.UNUSABLE)
