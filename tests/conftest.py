"""Fixtures for all packages: a home of its own for every test."""

from pathlib import Path

import pytest

from warehouse.settings import WarehouseSettings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty LEOMA_HOME."""
    return tmp_path / "home"


@pytest.fixture
def warehouse_settings(home: Path) -> WarehouseSettings:
    """Settings of embedded storage in an empty home."""
    return WarehouseSettings(leoma_home=home)
