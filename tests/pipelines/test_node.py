"""The connection to one node: what it says, and every way in which it may fail to."""

import base64
import contextlib
import hashlib
import re
import signal
import socket
import threading
import time

import pytest
from substrateinterface import Keypair

from cli.simulated.chain import SimulatedChain
from cli.simulated.node import Fault, SimulatedNode
from pipelines.node import ANSWER_BYTES_MAX, Node, NodeError

HOTKEY = Keypair.create_from_uri("//Alice").ss58_address
TIMEOUT_SECONDS = 0.5
WEBSOCKET_ID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEYS = ("SubtensorModule", "Keys")
REVEALED = ("Commitments", "RevealedCommitments")


@pytest.fixture
def chain():
    chain = SimulatedChain()
    chain.register(HOTKEY, 5000)
    chain.mine(2)
    return chain


@pytest.fixture
def simulated(chain):
    with SimulatedNode(chain) as listening:
        yield listening


@pytest.fixture
def node(simulated):
    with contextlib.closing(Node(simulated.url, TIMEOUT_SECONDS)) as made:
        yield made


class RawServer:
    """Whatever listens on a port: `behave(connection, request)` in a thread for each client."""

    def __init__(self, behave):
        self._behave, self.requests = behave, []
        self._over = threading.Event()

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # The other side leaves when it likes.
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                request = connection.recv(65_536)
                self.requests.append(request)
                self._behave(self, connection, request)

    def drip(self, connection, content):
        """Send a byte now and then, often enough for every timeout."""
        for byte in content:
            if self._over.wait(TIMEOUT_SECONDS / 10):
                return
            connection.sendall(bytes([byte]))

    def wait(self):
        """Say nothing more."""
        self._over.wait(10)


