"""The cache of rendered answers: what it keeps, and what it may cost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from api.caching import ENTRY_BYTES, RenderedAnswers


def asked(answers, name, text=b"[]"):
    """Ask for an answer; tell whether it had to be rendered."""
    rendered = []

    def render():
        rendered.append(name)
        return text

    assert answers.get((name,), render) == text
    return bool(rendered)


def test_answers_are_rendered_once():
    answers = RenderedAnswers(10_000)
    assert asked(answers, "a")
    assert not asked(answers, "a")


def test_least_recently_used_answer_goes_first():
    answers = RenderedAnswers(2 * ENTRY_BYTES + 10)
    for name in ("a", "b", "a", "c"):
        asked(answers, name)
    assert [asked(answers, name) for name in ("a", "c", "b")] == [False, False, True]


def test_short_answers_count_with_what_keeping_them_takes():
    """Anybody can ask for millions of hotkeys that nobody knows, and each answer is `[]`."""
    answers = RenderedAnswers(10 * ENTRY_BYTES)
    for number in range(100):
        asked(answers, str(number))
    kept = [number for number in range(99, 80, -1) if not asked(answers, str(number))]
    assert 1 <= len(kept) <= 9


def test_answer_above_the_bound_is_not_kept():
    answers = RenderedAnswers(ENTRY_BYTES)
    assert asked(answers, "a", b"x")
    assert asked(answers, "a", b"x")


def test_one_answer_is_rendered_at_a_time_and_for_all_who_wait():
    """After a new generation everybody asks for the same one, and each takes memory meanwhile."""
    answers, under_way, most, rendered = RenderedAnswers(10_000), 0, 0, []
    everybody = threading.Barrier(8)

    def render():
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.05)
        under_way -= 1
        rendered.append(1)
        return b"[]"

    def ask(number):
        everybody.wait()
        return answers.get((str(number % 2),), render)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {b"[]"}
    assert most == 1
    assert len(rendered) == 2
