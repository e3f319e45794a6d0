"""Fixtures for all packages: a home of its own for every test, and one S3 server for all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_storage import ObjectServer
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
