"""A real proxy on loopback that fails on cue, between the client and the server."""

import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

import httpx


class Seen(NamedTuple):
    """A request as it arrived here."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """What is answered instead of the server's own answer."""

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


# One entry a request: pass it on, drop it before or after the server has it, or answer instead.
PASS, DROP, DROP_AFTER = "pass", "drop", "drop after"


class FaultyProxy:
    """Plays `plan`, then passes everything on. `seen` has every request, the failed ones too."""

    def __init__(self, upstream_port: int, plan: list[str | Answer]) -> None:
        self.plan = deque(plan)
        self.seen: list[Seen] = []
        self._upstream = httpx.Client(base_url=f"http://127.0.0.1:{upstream_port}", trust_env=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._upstream.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        serve: Callable[[BaseHTTPRequestHandler], None] = self._serve

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                serve(self)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        seen = Seen(handler.command, handler.path, dict(handler.headers), body)
        self.seen.append(seen)
        step = self.plan.popleft() if self.plan else PASS
        if step == DROP:
            return
        if isinstance(step, Answer):
            answer = step
        else:
            passed = self._upstream.request(
                seen.method, seen.path, content=body, headers=seen.headers
            )
            answer = Answer(passed.status_code, passed.content)
        if step == DROP_AFTER:
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body)
