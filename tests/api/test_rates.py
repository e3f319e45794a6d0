"""Lines of credit: what is granted, to whom, and what others may do to them."""

import logging
import struct

import pytest

from api.clients import network_of
from api.rates import FILE_BYTES, HEADER_BYTES, SETS, SLOTS, Rates

# So slow that nothing comes back while a test runs.
SLOW = 1e-3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "rates"


@pytest.fixture
def rates(path):
    opened = Rates(path)
    yield opened
    opened.close()


def granted(rates, name, burst, per_second=SLOW, tries=10):
    return sum(not rates.wait_seconds(name, per_second, burst) for _ in range(tries))


def test_a_line_holds_its_burst_and_says_how_long_to_wait(rates):
    assert granted(rates, "a", 3) == 3
    assert 990 < rates.wait_seconds("a", SLOW, 3) <= 1000
    assert granted(rates, "b", 5) == 5


def test_it_refills(rates):
    assert granted(rates, "a", 1, tries=1) == 1
    # A line of another speed: it is full again long before the next line of Python.
    assert granted(rates, "b", 1, per_second=1e9, tries=1_000) == 1_000


def test_a_refusal_costs_nothing(rates):
    granted(rates, "a", 2)
    waits = [rates.wait_seconds("a", SLOW, 2) for _ in range(100)]
    assert waits == sorted(waits, reverse=True)


def test_all_who_map_the_file_count_together_and_a_restart_forgets_nothing(path, rates):
    other = Rates(path)
    assert [bool(one.wait_seconds("a", SLOW, 3)) for one in (rates, other) * 2] == [
        *[False] * 3,
        True,
    ]
    other.close()
    again = Rates(path)
    assert again.wait_seconds("a", SLOW, 3)
    again.close()


def test_more_names_than_slots_never_refuse_somebody_new(rates):
    for number in range(3 * SETS * SLOTS):
        assert rates.wait_seconds(str(number), SLOW, 1) == 0
    # And who is there is still counted.
    assert granted(rates, "last", 2) == 2


def test_a_clock_that_began_anew_refuses_nobody(path):
    first = Rates(path)
    granted(first, "a", 1)
    first.close()
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        slots = file.read()
        # As if all was written by a machine that had been up for much longer.
        words = list(struct.unpack(f"<{len(slots) // 8}Q", slots))
        words[1::2] = [2**63] * (len(words) // 2)
        file.seek(HEADER_BYTES)
        file.write(struct.pack(f"<{len(words)}Q", *words))
    second = Rates(path)
    assert granted(second, "a", 2) == 2
    second.close()


def test_what_costs_more_takes_more(rates):
    assert rates.wait_seconds("a", SLOW, 10, cost=9) == 0
    assert rates.wait_seconds("a", SLOW, 10, cost=2) > 0
    assert rates.wait_seconds("a", SLOW, 10) == 0
    # More than a line holds takes all of it.
    assert rates.wait_seconds("b", SLOW, 10, cost=100) == 0
    assert rates.wait_seconds("b", SLOW, 10) > 0


@pytest.mark.parametrize("content", [b"", b"x" * FILE_BYTES, b"leoma rates 1\n\0\0"])
def test_a_file_that_is_none_is_made_anew(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    opened = Rates(path)
    assert granted(opened, "a", 2) == 2
    opened.close()
    assert path.stat().st_size == FILE_BYTES
    # With blocks, not holes: a full disk must not end a process that counts.
    assert path.stat().st_blocks * 512 >= FILE_BYTES


def test_where_there_is_no_file_each_worker_counts_alone(tmp_path, caplog):
    (tmp_path / "run").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        opened = Rates(tmp_path / "run" / "rates")
    assert granted(opened, "a", 3) == 3
    opened.close()
    assert "each worker alone" in caplog.text


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("somebody", "somebody"),
        ("x" * 1_000, "x" * 255),
    ],
)
def test_what_counts_as_one_client(address, network):
    assert network_of(address) == network
