"""The cache of rendered answers: what it keeps, and what it may cost."""

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
