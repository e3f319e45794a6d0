"""One build of the shim for all tests of a worker, and a place for each test's disk."""

import os

import pytest

from tests.faults.shim import build


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The compiled library."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def is_torture():
    """Whether everything is tried, which takes minutes, or a short selection."""
    return os.environ.get("LEOMA_TORTURE") == "1"
