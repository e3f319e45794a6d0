"""`leoma serve`: the API in one or more worker processes, and a courier beside them."""

import contextlib
import hashlib
import importlib
import logging
import multiprocessing
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from api.settings import ApiSettings
from cli.connections import server_options
from cli.failures import read_settings
from cli.leash import follow_parent
from cli.listening import bound
from cli.logs import LOG_LEVEL, write_logs
from cli.options import log_level_option
from cli.processes import StopRequested, kept_running, stop_signals
from warehouse.files import LockTimeoutError, locked
from warehouse.settings import WarehouseSettings

logger = logging.getLogger(__name__)

APP = "cli.serve:app_from_environment"
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
# In memory: the counters are mapped files with holes, and a write into a hole ends the process
# where the disk is full.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own in it, of mode 0700


def app_from_environment() -> ASGIApp:
    """Build the app in a worker from the environment's settings; uvicorn's factory.

    A worker that a supervisor started ends with it, so that none keeps the port and the log when
    the supervisor is killed.
    """
    # Not before `exported_metrics`: where numbers are kept is decided at this import.
    from api.app import create_app  # noqa: PLC0415

    settings = ApiSettings()
    write_logs(settings.log_format, os.environ.get(LOG_LEVEL, "info"))
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        follow_parent(supervisor.pid)
    return create_app(settings, WarehouseSettings())


def address_family(host: str) -> int:
    """Return the family of an address to listen on."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def refuse_taken_port(host: str, port: int, chosen_with: str = "--host and --port") -> None:
    """Raise a failure that says so if the address cannot be had."""
    # Without SO_REUSEPORT: nobody shares a port with another service by mistake.
    with socket.socket(address_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {host}:{port}: {error.strerror or error}; "
                f"choose another one with {chosen_with}"
            ) from error


def counters_of(home: Path) -> Path:
    """Return the directory for the counters of the workers of a home."""
    name = f"leoma-{os.getuid()}-{hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:16]}"
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else home.absolute() / "run"
    return place / name


@contextlib.contextmanager
def held_counters(home: Path) -> Iterator[Path]:
    """Have that directory, empty and of nobody else, while the block lasts."""
    path = counters_of(home)
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.getuid()):
        raise click.ClickException(f"{path} belongs to somebody else")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Or a second service would take the counters from below the workers of the first.
        with locked(path.with_name(path.name + ".lock"), 0):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(mode=0o700)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
    except LockTimeoutError:
        raise click.ClickException(
            f"another `leoma serve` shows the metrics of {home}; set METRICS_PORT=0 for this one"
        ) from None


@contextlib.contextmanager
def exported_metrics(settings: ApiSettings, warehouse: WarehouseSettings) -> Iterator[None]:
    """Show `/metrics` while the block lasts, if METRICS_PORT is set. Comes before the workers."""
    if not settings.metrics_port:
        yield
        return
    refuse_taken_port(settings.metrics_host, settings.metrics_port, "METRICS_PORT")
    with held_counters(warehouse.leoma_home) as directory:
        # The library looks where to keep numbers when it is imported, here and in the workers.
        os.environ[METRICS_DIRECTORY] = str(directory)
        exporter = importlib.import_module("cli.exporter")
        with exporter.exported_metrics(settings, warehouse, directory):
            yield


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
    # What workers inherit.
    os.environ[LOG_LEVEL] = log_level
    write_logs(api_settings.log_format, log_level)
    needs_courier = bool(settings.s3_samples_bucket) or settings.warehouse_bucket is not None
    with contextlib.suppress(StopRequested), stop_signals():
        courier = ["courier", "--log-level", log_level]
        is_wanted = needs_courier and not has_no_courier
        with (
            exported_metrics(api_settings, settings),
            kept_running(courier) if is_wanted else contextlib.nullcontext(),
        ):
            _run(
                host=host,
                port=port,
                workers=workers,
                log_level=log_level,
                access_log=log_level == "debug",
                **server_options(api_settings),
            )


def _run(*, host: str, port: int, workers: int, **options: Any) -> None:
    """Serve until a signal comes."""
    options |= {
        "factory": True,
        "loop": "uvloop",
        "log_config": None,
        "server_header": False,
    }
    if workers == 1:
        uvicorn.run(APP, host=host, port=port, **options)
        return
    with bound(address_family(host), (host, port)) as held:
        address = ":".join(map(str, held.getsockname()[:2]))
        logger.info("%d workers serve on http://%s", workers, address)
        config = uvicorn.Config(APP, host=host, port=port, workers=workers, **options)
        Multiprocess(config, [held]).run()
