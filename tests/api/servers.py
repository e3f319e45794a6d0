"""A real server for a test: uvicorn on a free port of the loopback, in a thread of its own."""

import json
import threading
import time
from typing import Any, Self

import httpx
import uvicorn

from api.app import create_app
from api.settings import ApiSettings
from cli.connections import server_options
from tests.builders import signed_headers
from warehouse.settings import WarehouseSettings


def _refuse_internal_errors(response: httpx.Response) -> None:
    """Fail whatever test provoked one: nothing that a client sends may be answered with a 500."""
    assert response.status_code != 500, f"{response.request.method} {response.request.url}"


class Server:
    """Serves an application from `with` to the end of it."""

    def __init__(self, settings: ApiSettings, warehouse_settings: WarehouseSettings) -> None:
        self.settings = settings
        self.warehouse_settings = warehouse_settings
        config = uvicorn.Config(
            create_app(settings, warehouse_settings),
            host="127.0.0.1",
            port=0,
            loop="uvloop",
            **server_options(settings),
            lifespan="on",
            log_level="error",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            trust_env=False,
            timeout=30,
            event_hooks={"response": [_refuse_internal_errors]},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join()

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        """GET without a signature."""
        return self.http.get(path, **kwargs)

    def signed(
        self,
        name: str,
        method: str,
        path: str,
        document: Any = ...,
        *,
        content: bytes | None = None,
        scheme: int = 2,
        headers: dict[str, str] | None = None,
        **signing: Any,
    ) -> httpx.Response:
        """Send a request that `name` signed."""
        body = content if content is not None else b""
        if document is not ...:
            body = json.dumps(document).encode()
        given = signed_headers(name, body, method=method, path=path, scheme=scheme, **signing)
        return self.http.request(method, path, content=body, headers={**given, **(headers or {})})
