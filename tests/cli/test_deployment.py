"""Dockerfile, compose file and workspace fit this tree: no engine is at hand to try them."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from cli.main import leoma, run
from tests.api.conftest import API_SETTINGS
from tests.api.servers import Server

ROOT = Path(__file__).parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES = COMPOSE["services"]


def parse(arguments: list[str]) -> str:
    """Parse a `leoma` call to its last command without running it; return that command's name."""
    context = leoma.make_context("leoma", arguments)
    command: click.Command = leoma
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, context._protected_args + context.args)
        assert name
        assert found
        command = found
        context = command.make_context(name, rest, parent=context)
    return context.command_path


def exec_form(instruction: str) -> list[list[str]]:
    lines = DOCKERFILE.replace("\\\n", " ")
    found = re.findall(rf"^\s*(?:HEALTHCHECK .*?)?{instruction} (\[.*\])$", lines, re.MULTILINE)
    return [yaml.safe_load(call) for call in found]


def test_the_compose_file_starts_the_five_processes():
    commands = {name: shlex.split(service["command"]) for name, service in SERVICES.items()}
    assert all(call[0] == "leoma" for call in commands.values())
    assert {name: parse(call[1:]) for name, call in commands.items()} == {
        "api": "leoma serve",
        "courier": "leoma courier",
        "code-server": "leoma dagster code-server",
        "webserver": "leoma dagster webserver",
        "daemon": "leoma dagster daemon",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_the_image_with_the_volume_and_comes_back(name):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "leoma:/data" in service["volumes"]
    assert service["environment"]["LEOMA_HOME"] == "/data"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for needed, how in service.get("depends_on", {}).items():
        assert "healthcheck" in SERVICES[needed]
        assert how == {"condition": "service_healthy"}


def test_health_checks_call_what_exists():
    tests = [
        service["healthcheck"]["test"]
        for service in SERVICES.values()
        if "test" in service.get("healthcheck", {})
    ]
    for kind, program, *arguments in tests:
        assert kind == "CMD"
        assert (Path(sys.executable).parent / program).exists()
        if program == "leoma":
            assert parse(arguments) == "leoma healthcheck"
    assert len(tests) == 3


def test_the_image_starts_and_checks_the_api():
    (check, start) = exec_form("CMD")
    assert parse(check[1:]) == "leoma healthcheck"
    assert parse(start[1:]) == "leoma serve"
    assert "8000" in check[2]
    assert start[start.index("--port") + 1] == "8000"


def test_the_image_holds_all_packages_and_is_not_root():
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    sources = {source for line in copied for source in line.split()}
    assert all((ROOT / source).exists() for source in sources)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    assert {name.split(".")[0] for name in declared} <= sources
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert sources == allowed
    assert "\nUSER leoma\n" in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE


def test_the_workspace_names_the_code_location():
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry == {
        "python_module": {"module_name": "pipelines.definitions", "location_name": "leoma"}
    }


def test_a_health_check_tells_ready_from_not_ready(warehouse_settings, capsys):
    with Server(API_SETTINGS, warehouse_settings) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert run(["healthcheck", f"{url}/health/live"]) == 0
        assert run(["healthcheck", f"{url}/health/ready"]) == 1
    assert run(["healthcheck", f"{url}/health/live"]) == 1
    assert run(["healthcheck", "file:///etc/passwd"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "503" in said[0]
