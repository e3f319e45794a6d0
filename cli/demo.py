"""`leoma demo`: the whole service on this machine, with a simulated subnet, checked to the end."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import click
import httpx

from api.client import LeomaClient, LeomaError, Weights
from api.settings import ApiSettings
from cli import demo_chain, subnet
from cli.demo_home import DemoHome, DemoHomeError
from cli.failures import one_line, read_settings
from cli.processes import Child, ProcessError, Processes, StopRequested, free_port, stop_signals
from cli.show import rank_table, weights_text
from pipelines.settings import PipelineSettings
from warehouse.settings import WarehouseSettings

API_PORT = 8000
DAGSTER_PORT = 3000
CODE_PORT = 4000
NODE_PORT = 9944
SERVICES_PORT = 9945
START_SECONDS_MAX = 90.0
MATERIALIZE_SECONDS_MAX = 180.0
WEIGHTS_SECONDS_MAX = 240.0
GRACE_SECONDS = 12.0
WATCH_SECONDS = 1.0
# What the surroundings may decide; all else is as the simulation expects it.
KEPT_SETTINGS = frozenset({"SCORER_TASK_WINDOW", "SENSOR_INTERVAL_SECONDS"})
REPOSITORIES = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"


class DemoError(Exception):
    """Something came out otherwise than it must."""


@dataclass(frozen=True)
class Addresses:
    """Where the demo's servers listen, all on loopback."""

    api_port: int
    dagster_port: int
    code_port: int
    # Of the simulated chain; 0: a metagraph file takes its place.
    node_port: int = 0
    services_port: int = 0

    @property
    def api(self) -> str:
        """The API's URL."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def dagster(self) -> str:
        """The URL of Dagster's UI."""
        return f"http://127.0.0.1:{self.dagster_port}"


@click.command()
@click.option("--once", is_flag=True, help="End after the weights instead of serving on.")
@click.option(
    "--tasks", default=120, show_default=True, type=click.IntRange(1, 100_000), help="How many."
)
@click.option(
    "--home",
    envvar="LEOMA_HOME",
    default="data",
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is stored.",
)
@click.option("--api-port", default=API_PORT, show_default=True, type=click.IntRange(1, 65_535))
@click.option(
    "--dagster-port", default=DAGSTER_PORT, show_default=True, type=click.IntRange(1, 65_535)
)
@click.option(
    "--chain",
    "kind",
    default="file",
    show_default=True,
    type=click.Choice(["file", "double"]),
    help="The metagraph: a file, or a simulated node with simulated Chutes and Hugging Face.",
)
def demo(
    *, once: bool, tasks: int, home: Path, api_port: int, dagster_port: int, kind: str
) -> None:
    """Run the whole service with a simulated subnet on this machine.

    Starts the API and Dagster on loopback, lets simulated validators submit signed samples over
    HTTP, waits until Dagster has published the weights, checks them, and serves on until Ctrl-C.
    Run again, it goes on after the latest task.
    """
    with one_line(LeomaError, DemoError, DemoHomeError, OSError), stop_signals():
        try:
            addresses = Addresses(
                _port(api_port, "The API"),
                _port(dagster_port, "Dagster"),
                free_port(CODE_PORT),
                free_port(NODE_PORT) if kind == "double" else 0,
                free_port(SERVICES_PORT) if kind == "double" else 0,
            )
            _demo(DemoHome(home.absolute()), tasks, addresses, is_once=once)
        except StopRequested:
            raise click.Abort from None
        except ProcessError as error:
            click.echo(error.tail, err=True)
            raise click.ClickException(str(error)) from error


def environment(home: DemoHome, addresses: Addresses) -> dict[str, str]:
    """Return the environment of the demo's processes: this one's, with the demo's settings."""
    names = {
        name.upper()
        for settings in (ApiSettings, PipelineSettings, WarehouseSettings)
        for name in settings.model_fields
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in names - KEPT_SETTINGS
    }
    return {
        **kept,
        "LEOMA_HOME": str(home.path),
        "DAGSTER_HOME": str(home.path / "dagster"),
        **(
            {
                "CHAIN_SOURCE": f"ws://127.0.0.1:{addresses.node_port}",
                "CHUTES_API_URL": f"http://127.0.0.1:{addresses.services_port}",
                "HF_ENDPOINT": f"http://127.0.0.1:{addresses.services_port}",
            }
            if addresses.node_port
            else {"CHAIN_SOURCE": str(home.metagraph)}
        ),
        "NETUID": str(subnet.NETUID),
        "ADMIN_HOTKEYS": subnet.ADMIN.hotkey,
        "PYTHONUNBUFFERED": "1",
    }


