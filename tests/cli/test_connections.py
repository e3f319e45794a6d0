"""Connections that say little, too much, or read nothing; each ends, and others do not notice."""

import contextlib
import json
import socket
import time

import pytest

from cli.connections import JOINED_BYTES_MAX, QuietTransport
from tests.builders import sample_body, signed_headers

SECONDS_MAX = 30
REQUEST = b"GET /health/live HTTP/1.1\r\nHost: leoma\r\n\r\n"


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), SECONDS_MAX) as connection:
        yield connection


def rest(connection):
    """What comes until the other side ends it, in due form or not."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while content := connection.recv(65_536):
            found += content
    return found


def until(is_so):
    deadline = time.monotonic() + SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.01)


def open_connections(server):
    return len(server._server.server_state.connections)


@pytest.mark.parametrize(
    "said", [b"", b"G", b"GET /health/live HTTP/1.1\r\nHost: l", REQUEST + b"GET /health"]
)
def test_a_head_that_does_not_come_is_not_waited_for(serving, said):
    server = serving(header_seconds_max=0.3)
    with connected(server) as connection:
        connection.sendall(said)
        found = rest(connection)
    assert found.count(b"HTTP/1.1") == said.count(REQUEST)


def test_empty_lines_keep_no_connection(serving):
    server = serving(header_seconds_max=0.3)
    with connected(server) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.sendall(b"\r\n")
        rest(connection)
    until(lambda: open_connections(server) == 0)


def test_a_head_that_drips_is_not_waited_for(serving):
    server = serving(header_seconds_max=0.3)
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        for number in range(SECONDS_MAX * 100):
            connection.sendall(f"X-{number}: 1\r\n".encode())
            time.sleep(0.01)
        raise AssertionError("it was waited for")


def test_a_body_is_not_part_of_the_head(serving):
    server = serving(header_seconds_max=0.3, request_seconds_max=1.5)
    with connected(server) as connection:
        connection.sendall(b"POST /samples HTTP/1.1\r\nHost: l\r\nContent-Length: 9\r\n\r\n")
        # Without a signature it is answered before the body is there.
        assert connection.recv(12) == b"HTTP/1.1 401"


TOO_LARGE = {
    "one header": b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    "one without an end": b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000,
    "a name": b"GET / HTTP/1.1\r\n" + b"x" * 20_000 + b": 1\r\n\r\n",
    "many": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(4_000)) + b"\r\n",
    "a target": b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "a target without an end": b"GET /" + b"x" * 20_000,
    "after a request": REQUEST + b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_head_has_a_size(serving, sent):
    server = serving()
    with connected(server) as connection:
        connection.sendall(sent)
        found = rest(connection)
    assert b"HTTP/1.1 431 Request Header Fields Too Large\r\n" in found
    assert found.endswith(b'{"detail":"the head of the request is larger than HEADER_BYTES_MAX"}')
    assert server.get("/health/live").status_code == 200


def test_so_has_what_follows_a_body_in_chunks(serving):
    server = serving()
    with connected(server) as connection:
        connection.sendall(
            b"GET /health/live HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
            + b"".join(b"X-%d: 1\r\n" % number for number in range(4_000))
        )
        assert b"431" in rest(connection)


def test_nothing_is_taken_in_for_ever(serving):
    server = serving(max_body_size=10_000)
    sent = 0
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(REQUEST[:-2] + b"Content-Length: 9999999999\r\n\r\n")
        while sent < 64 * 2**20:
            connection.sendall(b"x" * 65_536)
            sent += 65_536
    assert sent < 64 * 2**20


def test_connections_are_bounded_in_number(serving):
    server = serving(connections_max=3)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(server)) for _ in range(3)]
        until(lambda: open_connections(server) == 3)
        with connected(server) as refused:
            assert rest(refused) == b""
        for one in held:
            one.sendall(REQUEST)
            assert one.recv(15) == b"HTTP/1.1 200 OK"
        held.pop().close()
        until(lambda: open_connections(server) == 2)
        assert server.get("/health/live").status_code == 200


def test_one_address_cannot_take_all_connections(serving):
    server = serving(connections_per_address_max=2, trusted_proxies=("192.0.2.1",))
    with connected(server), connected(server):
        until(lambda: open_connections(server) == 2)
        with connected(server) as refused:
            assert rest(refused) == b""
        # Somebody else's: every address of the loopback is one of this machine.
        with socket.create_connection(
            ("127.0.0.1", server.port), SECONDS_MAX, source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(REQUEST)
            assert other.recv(15) == b"HTTP/1.1 200 OK"
    until(lambda: open_connections(server) == 0)
    assert server.get("/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/openapi.json", "/weights"])
def test_who_does_not_read_is_cut_off(serving, path):
    server = serving(request_seconds_max=0.3, keep_alive_seconds=0.3)
    request = f"GET {path} HTTP/1.1\r\nHost: leoma\r\n\r\n".encode()
    with socket.socket() as connection:
        # Little room on this side, so that the server's fills soon.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(SECONDS_MAX)
        connection.connect(("127.0.0.1", server.port))
        with contextlib.suppress(ConnectionError):
            for _ in range(200_000):
                connection.sendall(request)
        until(lambda: open_connections(server) == 0)
    assert server.get("/health/live").status_code == 200


def test_an_answer_that_closes_is_not_waited_for_either(serving):
    server = serving(request_seconds_max=0.3, keep_alive_seconds=0.3)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: leoma\r\nConnection: close\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request)
        until(lambda: open_connections(server) == 0)


class Recorded:
    """Takes what a transport is given."""

    def __init__(self):
        self.said = []

    def write(self, data):
        self.said.append(data)

    def is_closing(self):
        return self.said[-1:] == ["closed"]

    def close(self):
        self.said.append("closed")


def test_an_answer_is_one_piece():
    recorded = Recorded()
    quiet = QuietTransport(recorded)
    for body in (b"body", b""):
        quiet.write(b"head ")
        quiet.write(body)
        quiet.end_answer()
    quiet.write(b"head alone ")
    quiet.end_answer()
    assert recorded.said == [b"head body", b"head ", b"head alone "]
    recorded.said.clear()
    for piece in (b"head ", b"one", b"two"):
        quiet.write(piece)
    quiet.end_answer()
    large = b"x" * (JOINED_BYTES_MAX + 1)
    quiet.write(b"head ")
    quiet.write(large)
    quiet.end_answer()
    assert recorded.said == [b"head one", b"two", b"head ", large]
    recorded.said.clear()
    quiet.write(b"a refusal, head and body")
    quiet.close()
    quiet.write(b"too late")
    assert recorded.said == [b"a refusal, head and body", "closed"]


def test_who_asks_whether_to_go_on_is_told_before_the_body_comes(serving):
    body = json.dumps(sample_body()).encode()
    headers = signed_headers("big", body, method="POST", path="/samples", scheme=2)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /samples HTTP/1.1\r\nHost: l\r\nContent-Length: {len(body)}\r\n{lines}"
    with connected(serving()) as connection:
        for _ in range(2):
            connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"}")


def test_a_head_without_a_body_is_sent(serving):
    with connected(serving()) as connection:
        for _ in range(2):
            connection.sendall(REQUEST.replace(b"GET", b"HEAD"))
            assert connection.recv(65_536).endswith(b"\r\n\r\n")


def test_answers_of_a_pipeline_come_whole_and_in_order(serving):
    head, last = (
        REQUEST.replace(b"GET", b"HEAD"),
        REQUEST.replace(b"leoma", b"l\r\nConnection: close"),
    )
    with connected(serving()) as connection:
        connection.sendall(REQUEST + head + REQUEST.replace(b"live", b"nothing") + last)
        answers = rest(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"404", b"200"]
    assert [answer.endswith(b"\r\n\r\n") for answer in answers] == [False, True, False, False]
