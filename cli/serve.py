"""`leoma serve`: the API in one or more worker processes, and a courier beside them."""

import contextlib
import multiprocessing
import resource
import socket

import click
import uvicorn
from starlette.types import ASGIApp

from api.app import create_app
from api.settings import ApiSettings
from cli.connections import server_options
from cli.failures import read_settings
from cli.leash import follow_parent
from cli.options import log_level_option
from cli.processes import StopRequested, kept_running, stop_signals
from warehouse.settings import WarehouseSettings

GRACEFUL_SECONDS = 10


def app_from_environment() -> ASGIApp:
    """Build the app in a worker from the environment's settings; uvicorn's factory.

    A worker that a supervisor started ends with it, so that none keeps the port and the log when
    the supervisor is killed.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        follow_parent(supervisor.pid)
    return create_app(ApiSettings(), WarehouseSettings())


def refuse_taken_port(host: str, port: int) -> None:
    """Raise a failure that says so if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {host}:{port}: {error.strerror or error}; "
                "choose another one with --host and --port"
            ) from error


def raise_handle_limit() -> None:
    """Have as many handles as are allowed: the usual soft limit is fewer than CONNECTIONS_MAX."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64))
@log_level_option
@click.option(
    "--no-courier", "has_no_courier", is_flag=True, help="`leoma courier` runs on its own."
)
def serve(*, host: str, port: int, workers: int, log_level: str, has_no_courier: bool) -> None:
    """Serve the API.

    All workers share one log and one warehouse (LEOMA_HOME, LOG_URL, WAREHOUSE_URL). Where object
    storage is configured, a `leoma courier` runs beside them. SIGTERM and Ctrl-C finish the
    requests under way. An API document is served under /docs.
    """
    # A bad setting is one line here instead of a traceback of every worker.
    api_settings = read_settings(ApiSettings)
    settings = read_settings(WarehouseSettings)
    refuse_taken_port(host, port)
    raise_handle_limit()
    needs_courier = bool(settings.s3_samples_bucket) or settings.warehouse_bucket is not None
    with contextlib.suppress(StopRequested), stop_signals():
        courier = ["courier", "--log-level", log_level]
        is_wanted = needs_courier and not has_no_courier
        with kept_running(courier) if is_wanted else contextlib.nullcontext():
            uvicorn.run(
                "cli.serve:app_from_environment",
                factory=True,
                host=host,
                port=port,
                workers=workers,
                loop="uvloop",
                log_level=log_level,
                access_log=log_level == "debug",
                server_header=False,
                timeout_graceful_shutdown=GRACEFUL_SECONDS,
                **server_options(api_settings),
            )
