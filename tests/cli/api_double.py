"""A real HTTP server that answers `GET /weights` as a test says, with faults on cue."""

import email.utils
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.builders import hotkey


def iso(moment):
    return moment.isoformat().replace("+00:00", "Z")


def answer(**changes):
    """Return a WeightsResponse, whole and fresh: `winner` (uid 1) has won; `...` drops a field."""
    now = datetime.now(UTC)
    document = {
        "winner_uid": 1,
        "winner_hotkey": hotkey("winner"),
        "burn_reason": None,
        "miners": [
            {"miner_hotkey": hotkey("winner"), "uid": 1, "pass_rate": 0.9, "weight": 1.0},
            {"miner_hotkey": hotkey("other"), "uid": 2, "pass_rate": 0.5, "weight": 0.0},
        ],
        "snapshot_id": "20261123T095900Z",
        "netuid": 99,
        "block": 1,
        "computed_at": iso(now - timedelta(seconds=5)),
        "valid_until": iso(now + timedelta(seconds=600)),
        "watermark": 12,
        **changes,
    }
    return {name: value for name, value in document.items() if value is not ...}


def burn(reason="no_rank", **changes):
    """Return a WeightsResponse of a burn."""
    burnt = {"winner_uid": 0, "winner_hotkey": None, "burn_reason": reason, "miners": []}
    return answer(**{**burnt, **changes})


class ApiDouble:
    """Serves `document` from `with` to the end of it.

    `status` and `body` (bytes) replace the answer; `date` moves the server's clock by seconds, or
    leaves it out (None); `drip_seconds` sends one byte in so many seconds, from the head on with
    `is_head_slow`. `requests` are the paths asked for.
    """

    def __init__(self, document=None):
        self.document = document
        self.status, self.body, self.date, self.drip_seconds = 200, None, 0.0, 0.0
        self.is_head_slow = False
        self.failures = 0
        self.requests = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                api.requests.append(self.path)
                status = api.status
                if api.failures:
                    api.failures, status = api.failures - 1, 503
                body = api.body
                if body is None:
                    body = json.dumps(api.document or answer()).encode()
                self.send_response_only(status)
                if api.date is not None:
                    self.send_header("Date", email.utils.formatdate(time.time() + api.date))
                self.send_header("Content-Length", str(len(body)))
                if api.is_head_slow:
                    body = b"X-Endless: " + b"x" * 1_000
                    self.flush_headers()
                else:
                    self.end_headers()
                if not api.drip_seconds:
                    self.wfile.write(body)
                    return
                for byte in body:
                    try:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                    except OSError:
                        return
                    time.sleep(api.drip_seconds)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
