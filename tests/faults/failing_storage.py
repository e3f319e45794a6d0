"""A proxy before the S3 server that knows requests, and lets one of them fail."""

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NOT_APPLIED, APPLIED = "not_applied", "applied"


class FailingStorage:
    """Counts requests, and drops one of them before the server has it, or its answer after that."""

    def __init__(self, upstream_port):
        self._upstream_port = upstream_port
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.plan()

    def plan(self, nth=0, mode=NOT_APPLIED):
        """Count from 0 again, and let the `nth` (from 1) fail, or none."""
        with self._guard:
            self._nth, self._mode, self.requests, self.hit = nth, mode, [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _decide(self, line):
        with self._guard:
            self.requests.append(line)
            if len(self.requests) != self._nth:
                return None
            self.hit = line
            return self._mode

    def _handler(self):
        serve = self._serve

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are two writes: the second would wait for the client to confirm.
            disable_nagle_algorithm = True

            def do_GET(self):
                serve(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        return Handler

    def _serve(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        mode = self._decide(f"{handler.command} {handler.path}")
        if mode == NOT_APPLIED:
            handler.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=30)
        with contextlib.closing(upstream):
            upstream.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                if name.lower() != "expect":
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
        if mode == APPLIED:
            handler.close_connection = True
            return
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                handler.send_header(name, value)
        is_bodiless = handler.command == "HEAD" or answer.status in {204, 304}
        length = answer.getheader("Content-Length", "0") if is_bodiless else str(len(content))
        handler.send_header("Content-Length", length)
        handler.end_headers()
        if not is_bodiless:
            handler.wfile.write(content)
