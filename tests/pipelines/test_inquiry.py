"""Many questions, politely: waits, pauses, limits and the end, on a clock that the tests turn."""

import threading
import time
from collections.abc import Callable

import pytest

from pipelines.inquiry import FAILURES_IN_A_ROW_MAX, Inquiry, Limits, settle
from pipelines.outside import Cause, NoAnswer

Ask = Callable[[int, float], str]


class TurnedClock:
    """A clock that passes only by sleeping; `asked_at` is for the questions to write to."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.asked_at: list[float] = []
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        with self._lock:
            self.seconds += seconds


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


def limits(concurrency_max: int = 1, attempts_max: int = 3, seconds_max: float = 1000.0) -> Limits:
    return Limits(concurrency_max, attempts_max, seconds_max)


def ignore(_done: int, _total: int) -> None:
    pass


def run(clock: TurnedClock, inquiry: Inquiry[int, str], bounds: Limits) -> None:
    settle([inquiry], bounds, ignore, clock, clock.sleep)


def failing(clock: TurnedClock, *failures: NoAnswer) -> Ask:
    """Fail in this way, one call after the other, then answer."""
    rest = list(failures)

    def ask(_question: int, _seconds: float) -> str:
        clock.asked_at.append(clock.seconds)
        if rest:
            raise rest.pop(0)
        return "answer"

    return ask


def test_every_question_is_answered_once(clock: TurnedClock) -> None:
    inquiry = Inquiry(range(50), lambda question, _seconds: f"to {question}")
    progress: list[tuple[int, int]] = []
    settle(
        [inquiry, Inquiry(range(3), lambda _question, _seconds: "x")],
        limits(concurrency_max=4),
        lambda done, total: progress.append((done, total)),
        clock,
        clock.sleep,
    )
    assert inquiry.answers == {question: f"to {question}" for question in range(50)}
    assert inquiry.reasons == {}
    assert progress == [(done, 53) for done in range(1, 54)]


def test_no_questions_at_all(clock: TurnedClock) -> None:
    settle([Inquiry[int, str]([], failing(clock))], limits(), ignore, clock, clock.sleep)
    settle([], limits(), ignore, clock, clock.sleep)
    assert clock.asked_at == []


def test_an_outage_is_waited_out_with_growing_pauses(clock: TurnedClock) -> None:
    outages = [NoAnswer("HTTP 503"), NoAnswer("HTTP 503"), NoAnswer("HTTP 503")]
    inquiry = Inquiry([1], failing(clock, *outages))
    run(clock, inquiry, limits(attempts_max=4))
    assert inquiry.answers == {1: "answer"}
    one, two, three, four = clock.asked_at
    assert 0.5 <= two - one <= 1.0 <= three - two <= 1.5
    assert 2.0 <= four - three <= 2.5


def test_attempts_are_limited(clock: TurnedClock) -> None:
    inquiry = Inquiry([1], failing(clock, *[NoAnswer("timed out")] * 9))
    run(clock, inquiry, limits(attempts_max=3))
    assert (inquiry.answers, inquiry.reasons) == ({}, {"timed out": 1})
    assert len(clock.asked_at) == 3


@pytest.mark.parametrize("cause", [Cause.REFUSED, Cause.UNUSABLE])
def test_what_a_repetition_does_not_mend_is_not_repeated(clock: TurnedClock, cause: Cause) -> None:
    inquiry = Inquiry([1], failing(clock, NoAnswer("no", cause)))
    run(clock, inquiry, limits())
    assert inquiry.reasons == {"no": 1}
    assert len(clock.asked_at) == 1


def test_retry_after_pauses_all_questions_to_the_service(clock: TurnedClock) -> None:
    inquiry = Inquiry(range(20), failing(clock, NoAnswer("HTTP 429", retry_after_seconds=30.0)))
    run(clock, inquiry, limits())
    assert len(inquiry.answers) == 20
    first, *later = clock.asked_at
    assert len(later) == 20
    assert min(later) >= first + 30.0


def test_a_second_retry_after_prolongs_the_pause_and_never_shortens_it(clock: TurnedClock) -> None:
    away = [NoAnswer("HTTP 429", retry_after_seconds=seconds) for seconds in (5.0, 40.0, 0.0)]
    inquiry = Inquiry(range(5), failing(clock, *away))
    run(clock, inquiry, limits(attempts_max=4))
    assert len(inquiry.answers) == 5
    first, second, *later = clock.asked_at
    assert second >= first + 5.0
    assert min(later) >= second + 40.0


def test_a_pause_that_takes_longer_than_there_is_time_ends_it(clock: TurnedClock) -> None:
    away = NoAnswer("HTTP 429", retry_after_seconds=3600.0)
    paused = Inquiry(range(10), failing(clock, away))
    other = Inquiry(range(10), lambda _question, _seconds: "answer")
    settle([paused, other], limits(seconds_max=100.0), ignore, clock, clock.sleep)
    assert len(clock.asked_at) == 1
    assert paused.answers == {}
    assert sum(paused.reasons.values()) == 10
    assert any("pause" in reason for reason in paused.reasons)
    # The other service has nothing to do with it.
    assert len(other.answers) == 10


def test_a_service_that_is_down_is_not_asked_about_everything(clock: TurnedClock) -> None:
    inquiry = Inquiry(range(256), failing(clock, *[NoAnswer("timed out")] * 1000))
    run(clock, inquiry, limits(attempts_max=2))
    assert len(clock.asked_at) == FAILURES_IN_A_ROW_MAX * 2
    assert inquiry.reasons["timed out"] == FAILURES_IN_A_ROW_MAX
    assert sum(inquiry.reasons.values()) == 256


def test_refused_credentials_are_not_shown_for_every_question(clock: TurnedClock) -> None:
    inquiry = Inquiry(range(256), failing(clock, *[NoAnswer("no", Cause.REFUSED)] * 256))
    run(clock, inquiry, limits())
    assert len(clock.asked_at) == FAILURES_IN_A_ROW_MAX


def test_odd_answers_about_some_leave_the_others_their_turn(clock: TurnedClock) -> None:
    odd = [NoAnswer("JSON of another form", Cause.UNUSABLE)] * 100
    inquiry = Inquiry(range(150), failing(clock, *odd))
    run(clock, inquiry, limits())
    assert len(inquiry.answers) == 50
    assert inquiry.reasons == {"JSON of another form": 100}


def test_one_answer_in_between_and_the_count_starts_anew(clock: TurnedClock) -> None:
    calls = iter(range(1000))

    def every_fifth(_question: int, _seconds: float) -> str:
        if next(calls) % FAILURES_IN_A_ROW_MAX == FAILURES_IN_A_ROW_MAX - 1:
            return "answer"
        raise NoAnswer("timed out")

    inquiry = Inquiry(range(50), every_fifth)
    run(clock, inquiry, limits(attempts_max=1))
    assert (len(inquiry.answers), inquiry.reasons) == (10, {"timed out": 40})


def test_the_time_is_over_for_all(clock: TurnedClock) -> None:
    left: list[float] = []

    def slow(_question: int, seconds: float) -> str:
        left.append(seconds)
        clock.sleep(10.0)
        return "answer"

    inquiry = Inquiry(range(20), slow)
    run(clock, inquiry, limits(seconds_max=35.0))
    assert left == [35.0, 25.0, 15.0, 5.0]
    assert len(inquiry.answers) == 4
    assert inquiry.reasons == {"not asked: there was no time left": 16}


def test_no_wait_begins_that_ends_too_late(clock: TurnedClock) -> None:
    inquiry = Inquiry([1], failing(clock, *[NoAnswer("timed out")] * 9))
    run(clock, inquiry, limits(attempts_max=9, seconds_max=0.4))
    assert len(clock.asked_at) == 1
    assert clock.seconds == 1000.0


def test_what_is_under_way_is_limited_over_all_services() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def ask(_question: int, _seconds: float) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        with lock:
            under_way -= 1
        return "answer"

    inquiries = [Inquiry(range(30), ask), Inquiry(range(30), ask)]
    settle(inquiries, limits(concurrency_max=3), ignore)
    assert 1 < most <= 3


def inquiry_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("inquiry")]


def test_a_defect_is_not_taken_for_no_answer(clock: TurnedClock) -> None:
    def broken(_question: int, _seconds: float) -> str:
        raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        run(clock, Inquiry(range(20), broken), limits(concurrency_max=4))
    assert inquiry_threads() == []


def test_who_is_interrupted_waits_for_nobodys_pause() -> None:
    asked = threading.Semaphore(0)

    def away(_question: int, _seconds: float) -> str:
        asked.release()
        raise NoAnswer("HTTP 503", retry_after_seconds=3000.0)

    def interrupt(_done: int, _total: int) -> None:
        # The other service's question is now in its pause of 3000 seconds, or about to be.
        assert asked.acquire(timeout=10)
        raise KeyboardInterrupt

    quick = Inquiry([1], lambda _question, _seconds: "answer")
    with pytest.raises(KeyboardInterrupt):
        settle([quick, Inquiry([1], away)], limits(seconds_max=4000.0), interrupt)
    assert inquiry_threads() == []
