"""`leoma dagster`: the processes of a deployment, each started as Dagster's own tool starts it.

Location and home are fixed here, so that the sensor finds its cursor again after a restart: Dagster
keeps it by the name of the location, and that name would otherwise contain the port.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

import click

from api.settings import ApiSettings
from cli.failures import one_line, read_settings
from pipelines.settings import PipelineSettings
from warehouse.files import LockTimeoutError, locked, write_durably
from warehouse.settings import WarehouseSettings

LOCATION = "leoma"
# SHA-256 of the dagster.yaml of earlier versions: one of these is nobody's own, and is replaced.
SUPERSEDED = frozenset(
    {
        "3270cf50b7b7fccc98bc96b3addf621e6eaac8d7e9893486441b7febc0101960",
        "545f79763fbf8bb0c8ca2de8b9d37debab631e50e0e5e527b983b65064b025ef",
        "2cdf69be20c89eb4c89d47b16c2297b125d26dec15402b816630415d3b9776c3",
        "93a9ca02a94084b7c5a5fb33f3e37f11a98027f47745130a5b75b08af815775e",
        "948dd0ab95eec56c2721bac468c96158596021af1335ce3ef6e800a9305d3d5c",
    }
)
SETUP_SECONDS_MAX = 120.0
PORT = click.IntRange(1, 65_535)
WORKSPACE = """\
load_from:
  - grpc_server:
      host: {host}
      port: {port}
      location_name: {location}
"""


def dagster_home() -> Path:
    """Return DAGSTER_HOME, made and configured; it becomes LEOMA_HOME/dagster where none is set."""
    given = os.environ.get("DAGSTER_HOME")
    home = Path(given) if given else read_settings(WarehouseSettings).leoma_home / "dagster"
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    # Dagster's storage reads it from the environment, here and in the process that this becomes.
    os.environ["DAGSTER_HOME"] = str(home)
    with locked(home / "setup.lock", SETUP_SECONDS_MAX):
        settings = home / "dagster.yaml"
        if not settings.exists() or _digest(settings) in SUPERSEDED:
            write_durably(settings, (files("pipelines") / "dagster.yaml").read_bytes())
        if not (home / "is_set_up").exists():
            create_storage(home)
            (home / "is_set_up").touch()
    return home


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def create_storage(home: Path) -> None:
    """Create Dagster's own tables. Two processes that do so at once leave them broken."""
    # Only what needs all of Dagster in this process pays for its import.
    from dagster import DagsterInstance  # noqa: PLC0415

    with DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()


def fail_orphaned_runs() -> int:
    """Mark the runs that a former code server left behind as failed; return how many.

    Runs live and die with the code server. Dagster does not notice the death of one that was
    killed, and with one run at a time in the queue no other would ever start.
    """
    # As above.
    from dagster import DagsterInstance, DagsterRunStatus, RunsFilter  # noqa: PLC0415

    begun = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    with DagsterInstance.from_config(str(dagster_home())) as instance:
        runs = instance.get_runs(RunsFilter(statuses=begun))
        for run in runs:
            instance.report_run_failed(run, "The code server that executed this run has ended.")
    return len(runs)


def give_way(nice: int) -> None:
    """Have this process and its children take less of the processor than others that want it."""
    os.nice(nice)
    # Where Linux shares the processor between sessions first, that holds within a session alone.
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def become(arguments: Sequence[str]) -> NoReturn:
    """Turn this process into `python -m arguments...` with DAGSTER_HOME set."""
    with one_line(OSError, LockTimeoutError):
        dagster_home()
    sys.stdout.flush()
    form = "json" if read_settings(ApiSettings).log_format == "json" else "colored"
    command = [sys.executable, "-m", *arguments, "--log-format", form]
    # Our own interpreter and modules: nothing here comes from outside.
    os.execv(sys.executable, command)  # noqa: S606


def workspace_options(host: str, port: int) -> list[str]:
    """Write the workspace file that names the code server; return the options that point to it."""
    with one_line(OSError, LockTimeoutError):
        path = dagster_home() / f"workspace-{port}.yaml"
        path.write_text(WORKSPACE.format(host=host, port=port, location=LOCATION))
    return ["-w", str(path)]


@click.group()
def dagster() -> None:
    """Start one of Dagster's processes.

    DAGSTER_HOME is LEOMA_HOME/dagster unless it is set. The code server needs the settings of the
    pipelines (CHAIN_SOURCE, NETUID, ...); the other two only reach it.
    """


@dagster.command("code-server")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=4000, show_default=True, type=PORT)
def code_server(*, host: str, port: int) -> None:
    """Start the code server, which runs the pipelines; one at a time in one DAGSTER_HOME."""
    if count := fail_orphaned_runs():
        click.echo(f"Marked {count} runs of a former code server as failed.")
    # Runs are children of the code server: who asks the API must not wait for them.
    give_way(read_settings(PipelineSettings).run_nice)
    become(
        [
            *("dagster", "code-server", "start", "-h", host, "-p", str(port)),
            *("-m", "pipelines.definitions", "--use-python-environment-entry-point"),
        ]
    )


@dagster.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3000, show_default=True, type=PORT)
@click.option("--code-host", default="127.0.0.1", show_default=True, help="The code server's.")
@click.option("--code-port", default=4000, show_default=True, type=PORT)
def webserver(*, host: str, port: int, code_host: str, code_port: int) -> None:
    """Start the web server with Dagster's UI.

    It asks nobody for a password: keep it on loopback or behind something that does.
    """
    options = workspace_options(code_host, code_port)
    become(["dagster_webserver", "-h", host, "-p", str(port), *options])


@dagster.command()
@click.option("--code-host", default="127.0.0.1", show_default=True, help="The code server's.")
@click.option("--code-port", default=4000, show_default=True, type=PORT)
def daemon(*, code_host: str, code_port: int) -> None:
    """Start the daemon, which runs schedules, the sensor and the queue."""
    become(["dagster._daemon", "run", *workspace_options(code_host, code_port)])
