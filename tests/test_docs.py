"""What the README says is so: its settings, its commands, its queries."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from api.settings import ApiSettings
from cli.main import COMMANDS
from pipelines.run import materialize
from pipelines.settings import PipelineSettings
from tests.builders import hotkey, sample, signed_request, write_metagraph
from warehouse.generation import Generations, open_generation
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def default_text(value):
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, (frozenset, tuple)):
        return ",".join(sorted(value))
    return str(value)


def settings_table():
    """The rows that the README must have, in the order of the code."""
    rows = {}
    for model in (WarehouseSettings, PipelineSettings, ApiSettings):
        for name, field in model.model_fields.items():
            default = default_text(field.default)
            shown = f"`{default}`" if default else ""
            row = f"| `{name.upper()}` | {shown} | {field.description} |"
            # What two packages read is said once, and must not differ.
            if name in rows:
                assert f" | {shown} | " in rows[name]
            rows.setdefault(name, row)
    return "\n".join(rows.values())


def test_every_setting_is_documented_with_its_default_and_meaning():
    assert settings_table() in README


def test_every_command_in_the_readme_exists():
    mentioned = set(re.findall(r"`?leoma ([a-z]+)", README))
    assert mentioned <= set(COMMANDS)


def queries():
    sql = README.split("## For analysts")[1].split("## For operators")[0]
    return re.findall(r"((?:    .*\n)+)", sql)[1:]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    home = tmp_path_factory.mktemp("docs")
    warehouse = WarehouseSettings(leoma_home=home)
    metagraph = write_metagraph(
        home / "metagraph.json",
        validators=[{"hotkey": hotkey("validator")}],
        miners=[{"hotkey": hotkey("miner")}],
    )
    log = SqliteLog(warehouse)
    log.append_samples(signed_request("validator"), [sample()], None).result(30)
    log.close()
    settings = PipelineSettings(chain_source=str(metagraph), scorer_task_window=1)
    materialize(settings, warehouse)
    materialize(settings, warehouse)
    return Generations(warehouse).current()


def test_there_are_three_queries():
    assert len(queries()) == 3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_queries_for_analysts_answer(published, number):
    with open_generation(published) as connection:
        assert len(connection.execute(queries()[number]).fetchall()) == 1


def test_the_tree_is_described_as_it_is():
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:api|cli|pipelines|warehouse)/[a-z_/]+\.py)`", README + architecture)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