def accept(connection, request):
    """Answer the handshake."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1]
    digest = base64.b64encode(hashlib.sha1(key + WEBSOCKET_ID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + digest + b"\r\n\r\n"
    )


def asked(url, within_seconds=5):
    """Return the sentence of a node that cannot be asked for its head."""
    node = Node(url, TIMEOUT_SECONDS)
    with pytest.raises(NodeError) as caught, node.within(within_seconds):
        node.head()
    assert node.close() is None
    return str(caught.value)


def test_head_and_genesis(chain, simulated, node):
    assert node.head() == (chain.head, 2)
    assert node.genesis_hash() == node.genesis_hash() == chain.genesis_hash
    assert simulated.calls.count("chain_getBlockHash") == 1


def test_values_come_in_order_and_what_is_not_stored_is_none(chain, node):
    chain.reveal(HOTKEY, "text", block=1)
    block_hash = chain.mine()
    questions = [(*KEYS, [99, 7]), (*KEYS, [99, 0]), (*REVEALED, [99, HOTKEY])]
    absent, key, revealed = node.storage(block_hash, questions)
    # `Keys` has a default, the zero account: it is not taken for a stored one.
    assert absent is None
    assert key.value == HOTKEY
    assert [entry.value_object[1].value for entry in revealed.value_object] == [1]
    assert node.stored(block_hash, questions) == [
        None,
        Keypair.create_from_uri("//Alice").public_key,
        b"\x04\x14\x10text" + (1).to_bytes(8, "little"),
    ]


def test_a_block_that_is_over_can_be_read(chain, node):
    before = chain.head
    chain.deregister(0)
    after = chain.mine()
    assert [node.stored(one, [(*KEYS, [99, 0])])[0] == bytes(32) for one in (before, after)] == [
        False,
        True,
    ]


def test_many_keys_are_asked_for_in_a_few_requests(chain, simulated, node):
    values = node.stored(chain.head, [(*KEYS, [99, uid]) for uid in range(1200, -1, -1)])
    assert len(values) == 1201
    assert [uid for uid, value in enumerate(values) if value is not None] == [1200]
    assert simulated.calls.count("state_queryStorageAt") == 3
    assert node.stored(chain.head, []) == []


def test_an_item_that_the_runtime_does_not_have_is_said(chain, node):
    with pytest.raises(NodeError, match=r'its runtime: .*"Commitments.Nothing" not found'):
        node.storage(chain.head, [("Commitments", "Nothing", [])])
    with pytest.raises(NodeError, match=r"its runtime: the answer cannot be read"):
        node.storage(chain.head, [(*KEYS, ["no number", 1])])
    assert node.head()[1] == 2


def test_a_block_that_is_not_kept_is_said(node):
    with pytest.raises(NodeError, match=r"it answered with an error: .*State already discarded"):
        node.stored("0x" + "11" * 32, [(*KEYS, [99, 0])])


def test_a_method_that_does_not_exist_is_said(node):
    with pytest.raises(NodeError, match=r"no_such: it answered with an error: .*not found"):
        node.ask("no_such", [])


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sentence = asked(f"ws://127.0.0.1:{port}")
    assert sentence == f"ws://127.0.0.1:{port}, connecting: nobody listens there"


def test_a_listener_that_says_nothing():
    with RawServer(lambda server, *_: server.wait()) as server:
        assert "connecting: no answer within 0.5 seconds" in asked(f"ws://127.0.0.1:{server.port}")


def test_a_handshake_that_drips_is_cut():
    def drip(server, connection, _request):
        server.drip(connection, b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 1000)

    with RawServer(drip) as server:
        sentence = asked(f"ws://127.0.0.1:{server.port}", within_seconds=0.8)
    assert sentence.endswith("connecting: it took more than 0.8 seconds in all")


def test_an_answer_that_drips_is_cut():
    def drip(server, connection, request):
        accept(connection, request)
        connection.recv(65_536)
        server.drip(connection, b"\x81\x7e\x10\x00" + b"x" * 4096)

    with RawServer(drip) as server:
        sentence = asked(f"ws://127.0.0.1:{server.port}", within_seconds=0.8)
    assert sentence.endswith("chain_getHead: it took more than 0.8 seconds in all")


def test_an_answer_without_end_is_cut():
    def flood(server, connection, request):
        accept(connection, request)
        connection.recv(65_536)
        connection.sendall(b"\x81\x7f" + (2**40).to_bytes(8, "big"))
        for _ in range(ANSWER_BYTES_MAX // 2**20 + 1):
            connection.sendall(bytes(2**20))
        server.wait()

    with RawServer(flood) as server:
        sentence = asked(f"ws://127.0.0.1:{server.port}", within_seconds=30)
    assert sentence.endswith(f"the answer is wrong: more than {ANSWER_BYTES_MAX} bytes")


def test_a_redirect_is_not_followed():
    with RawServer(lambda *_: None) as other:

        def redirect(_server, connection, _request):
            connection.sendall(
                f"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{other.port}/\r\n\r\n".encode()
            )

        with RawServer(redirect) as server:
            assert "connecting: the connection failed" in asked(f"ws://127.0.0.1:{server.port}")
    assert other.requests == []


# Each of these is in the address and in what the node says of it.
ADDRESS = "ws://some%40one:hidden1@127.0.0.1:{port}/v1/hidden2/rpc?token=hidden3&other=hid%2Dden4"
HIDDEN = ("hidden", "hid-den", "hid%2Dden", "some@one", "some%40one")


def test_a_refusal_that_repeats_the_address_does_not_show_its_secrets():
    def refuse(_server, connection, request):
        # As a gateway does: what was asked for, in headers and body.
        target = request.split()[1]
        body = b"no such key: hidden3 of some@one for " + target
        connection.sendall(
            b"HTTP/1.1 401 Unauthorized hidden3\r\nX-Key: hidden3\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    with RawServer(refuse) as server:
        sentence = asked(ADDRESS.format(port=server.port))
        assert b"hidden3" in server.requests[0]
    assert sentence == (
        f"ws://127.0.0.1:{server.port}, connecting: HTTP status 401 instead of a WebSocket"
    )


@pytest.mark.parametrize("padding", [0, 230, 240])
def test_an_error_that_repeats_the_address_does_not_show_its_secrets(simulated, padding):
    said = "x" * padding + " hidden1 hidden2 hidden3 hid-den4 hid%2Dden4 some@one some%40one"
    simulated.fault = lambda _method, _params: Fault.error(-32_000, said)
    sentence = asked(ADDRESS.format(port=simulated.port))
    assert "it answered with an error" in sentence
    # Nor half of one, where the sentence ends.
    assert not any(part in sentence for part in (*HIDDEN, "hidd", "some@", "some%"))


@pytest.mark.parametrize(
    "address",
    ["ws://", "ws://me:hid#den@127.0.0.1:1", "ws://me:hidden@[::1:1", "ws://127.0.0.1:hidden"],
)
def test_an_address_that_cannot_be_read_is_not_shown(address):
    assert asked(address) == (
        "a node whose address cannot be read, connecting: give ws://host:port or wss://host:port"
    )


def test_what_a_node_says_is_one_line(simulated):
    simulated.fault = lambda _method, _params: Fault.error(1, "a\nb\x1b[31m\r\n\tc" + "d" * 1000)
    sentence = asked(simulated.url)
    assert sentence.isprintable()
    assert len(sentence) < 400


def test_an_error_drops_the_connection_and_the_next_use_makes_a_new_one(chain, simulated, node):
    before = node.substrate
    simulated.fault = lambda _method, _params: Fault.error(1, "no")
    with pytest.raises(NodeError):
        node.head()
    simulated.fault = lambda _method, _params: None
    assert node.head() == (chain.head, 2)
    assert node.substrate is not before
    _until(lambda: simulated.connections == 1)


def test_an_interrupt_drops_the_connection(chain, simulated, node):
    class StopNow(BaseException):
        pass

    def interrupt(_number, _frame):
        raise StopNow

    node.head()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        simulated.fault = lambda _method, _params: Fault.hang()
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT_SECONDS / 5)
        with pytest.raises(StopNow):
            node.head()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    _until(lambda: simulated.connections == 0)
    simulated.fault = lambda _method, _params: None
    assert node.head() == (chain.head, 2)


def test_a_limit_that_was_kept_cuts_nothing(chain, node):
    with node.within(0.3):
        node.head()
    time.sleep(0.5)
    assert node.head() == (chain.head, 2)


def test_nothing_is_opened_before_it_is_needed_and_nothing_is_left(simulated):
    node = Node(simulated.url, TIMEOUT_SECONDS)
    node.close()
    assert simulated.calls == []
    node.head()
    _until(lambda: simulated.connections == 1)
    node.close()
    _until(lambda: simulated.connections == 0)


def _until(is_so):
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
