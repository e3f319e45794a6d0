"""What the README says is so: its settings, its commands, its queries."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import pytest
from pydantic import SecretStr

from api.settings import ApiSettings
from cli.main import COMMANDS
from pipelines.run import materialize
from pipelines.settings import PipelineSettings
from tests.builders import hotkey, sample, signed_request, write_metagraph
from tests.object_storage import KEYS
from tests.warehouse.test_bucket import Publisher
from warehouse.generation import Generations, open_generation
from warehouse.objects import ObjectStore
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
    sql = README.split("## For analysts")[1].split("### Straight from a bucket")[0]
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


def from_a_bucket():
    """The two snippets: Polars, and DuckDB."""
    part = README.split("### Straight from a bucket")[1].split("## For operators")[0]
    polars, sql = re.findall(r"((?:    .*\n)+)", part)
    return textwrap.dedent(polars), textwrap.dedent(sql)


@pytest.fixture
def published_to_a_bucket(object_server, bucket, tmp_path):
    settings = object_server.settings(tmp_path / "home", warehouse_url=f"s3://{bucket}/main")
    publisher = Publisher(settings)
    publisher.vote(1)
    publisher.vote(1, passed=False)
    publisher.vote(250)
    publisher.publish()
    publisher.log.close()
    return settings


def test_polars_reads_a_bucket_as_the_readme_says(published_to_a_bucket, object_server, bucket):
    key_id, secret, _ = KEYS["reader"]
    polars, _ = from_a_bucket()
    polars = polars.replace("https://ACCOUNT.r2.cloudflarestorage.com", object_server.url)
    polars = polars.replace('Bucket="leoma"', f'Bucket="{bucket}"').replace(
        "s3://leoma/", f"s3://{bucket}/"
    )
    environment = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret, **os.environ}
    # In a process of its own: the libraries read keys from the environment.
    ran = subprocess.run(
        [sys.executable, "-c", polars],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "┆ 2   ┆ 0.5 " in ran.stdout


def test_duckdb_reads_a_bucket_as_the_readme_says(published_to_a_bucket, object_server, tmp_path):
    store = ObjectStore(published_to_a_bucket, *published_to_a_bucket.warehouse_bucket)
    for one in store.listed(""):
        path = tmp_path / "copy" / one.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(one.key).content)
    _, sql = from_a_bucket()
    # All but the network: a local copy in the place of httpfs and its secret.
    statements = sql.split("URL_STYLE 'path');")[1].replace("s3://leoma/main/", f"{tmp_path}/copy/")
    with duckdb.connect() as connection:
        rows = connection.execute(statements).fetchall()
    assert rows == [(hotkey("miner"), 2, 0.5)]


def test_the_tree_is_described_as_it_is():
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:api|cli|pipelines|warehouse)/[a-z_/]+\.py)`", README + architecture)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
