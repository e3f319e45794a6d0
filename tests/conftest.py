"""Fixtures for all packages: a home of its own for every test, and one S3 server for all."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_storage import DOMAIN, ObjectServer
from warehouse.settings import WarehouseSettings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty LEOMA_HOME."""
    return tmp_path / "home"


@pytest.fixture
def warehouse_settings(home: Path) -> WarehouseSettings:
    """Settings of embedded storage in an empty home."""
    return WarehouseSettings(leoma_home=home)


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A real S3 server; started by the first test that asks for it."""
    with ObjectServer(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    """An empty bucket of its own."""
    return object_server.make_bucket()


@pytest.fixture
def virtual_hosts(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address below which each bucket is a host; its names lead to the loopback."""
    resolve = socket.getaddrinfo

    def to_loopback(host: object, *others: object, **named: object) -> object:
        is_ours = isinstance(host, str) and host.endswith(DOMAIN)
        return resolve("127.0.0.1" if is_ours else host, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", to_loopback)
    return f"http://{DOMAIN}:{object_server.port}"


@pytest.fixture
def serving(warehouse_settings):
    """Start servers with other settings on one home, with the small subnet, until the test ends."""
    # Most tests need no application.
    from tests.api.conftest import API_SETTINGS, publish_subnet  # noqa: PLC0415
    from tests.api.servers import Server  # noqa: PLC0415

    publish_subnet(warehouse_settings)
    with contextlib.ExitStack() as stack:

        def start(**values):
            settings = API_SETTINGS.model_copy(update=values)
            return stack.enter_context(Server(settings, warehouse_settings))

        yield start
