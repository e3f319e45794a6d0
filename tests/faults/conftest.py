"""One build of the shim for all tests of a worker."""

import pytest

from tests.faults.shim import build


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The compiled library."""
    return build(tmp_path_factory.mktemp("shim"))
