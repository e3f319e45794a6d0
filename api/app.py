"""The application: what is opened when it starts, and what surrounds the routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import NoReturn, TypedDict

from fastapi import FastAPI
from starlette.types import ASGIApp

from api.clients import Clients
from api.dependencies import Service
from api.direct import DirectRoutes
from api.edge import AdminReads, BrowserHeaders
from api.errors import install_error_handlers
from api.landing import Landing
from api.limits import AddressRates, Bounds, with_cors
from api.media import MediaLinks
from api.metrics import Metrics
from api.observed import Observed
from api.openapi import DESCRIPTION, install_openapi
from api.prebuilt import PrebuiltAnswers
from api.rates import Rates
from api.routes import blacklist, health, miners, samples, scores, tasks, weights
from api.settings import ApiSettings
from api.snapshot import Snapshots
from api.threads import ReadingThreads
from warehouse.backends import open_log
from warehouse.generation import Generations
from warehouse.log import LogError, LogReader
from warehouse.settings import WarehouseSettings

# Prometheus looks every ten seconds or so.
SETTLED_SECONDS = 0.5


class State(TypedDict):
    """What every request carries."""

    service: Service


def _opened(log: LogReader) -> None:
    """Have a thread open the log, if that can be done now; else it will when it is asked."""
    with suppress(LogError):
        log.head()


async def _settled(metrics: Metrics) -> NoReturn:
    """Have what few requests left uncounted be counted soon."""
    while True:
        await asyncio.sleep(SETTLED_SECONDS)
        # Who only counts must not be the end of it.
        with suppress(Exception):
            metrics.settle()


def prepare_routes(app: FastAPI) -> None:
    """Have FastAPI make its routes now: it would with the first request, which waits for it."""
    for route in app.routes:
        route.matches({"type": "http", "method": "GET", "path": "", "root_path": "", "headers": []})


def create_api(settings: ApiSettings, warehouse_settings: WarehouseSettings) -> FastAPI:
    """Return the routes with their errors and their documentation. Opens nothing yet."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        metrics = Metrics()
        # Not opened on a disk in trouble, it opens later: a worker that fails here ends all others.
        log = open_log(warehouse_settings, metrics.commit)
        try:
            snapshots = Snapshots(settings, Generations(warehouse_settings))
            media = MediaLinks(settings, warehouse_settings)
            rates = Rates(warehouse_settings.leoma_home.absolute() / "run" / "rates")
            snapshots.open()
            media.open()
            landing = Landing()
            threads = ReadingThreads(settings, landing, lambda: _opened(log))
            prepare_routes(app)
            counting = asyncio.create_task(_settled(metrics))
            try:
                parts = Service(
                    settings, log, log, snapshots, media, rates, metrics, threads, landing
                )
                yield {"service": parts}
            finally:
                counting.cancel()
                with suppress(Exception):
                    metrics.settle()
                threads.close()
                rates.close()
                media.close()
                snapshots.close()
        finally:
            log.close()

    app = FastAPI(
        title="Leoma API",
        version=version("leoma"),
        description=DESCRIPTION,
        lifespan=lifespan,
        # A redirect would name whatever host the client named.
        redirect_slashes=False,
        # The server names itself behind whatever proxy the reader uses.
        servers=[{"url": "/"}],
    )
    for module in (health, miners, samples, scores, tasks, weights, blacklist):
        app.include_router(module.router)
    install_error_handlers(app, settings.retry_after_seconds)
    install_openapi(app)
    return app


def create_app(settings: ApiSettings, warehouse_settings: WarehouseSettings) -> ASGIApp:
    """Return the whole application. A request passes the layers from the last to the first."""
    app: ASGIApp = DirectRoutes(create_api(settings, warehouse_settings))
    app = with_cors(app, settings)
    # Before what answers a preflight: a signature may be on one, too.
    app = AdminReads(app, settings)
    clients = Clients(settings)
    app = Bounds(app, settings, clients)
    rates = AddressRates(app, settings, clients)
    app = Observed(BrowserHeaders(rates))
    return PrebuiltAnswers(app, rates, settings)
