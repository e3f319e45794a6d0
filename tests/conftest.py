"""Fixtures for all packages: a home of its own for every test, and one S3 server for all."""

import contextlib
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_storage import DOMAIN, ObjectServer
from warehouse.settings import WarehouseSettings

IS_TORTURE = os.environ.get("LEOMA_TORTURE") == "1"
SUMMED = {
    "requests over HTTP",
    "examples of properties",
    "faults injected",
    "disks after a power cut",
    "damaged pages",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty LEOMA_HOME."""
    return tmp_path / "home"


@pytest.fixture(scope="session")
def is_torture() -> bool:
    """Whether everything is tried, which takes minutes, or a short selection."""
    return IS_TORTURE


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to torture what is marked so."""
    if IS_TORTURE:
        return
    left = [item for item in items if item.get_closest_marker("torture")]
    items[:] = [item for item in items if not item.get_closest_marker("torture")]
    config.hook.pytest_deselected(items=left)


@pytest.fixture
def moments() -> random.Random:
    """When to kill: other moments in each run, and the seed is told with a failure."""
    seed = os.environ.get("LEOMA_KILL_SEED") or str(time.time_ns() % 1_000_000_007)
    print(f"LEOMA_KILL_SEED={seed}")  # noqa: T201  (pytest shows it with a failure)
    return random.Random(seed)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the figures that tests have recorded."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.user_properties:
            alone = [one for one in report.user_properties if one[0] not in SUMMED]
            figures = ", ".join(f"{value:,} {name}" for name, value in alone)
            if alone:
                terminalreporter.write_line(f"{report.nodeid}: {figures}")
    # What many tests count is told as one sum.
    sums: Counter[str] = Counter()
    for report in terminalreporter.getreports(""):
        if report.when == "teardown":
            sums.update(dict(one for one in report.user_properties if one[0] in SUMMED))
    for name, count in sums.items():
        terminalreporter.write_line(f"{count:,} {name} in all")


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Note how many examples a property was tried with, where xdist's first process sees it."""
    if call.when == "teardown":
        said = getattr(item, "hypothesis_statistics", "")
        counts = re.findall(r"(\d+) passing, (\d+) failing", said)
        if counts:
            tried = sum(int(count) for pair in counts for count in pair)
            item.user_properties.append(("examples of properties", tried))
    return (yield)
