"""What is sent as bytes: requests cut, doubled, misframed, pipelined, and no requests at all.

Whatever comes, the server says something that is HTTP or ends the connection, in a time that its
limits give, and serves the next client. `tests.cli.test_connections` has each limit of its own.
"""

import itertools
import random
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.app import create_api
from tests.api.conftest import API_SETTINGS
from tests.api.findings import RAW
from tests.api.fuzzing import (
    IS_LONG,
    SEED,
    Fuzzed,
    answers_in,
    at_once,
    exchange,
    refuse_failure,
)
from tests.api.made_requests import Maker
from warehouse.settings import WarehouseSettings

# Short, or most of the time would be spent waiting for what does not come.
LIMITS = {
    "HEADER_SECONDS_MAX": "0.2",
    "KEEP_ALIVE_SECONDS": "0.15",
    "REQUEST_SECONDS_MAX": "1.0",
    "HEADER_BYTES_MAX": "4096",
}
PIPELINED_MAX = 6
CONNECTIONS = 1_200
LOOPS = 4 if IS_LONG else 1
EXAMPLES = 1_500 if IS_LONG else 25
CLIENTS = 48 if IS_LONG else 24
LOOKED_AFTER = 50
MAKER = Maker(create_api(API_SETTINGS, WarehouseSettings()).openapi())

JUNK = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\xff\xfe",
    b"\x80",
    b" ",
    b"\t",
    b"\r\n ",
    b"\r\n\t",
    b":",
    b": ",
    b"\r\n\r\n",
    b"\r\n: x",
    b"\r\n x: y",
    b"\r\nx : y",
    b"\r\n\0: x",
    b"\r\nx: \0",
    b"\r\nx: \x7f",
    b"\r\nContent-Length: 5",
    b"\r\nContent-Length: -1",
    b"\r\nContent-Length: +5",
    b"\r\nContent-Length: 5, 5",
    b"\r\nContent-Length: 99999999999999999999",
    b"\r\nContent-Length:",
    b"\r\nContent-Length: 0x5",
    b"\r\nContent-Length: 18446744073709551615",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: gzip",
    b"\r\nTransfer-Encoding:",
    b"\r\nTransfer-Encoding: chunked, chunked",
    b"\r\nTransfer-Encoding: xchunked",
    b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 3",
    b"\r\nTransfer-Encoding : chunked",
    b"\r\nExpect: 100-continue",
    b"\r\nExpect: x",
    b"\r\nConnection: close",
    b"\r\nConnection: x",
    b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
    b"\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b"\r\nHost: a\r\nHost: b",
    b"\r\nX: " + b"x" * 5_000,
    b"\r\n" + b"y" * 5_000,
    b"\r\nX: y" * 300,
    b"%00",
    b"%ff%fe",
    b"%",
    b"..%2f",
    b"\\",
    b"?",
    b"#",
    b";",
    b"HTTP/1.1",
    b"HTTP/9.9",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"5;a=b\r\nhello\r\n",
    b"0\r\nX-Signature: x\r\n\r\n",
    b"1\r\nx",
    b"zz\r\n",
]
LINES = [
    b"GET http://evil.example/weights HTTP/1.1",
    b"GET //weights HTTP/1.1",
    b"GET * HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT evil.example:443 HTTP/1.1",
    b"GET /weights",
    b"GET  /weights HTTP/1.1",
    b"GET /weights HTTP/1.0",
    b"GET /weights HTTP/0.9",
    b"GET /weights HTTP/2.0",
    b"GET /weights HTTP/11",
    b"get /weights HTTP/1.1",
    b"GE\0T /weights HTTP/1.1",
    b"GET /weights\0 HTTP/1.1",
    b"GET weights HTTP/1.1",
    b"GET /\xff\xfe HTTP/1.1",
    b"GET /weights?\xe9 HTTP/1.1",
    b"GET /weights#x HTTP/1.1",
    b"GET ? HTTP/1.1",
    b"GET /weights\tHTTP/1.1",
    b"POST /samples HTTP/1.1",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"HTTP/1.1 200 OK",
    b"GET http://[::1/ HTTP/1.1",
    b"GET http://:99999/ HTTP/1.1",
    b"SOURCE /weights HTTP/1.1",
    b"M-SEARCH * HTTP/1.1",
    b"QUIT",
    b"GET /" + b"a/" * 1_500 + b" HTTP/1.1",
    b"GET /" + b"%2e%2e/" * 400 + b" HTTP/1.1",
]


