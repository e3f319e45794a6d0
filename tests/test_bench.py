"""The benchmark's report: what is met, what is missed, what moved; and the page is whole."""

from html.parser import HTMLParser

import pytest

from tests.bench import report
from tests.bench.page import WIDTH, page
from tests.bench.report import Figure

FAST = Figure("Reads", [90.0, 100.0, 130.0], "1/s", target=80, limit=200, limit_name="<bare>")
SLOW = Figure("Reads", [40.0, 50.0, 60.0], "1/s", target=80, limit=200, limit_name="<bare>")
LATE = Figure("p99", [20.0, 30.0], "ms", is_rate=False, target=10)
SOON = Figure("p99", [2.0, 3.0], "ms", is_rate=False, target=10)
SHARE = Figure("Writes", [50.0], "1/s", limit=100, limit_name="bare", ratio_target=0.6)


class Elements(HTMLParser):
    """Collects what a page has, and that its elements are closed in order."""

    VOID = frozenset({"meta", "rect", "line", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.open[-1] in {"tr", "td", "th", "p", "html"} and self.open[-1] != tag:
            self.open.pop()
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("figure", "is_met"), [(FAST, True), (SLOW, False), (LATE, False), (SOON, True)]
)
def test_a_target_is_met_by_the_median(figure, is_met):
    assert figure.is_met is is_met
    assert ("MISSED" in figure.line()) is not is_met


def test_a_part_of_a_limit_is_told_before_absolute_figures():
    told = report.text([FAST, SHARE], {"cores": 2}, 7)
    assert told.index("0.50 of bare  target >= 0.6: MISSED") < told.index("Medians")
    assert "1 of 2 targets met" in told


def test_what_moved_is_what_no_longer_overlaps():
    assert "WORSE: 0.45 to 0.65, now 0.2 to 0.3" in report.moved([FAST.as_json()], [SLOW.as_json()])
    assert report.moved([FAST.as_json()], [FAST.as_json()]).endswith("nothing")


def test_the_page_shows_every_figure_and_which_side_of_its_target_it_is_on():
    shown = page([FAST, SLOW, LATE, SOON, SHARE], {"cpu": "<fast>"}, 1_000)
    elements = Elements(shown)
    bars = [float(attrs["width"]) for tag, attrs in elements.found if tag == "rect"]
    assert [bar >= WIDTH / 2 for bar in bars] == [True, False, False, True, False]
    assert shown.count('class="met"') == 2
    assert shown.count('class="missed"') == 3
    assert "&lt;bare&gt;" in shown
    assert "<fast>" not in shown