def _demo(home: DemoHome, tasks: int, addresses: Addresses, *, is_once: bool) -> None:
    window = read_settings(PipelineSettings).scorer_task_window
    with (
        home.locked(),
        Processes(home.make(), environment(home, addresses), GRACE_SECONDS) as processes,
    ):
        click.echo(f"Demo in {home.path}")
        chain = _start_chain(processes, addresses) if addresses.node_port else None
        click.echo("Reading the subnet and publishing a first generation ...")
        processes.run("materialize", ["-m", "cli.main", "materialize"], MATERIALIZE_SECONDS_MAX)
        click.echo("Starting the API and Dagster ...")
        api = _start(processes, addresses)
        with LeomaClient(addresses.api, subnet.ADMIN.keypair) as admin:
            period = home.next_period(tasks, admin.latest_task())
            _stranger_is_refused(addresses)
            head = _simulate(processes, addresses, admin, period)
            home.finish(period)
            weights = _published(processes, admin, head)
            if chain:
                _one_leaves(processes, chain, addresses)
                weights = admin.weights()
            _report(admin, weights, home, window, addresses)
            if is_once:
                return
            click.echo("\nServing until Ctrl-C.")
            try:
                while True:
                    processes.check()
                    time.sleep(WATCH_SECONDS)
            except StopRequested:
                click.echo(f"\nStopping {len(processes.children)} processes ({api.log.parent}).")


def _port(preferred: int, what: str) -> int:
    port = free_port(preferred)
    if port != preferred:
        click.echo(f"Port {preferred} is taken. {what} listens on {port} instead.")
    return port


def _start_chain(processes: Processes, addresses: Addresses) -> Child:
    """Start the simulated chain and services and wait until both listen."""
    ports = (addresses.node_port, addresses.services_port)
    click.echo(f"Starting a simulated chain on port {ports[0]}, its services on {ports[1]} ...")
    arguments = ["--node-port", str(ports[0]), "--services-port", str(ports[1])]
    chain = processes.start("chain", ["-m", "cli.demo_chain", *arguments])
    processes.wait_until(
        chain,
        "the simulated chain listens",
        lambda: all(free_port(port) != port for port in ports),
        START_SECONDS_MAX,
    )
    return chain


def _one_leaves(processes: Processes, chain: Child, addresses: Addresses) -> None:
    """Have a miner lose its place on the chain, and see that it is gone after the next sync."""
    hotkey = demo_chain.LEAVER.hotkey
    with httpx.Client(trust_env=False, timeout=10, base_url=addresses.api) as http:
        found = http.get(f"/miners/{hotkey}")
        if found.status_code != 200 or not found.json()["is_valid"]:
            raise DemoError(f"{hotkey} must be a valid miner, but: {found.text}")
        chain.process.send_signal(signal.SIGUSR1)
        processes.wait_until(
            chain,
            f"{hotkey} is deregistered",
            lambda: f"{hotkey} is deregistered" in chain.log.read_text(),
            START_SECONDS_MAX,
        )
        click.echo(f"{hotkey} was deregistered. Reading the chain again ...")
        processes.run("materialize", ["-m", "cli.main", "materialize"], MATERIALIZE_SECONDS_MAX)
        processes.wait_until(
            chain,
            f"{hotkey} is no longer a miner",
            lambda: http.get(f"/miners/{hotkey}").status_code == 404,
            START_SECONDS_MAX,
        )


def _start(processes: Processes, addresses: Addresses) -> Child:
    """Start all servers and wait until each works; return the API's process."""
    code = ["--code-port", str(addresses.code_port)]
    cli = ["-m", "cli.main"]
    api = processes.start(
        "api", [*cli, "serve", "--port", str(addresses.api_port), "--workers", "2"]
    )
    code_server = processes.start(
        "code-server", [*cli, "dagster", "code-server", "--port", str(addresses.code_port)]
    )
    webserver = processes.start(
        "webserver", [*cli, "dagster", "webserver", "--port", str(addresses.dagster_port), *code]
    )
    daemon = processes.start("daemon", [*cli, "dagster", "daemon", *code])
    with httpx.Client(trust_env=False, timeout=10) as http:

        def answers(url: str) -> Callable[[], bool]:
            return lambda: _ok(http, url) is not None

        processes.wait_until(
            api, "the API is ready", answers(f"{addresses.api}/health/ready"), START_SECONDS_MAX
        )
        processes.wait_until(
            webserver,
            "Dagster's UI answers",
            answers(f"{addresses.dagster}/server_info"),
            START_SECONDS_MAX,
        )
        processes.wait_until(
            code_server,
            "the pipelines are loaded",
            lambda: _has_pipelines(http, addresses),
            START_SECONDS_MAX,
        )
        processes.wait_until(
            daemon,
            "the daemon runs the sensor",
            lambda: _is_daemon_healthy(http, addresses),
            START_SECONDS_MAX,
        )
    return api