def spoilt(dice, request):
    """Return a request with some of its bytes changed."""
    for _ in range(dice.choice([0, 1, 1, 2, 3])):
        # Most of what can go wrong in framing is in the head.
        end = request.find(b"\r\n\r\n") + 4 if dice.random() < 0.8 else len(request)
        at = dice.randrange(max(end, 0) + 1)
        to = min(len(request), at + dice.choice([1, 2, 5, 40]))
        kind = dice.randrange(9)
        if kind <= 2:
            request = request[:at] + dice.choice(JUNK) + request[at:]
        elif kind == 3:
            request = request[:at] + request[to:]
        elif kind == 4:
            request = request[:to] + request[at:]
        elif kind == 5:
            request = request[:at] + dice.randbytes(to - at) + request[to:]
        elif kind == 6:
            request = dice.choice(LINES) + b"\r\n" + request.partition(b"\r\n")[2]
        elif kind == 7:
            request = request.replace(b"\r\n", b"\n", dice.choice([1, 1, -1]))
        else:
            # After its first line, where headers begin.
            begin, found, rest = request.partition(b"\r\n")
            request = begin + dice.choice(JUNK) + found + rest
    return request


def conversation(seed, number):
    """Return what one connection sends, in pieces, and how many requests it was made of."""
    dice = random.Random(f"{seed}:{number}")
    count = dice.choice([1, 1, 2, 3, PIPELINED_MAX])
    requests = [MAKER.made(seed, dice.getrandbits(48)).raw() for _ in range(count)]
    # Most of them whole, or the first one that is refused would hide the others.
    at = dice.randrange(count)
    sent = b"".join(
        spoilt(dice, one) if number == at or dice.random() < 0.2 else one
        for number, one in enumerate(requests)
    )
    if dice.random() < 0.1:
        sent = sent[: dice.randrange(len(sent) + 1)]
    elif dice.random() < 0.02:
        sent = dice.randbytes(dice.choice([1, 50, 5_000]))
    cuts = sorted(dice.randrange(len(sent) + 1) for _ in range(dice.choice([0, 0, 1, 3])))
    return [sent[a:b] for a, b in itertools.pairwise([0, *cuts, len(sent)])], count


def check(received, sent):
    answers = answers_in(received, sent)
    for answer in answers:
        refuse_failure(answer, sent)
    return answers


@pytest.fixture(scope="module")
def fuzzed(module_home):
    with Fuzzed(module_home, **LIMITS) as server:
        yield server
        assert server.answers_properly()
        server.refuse_growth()


@pytest.fixture(autouse=True)
def counted(request, fuzzed):
    """Tell what a test sent, for the sum at the end."""
    before = fuzzed.told.requests
    yield
    sent = fuzzed.told.requests - before
    request.node.user_properties.append(("requests over HTTP", sent))


@pytest.mark.parametrize("loop", range(LOOPS))
def test_no_bytes_are_answered_with_a_failure(fuzzed, loop):
    told = fuzzed.told

    def work(numbers):
        for number in numbers:
            pieces, count = conversation(SEED + loop, number)
            told.sent(count)
            begun = time.monotonic()
            leaves = number % 29 == 0
            try:
                received = exchange(fuzzed.port, pieces, leaves=leaves)
                seconds = time.monotonic() - begun
                answers = check(received, b"".join(pieces))
            except Exception as error:
                raise AssertionError(f"{SEED + loop}:{number} {pieces}") from error
            for answer in answers or [None]:
                told.answered(answer, seconds)
            if number % LOOKED_AFTER == 0:
                assert fuzzed.answers_properly()

    at_once(CLIENTS, CONNECTIONS, work)
    assert fuzzed.answers_properly()
    assert {200, 400, 401, 404, 422, 431} <= told.statuses.keys(), told.statuses


headers = st.sampled_from(JUNK) | st.builds(
    lambda name, value: b"\r\n" + name + b": " + value, st.binary(max_size=8), st.binary(max_size=8)
)
requests = st.builds(
    lambda line, fields, body: line + b"".join(fields) + b"\r\n\r\n" + body,
    st.sampled_from(LINES) | st.binary(max_size=20),
    st.lists(headers, max_size=4),
    st.sampled_from([b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n"]) | st.binary(max_size=20),
)


def with_findings(test):
    for finding in RAW.values():
        test = example([finding.sent])(test)
    return test


@with_findings
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not IS_LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(requests, min_size=1, max_size=3))
def test_the_server_answers_the_next_one_after_any_bytes(fuzzed, sent):
    fuzzed.told.sent(len(sent))
    begun = time.monotonic()
    received = exchange(fuzzed.port, sent)
    for answer in check(received, b"".join(sent)) or [None]:
        fuzzed.told.answered(answer, time.monotonic() - begun)
    assert fuzzed.answers_properly()


def test_nothing_has_grown(fuzzed, record_property):
    """By what was sent until now; it is looked at once more when all is over."""
    fuzzed.refuse_growth()
    for name, count in fuzzed.figures().items():
        record_property(name, count)
