"""How often a property is tried: briefly, or for LEOMA_TORTURE=1 as long as patience lasts."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

IS_LONG = os.environ.get("LEOMA_TORTURE") == "1"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def tried(brief: int = 100, long: int = 2_000) -> settings:
    """Return the settings of a property."""
    return settings(
        max_examples=long if IS_LONG else brief,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def changed(document, draw):
    """Return a document with the value at one place of it replaced, or the place gone."""
    if isinstance(document, dict) and document and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(document)))
        if not draw(st.integers(0, 5)):
            return {one: value for one, value in document.items() if one != name}
        return {**document, name: changed(document[name], draw)}
    if isinstance(document, list) and document and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], changed(document[at], draw), *document[at + 1 :]]
    return draw(JSON_VALUES)
