"""The application: what is opened when it starts, and what surrounds the routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api.dependencies import Service
from api.edge import AdminReads, PrebuiltAnswers
from api.errors import install_error_handlers
from api.media import MediaLinks
from api.openapi import DESCRIPTION, install_openapi
from api.routes import blacklist, health, miners, samples, scores, tasks, weights
from api.settings import ApiSettings
from api.snapshot import Snapshots
from warehouse.backends import open_log
from warehouse.generation import Generations
from warehouse.settings import WarehouseSettings

EXPOSED_HEADERS = ("ETag", "Retry-After", "X-Evaluation-Verified", "X-Server-Time")


class State(TypedDict):
    """What every request carries."""

    service: Service


def create_api(settings: ApiSettings, warehouse_settings: WarehouseSettings) -> FastAPI:
    """Return the routes with their errors and their documentation. Opens nothing yet."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        log = open_log(warehouse_settings)
        try:
            snapshots = Snapshots(settings, Generations(warehouse_settings))
            media = MediaLinks(settings, warehouse_settings)
            snapshots.open()
            media.open()
            try:
                yield {"service": Service(settings, log, log, snapshots, media)}
            finally:
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
    app: ASGIApp = create_api(settings, warehouse_settings)
    app = AdminReads(app)
    app = CORSMiddleware(
        app,
        allow_origins=settings.cors_origins or ("*",),
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=("*",),
        allow_credentials=bool(settings.cors_origins),
        expose_headers=EXPOSED_HEADERS,
    )
    cache_control = f"public, max-age={settings.cache_max_age_seconds}"
    return PrebuiltAnswers(app, cache_control, settings.cors_origins, EXPOSED_HEADERS)
