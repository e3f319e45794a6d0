"""Reading SCALE: what was written comes back, and nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.simulated import scale
from pipelines.scale import ScaleError, ScaleReader


def whole(content, read):
    reader = ScaleReader(content)
    value = read(reader)
    reader.end()
    return value


@pytest.mark.parametrize(
    ("number", "content"),
    [
        (0, "00"),
        (63, "fc"),
        (64, "0101"),
        (2**14 - 1, "fdff"),
        (2**14, "02000100"),
        (2**30 - 1, "feffffff"),
        (2**30, "0300000040"),
        (2**64 - 1, "13ffffffffffffffff"),
    ],
)
def test_a_compact_number_is_read_as_it_is_written(number, content):
    assert whole(bytes.fromhex(content), ScaleReader.compact) == number


@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.binary()))
def test_what_is_written_comes_back(numbers, blobs):
    content = scale.vector(map(scale.compact, numbers)) + scale.vector(map(scale.blob, blobs))
    reader = ScaleReader(content)
    assert reader.vector(reader.compact) == numbers
    assert reader.vector(reader.blob) == blobs
    reader.end()


@given(st.binary(), st.integers(0, 2**64 - 1))
def test_no_part_of_what_is_written_passes_for_all_of_it(content, number):
    written = scale.blob(content) + scale.unsigned(number, 64) + scale.flag(value=True)

    def read(reader):
        return reader.blob(), reader.unsigned(64), reader.flag()

    assert whole(written, read) == (content, number, True)
    for length in range(len(written)):
        with pytest.raises(ScaleError):
            whole(written[:length], read)
    with pytest.raises(ScaleError, match="1 bytes too many"):
        whole(written + b"\x00", read)


def test_items_that_the_bytes_cannot_hold_are_not_looked_for():
    reader = ScaleReader(scale.compact(2**30 - 1) + bytes(1000))
    with pytest.raises(ScaleError, match="1073741823 items are announced and 1000 bytes are there"):
        reader.vector(lambda: pytest.fail("it was looked for"))


def test_a_truth_value_is_0_or_1():
    assert [whole(bytes([value]), ScaleReader.flag) for value in (0, 1)] == [False, True]
    with pytest.raises(ScaleError, match="2 is neither"):
        whole(b"\x02", ScaleReader.flag)
