"""The figures as a page: each with its spread, and how far it is from its target or its limit."""

from collections.abc import Sequence
from html import escape
from typing import Any

from tests.bench.report import Figure, number

WIDTH, HEIGHT = 420, 26
# A target lies in the middle of a bar, so that twice as good and half as good are seen alike.
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; }
tr { border-bottom: 1px solid #8884; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.met { color: #1a7f37; } .missed { color: #cf222e; font-weight: 600; }
small { opacity: .75; }
"""


def page(figures: Sequence[Figure], surroundings: dict[str, Any], samples: int) -> str:
    """Return the page as HTML that needs nothing else."""
    facts = ", ".join(f"{name} {value}" for name, value in surroundings.items())
    rows = "\n".join(map(_row, figures))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Benchmark on {samples:,} samples</title>
<style>{STYLE}</style>
<h1>Benchmark on {samples:,} samples</h1>
<p>A bar is the median, its line the spread of the rounds; the mark in the middle is the target, or
the limit that was measured in the same run. Right of it is better.</p>
<table>
<tr><th>what</th><th>median</th><th></th><th>target</th><th>beside it</th></tr>
{rows}
</table>
<p><small>{escape(facts)}</small></p>
</html>
"""


def _row(figure: Figure) -> str:
    value = f"{number(figure.median)} {figure.unit}".strip()
    beside = f"{figure.ratio:.2f} of {figure.limit_name}" if figure.ratio is not None else ""
    return (
        f"<tr><td>{escape(figure.name)}<br><small>{escape(figure.note)}</small></td>"
        f'<td class="number">{escape(value)}</td><td>{_picture(figure)}</td>'
        f"<td>{_targets(figure)}</td><td><small>{escape(beside)}</small></td></tr>"
    )


def _targets(figure: Figure) -> str:
    sign = "≥" if figure.is_rate else "≤"
    told = []
    if figure.target is not None:
        told.append((figure.is_met, f"{sign} {number(figure.target)} {figure.unit}".strip()))
    if figure.ratio_target is not None:
        told.append((figure.is_ratio_met, f"{sign} {figure.ratio_target:g} of the limit"))
    return "<br>".join(
        f'<span class="{"met" if is_met else "missed"}">{escape(text)}: '
        f"{'met' if is_met else 'missed'}</span>"
        for is_met, text in told
    )


def _picture(figure: Figure) -> str:
    """Draw the values on a scale whose middle is the target, or the limit's required part."""
    middle = figure.target
    if middle is None and figure.limit:
        middle = figure.limit * (figure.ratio_target or 1)
    if not middle or not figure.median:
        return ""
    low, median, high = (
        _place(value, middle, is_rate=figure.is_rate)
        for value in (min(figure.values), figure.median, max(figure.values))
    )
    color = "#1a7f37" if median >= WIDTH / 2 else "#cf222e"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(figure.name)}">'
        f'<rect x="0" y="5" width="{median:.0f}" height="16" fill="{color}" opacity=".65"/>'
        f'<line x1="{low:.0f}" x2="{high:.0f}" y1="13" y2="13" stroke="currentColor"/>'
        f'<line x1="{WIDTH // 2}" x2="{WIDTH // 2}" y1="0" y2="{HEIGHT}" stroke="currentColor" '
        f'stroke-dasharray="3 2"/></svg>'
    )


def _place(value: float, middle: float, *, is_rate: bool) -> float:
    """Return where a value lies: in the middle when it is the middle, further right when better."""
    ratio = value / middle if is_rate else middle / value if value else 2.0
    return WIDTH * ratio / (1 + ratio)