def _ok(http: httpx.Client, url: str, query: str | None = None) -> httpx.Response | None:
    """GET a URL, or ask a GraphQL query there; None where that does not work yet."""
    try:
        response = http.post(url, json={"query": query}) if query else http.get(url)
    except httpx.TransportError:
        return None
    return response if response.is_success else None


def _has_pipelines(http: httpx.Client, addresses: Addresses) -> bool:
    response = _ok(http, f"{addresses.dagster}/graphql", REPOSITORIES)
    return bool(response and response.json()["data"]["repositoriesOrError"].get("nodes"))


def _is_daemon_healthy(http: httpx.Client, addresses: Addresses) -> bool:
    response = _ok(http, f"{addresses.dagster}/graphql", DAEMONS)
    if response is None:
        return False
    statuses = response.json()["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(status["healthy"] for status in statuses if status["required"])


def _stranger_is_refused(addresses: Addresses) -> None:
    """See that a signature alone opens nothing: the key must be a validator's."""
    stranger = subnet.Neuron("stranger", 0)
    with LeomaClient(addresses.api, stranger.keypair) as client:
        try:
            client.submit_sample(subnet.samples(subnet.VALIDATORS[0], 1, subnet.MINERS)[0])
        except LeomaError as error:
            if getattr(error, "status", None) == 401:
                return
            raise
    raise DemoError("A stranger's signed sample was accepted.")


def _simulate(
    processes: Processes, addresses: Addresses, admin: LeomaClient, period: subnet.Period
) -> int:
    """Play the subnet's part for the period's tasks; return the last log position it caused."""
    clients = {
        validator: LeomaClient(addresses.api, validator.keypair) for validator in subnet.VALIDATORS
    }
    bad = [miner for miner in subnet.MINERS if miner.is_blacklisted]
    latest = admin.latest_task() or 0
    head = 0
    tasks = range(period.first, period.last + 1)
    label = f"Tasks {period.first} to {period.last}, {len(clients)} validators"
    try:
        with click.progressbar(tasks, label=label, file=sys.stderr) as bar:
            for task_id in bar:
                processes.check()
                # An interrupted demo announced some of its tasks already.
                if task_id > latest:
                    admin.announce_task(task_id)
                for validator, client in clients.items():
                    judged = period.judged(task_id)
                    stored = client.submit_batch(subnet.samples(validator, task_id, judged))
                    head = max(head, *(sample["id"] for sample in stored))
                if task_id == (period.first + period.last) // 2:
                    for miner in bad:
                        admin.blacklist_add(miner.hotkey, "resubmitted another miner's video")
    finally:
        for client in clients.values():
            client.close()
    return head


def _published(processes: Processes, client: LeomaClient, head: int) -> Weights:
    """Wait until Dagster has published a generation that counts the log up to `head`."""
    click.echo(f"Waiting for Dagster to publish what the log holds (position {head}) ...")
    daemon = next(child for child in processes.children if child.name == "daemon")
    processes.wait_until(
        daemon,
        f"Dagster published a generation that counts the log up to {head}",
        lambda: client.weights().watermark >= head,
        WEIGHTS_SECONDS_MAX,
    )
    return client.weights()


def _report(
    client: LeomaClient, weights: Weights, home: DemoHome, window: int, addresses: Addresses
) -> None:
    """Check ranks and weights against what the simulation must lead to, and print them."""
    ranks = client.rank()
    click.echo(f"\n{rank_table(ranks)}\n\n{weights_text(weights, datetime.now(UTC))}\n")
    expected = subnet.expected_ranks(home.periods(), window, Fraction(4, 5), Fraction(1, 20))
    found = [
        (
            entry.miner_hotkey,
            entry.passed_count,
            # Exact: pass_rate is the nearest float of this fraction.
            entry.pass_rate,
            entry.eligible,
        )
        for entry in ranks
    ]
    wanted = [
        (line.hotkey, line.passed_count, line.passed_count / line.tasks_evaluated, line.is_eligible)
        for line in expected
    ]
    if found != wanted:
        raise DemoError(f"The rank table is {found}, but the simulation leads to {wanted}.")
    winner = next((line.hotkey for line in expected if line.is_eligible), None)
    given = {entry.miner_hotkey: entry.weight for entry in weights.miners}
    due = {line.hotkey: float(line.hotkey == winner) for line in expected}
    if weights.winner_hotkey != winner or given != due or not weights.is_usable():
        raise DemoError(f"The weights are {weights}, but the winner must be {winner}.")
    click.echo(
        "Checked: ranks and weights are what the simulated subnet must lead to.\n\n"
        f"API and its documentation  {addresses.api}/docs\n"
        f"Dagster                    {addresses.dagster}\n"
        f"Tables, for DuckDB         {home.path / 'warehouse' / 'current.duckdb'}\n"
        f"The admin's key            {home.key_file(subnet.ADMIN)}\n"
        f"Logs                       {home.logs}"
    )
