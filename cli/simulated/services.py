"""Chutes and Hugging Face as they look from outside, on one local port, for the demo and tests.

Only what a miner's validation asks is there, with the statuses and headers of the real services,
and every way of failing on cue. Nothing is stored.
"""

import contextlib
import hashlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

ADDRESS = "127.0.0.1"
DRIP_SECONDS = 0.02
FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class HttpFault:
    """What a service does instead of answering.

    `status`: this status with these headers and this body, whatever is asked. `hang`: it accepts
    and says nothing. `drip_headers` and `drip_body`: a byte at a time, without end. `cut`: it
    closes the connection in the middle of the body. `garbage`: bytes that are not HTTP.
    """

    kind: Literal["status", "hang", "drip_headers", "drip_body", "cut", "garbage"]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """A request that came in: its path with the query, as sent, and its headers in lower case."""

    path: str
    headers: Mapping[str, str]


@dataclass
class Model:
    """A repository: its files and their LFS digests by commit, and names for commits."""

    files: dict[str, dict[str, str | None]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    is_disabled: bool = False


@dataclass(frozen=True)
class Answer:
    """A status, its headers and a JSON document."""

    status: int
    document: object
    headers: Mapping[str, str] = field(default_factory=dict)


class SimulatedServices:
    """Both services while the `with` block lasts; everything in it may change at any time.

    With `chutes_key` or `hf_token` set, who sends another one is refused as the services do it.
    `fault` is asked about the path of each request; `latency_seconds` is how long each answer
    takes; `in_flight_max` is the largest number of requests that were under way at once.
    """

    def __init__(self, port: int = 0, *, chutes_key: str = "", hf_token: str = "") -> None:
        self.requests: list[Request] = []
        self.fault: Callable[[str], HttpFault | None] = lambda _path: None
        self.latency_seconds = 0.0
        self.in_flight_max = 0
        self.is_over = threading.Event()
        self._chutes_key = chutes_key
        self._hf_token = hf_token
        self._chutes: dict[str, dict[str, object]] = {}
        self._models: dict[str, Model] = {}
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server = _Server((ADDRESS, port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        """Start to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End every request, connection and thread."""
        self.is_over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        # Waits for the threads of all connections.
        self._server.server_close()

    @property
    def chutes_url(self) -> str:
        """What `CHUTES_API_URL` is set to."""
        return f"http://{ADDRESS}:{self._server.server_address[1]}"

    @property
    def hf_url(self) -> str:
        """What `HF_ENDPOINT` is set to."""
        return self.chutes_url

    def add_chute(self, chute_id: str, slug: str | None, hot: bool, revision: str | None) -> None:  # noqa: FBT001 - as the service calls it
        """Have a chute, or change it."""
        described = {"slug": slug, "hot": hot, "revision": revision}
        self._chutes[chute_id] = {"chute_id": chute_id, **described}

    def remove_chute(self, chute_id: str) -> None:
        """Have a chute no more."""
        del self._chutes[chute_id]

    def add_model(
        self, name: str, revision: str, files: Mapping[str, str | None], *branches: str
    ) -> None:
        """Have a commit of a model with these files, and branches that name it.

        A file's value is its LFS sha256, or None when git holds it itself.
        """
        model = self._models.setdefault(name, Model())
        model.files[revision] = dict(files)
        model.names |= {revision: revision, **dict.fromkeys(branches, revision)}

    def remove_model(self, name: str) -> None:
        """Have a model no more."""
        del self._models[name]

    def close_model(self, name: str, *, is_gated: bool = False, is_disabled: bool = False) -> None:
        """Show a model to nobody, or again when neither is given."""
        self._models[name].is_gated = is_gated
        self._models[name].is_disabled = is_disabled

    def begin(self, request: Request) -> None:
        """Note a request and count it as under way."""
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.in_flight_max = max(self.in_flight_max, self._in_flight)

    def end(self) -> None:
        """Count a request as answered: before its answer is sent, since the next may follow it."""
        with self._lock:
            self._in_flight -= 1

    def answer(self, request: Request) -> Answer:
        """Answer as the services would."""
        place = urlsplit(request.path)
        segments = [unquote(segment) for segment in place.path.split("/")[1:]]
        has_blobs = parse_qs(place.query).get("blobs", [""])[0].lower() == "true"
        match segments:
            case ["chutes", chute_id]:
                return self._chute(chute_id, request.headers)
            case ["api", "models", *name, "revision", revision] if len(name) in {1, 2}:
                return self._model("/".join(name), revision, request.headers, has_blobs=has_blobs)
            case _:
                return Answer(404, {"detail": "Not Found"})

    def _chute(self, chute_id: str, headers: Mapping[str, str]) -> Answer:
        if self._chutes_key and headers.get("authorization") != f"Bearer {self._chutes_key}":
            return Answer(401, {"detail": "Invalid API key"})
        if chute_id not in self._chutes:
            return Answer(404, {"detail": "Chute not found, or does not belong to you"})
        return Answer(200, self._chutes[chute_id])

    def _model(
        self, name: str, revision: str, headers: Mapping[str, str], *, has_blobs: bool
    ) -> Answer:
        is_somebody = "authorization" in headers
        if is_somebody and headers["authorization"] != f"Bearer {self._hf_token}":
            return _denial(401, None, "Invalid credentials in Authorization header")
        model = self._models.get(name)
        if model is None:
            # To nobody it is not told whether there is such a repository.
            return _denial(404 if is_somebody else 401, "RepoNotFound", "Repository not found")
        if model.is_disabled:
            return _denial(403, None, "Access to this resource is disabled.")
        if model.is_gated:
            return _denial(403 if is_somebody else 401, "GatedRepo", f"Access to {name} is gated")
        if revision not in model.names:
            return _denial(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        sha = model.names[revision]
        siblings = [
            _sibling(file, digest) if has_blobs else {"rfilename": file}
            for file, digest in model.files[sha].items()
        ]
        return Answer(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings})


def _sibling(file: str, digest: str | None) -> dict[str, object]:
    blob_id = hashlib.sha256(file.encode()).hexdigest()[:40]
    sibling: dict[str, object] = {"rfilename": file, "blobId": blob_id, "size": FILE_BYTES}
    if digest is not None:
        sibling["lfs"] = {"sha256": digest, "size": FILE_BYTES, "pointerSize": 135}
    return sibling


def _denial(status: int, code: str | None, message: str) -> Answer:
    headers = {"X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return Answer(status, {"error": message}, headers)


class _Server(ThreadingHTTPServer):
    """A thread a connection, each of which can be ended from here."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], services: SimulatedServices) -> None:
        self.services = services
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away in the middle; that is its good right."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close_connections(self) -> None:
        """Wake the threads that wait for a client's next request."""
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection and its requests, one after the other."""

    server: _Server
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers)
        self.server.services.begin(request)
        try:
            self.server.services.is_over.wait(self.server.services.latency_seconds)
            fault = self.server.services.fault(request.path)
            answer = self.server.services.answer(request) if fault is None else None
        finally:
            self.server.services.end()
        if fault is not None:
            self._fail(fault)
        elif answer is not None:
            body = json.dumps(answer.document).encode()
            self._send(answer.status, answer.headers, body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-type" not in {name.lower() for name in headers}:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, fault: HttpFault) -> None:
        self.close_connection = fault.kind != "status"
        match fault.kind:
            case "status":
                self._send(fault.status, fault.headers, fault.body)
            case "hang":
                self.server.services.is_over.wait()
            case "garbage":
                self.wfile.write(b"\x00\xff nothing that anybody could read\r\n\r\n")
            case "cut":
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"hot": tr')
            case "drip_headers":
                self._drip(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            case "drip_body":
                self._drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")

    def _drip(self, start: bytes) -> None:
        """Send a space at a time until the client has enough."""
        self.wfile.write(start)
        with contextlib.suppress(OSError):
            while not self.server.services.is_over.wait(DRIP_SECONDS):
                self.wfile.write(b" ")

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the parent's name
        """Keep quiet: what came in is in `requests`."""
