"""A short way to the routes that are asked most often.

FastAPI looks for a route, solves its dependencies and wraps its answer in a third of a millisecond,
longer than the rest of such a request takes. Here the same endpoints are called by hand, with the
same checks in the same order. FastAPI declares them as well: for the documentation, and for every
read that is not of the plainest form, so that what is odd is judged in one place.
"""

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fastapi import FastAPI, Request, Response
from starlette.types import Receive, Scope, Send

from api.dependencies import PAGE_ROWS_MAX, check_hotkey, service_of, submitter, validator
from api.routes import samples, tasks

LIMIT = re.compile(rb"limit=([1-9][0-9]{0,2})")


class Direct(NamedTuple):
    """A route, as far as anybody asks: `path` is its template."""

    path: str
    answer: Callable[..., Awaitable[Response]]


async def _submit(request: Request) -> Response:
    return await samples.submit(await submitter(request), service_of(request))


async def _submit_batch(request: Request) -> Response:
    return await samples.submit_batch(await submitter(request), service_of(request))


async def _newest(request: Request, limit: int = 200) -> Response:
    return await samples.newest(service_of(request), limit)


async def _samples_of_validator(request: Request, hotkey: str, limit: int = 100) -> Response:
    await validator(request)
    return await samples.samples_of_validator(service_of(request), check_hotkey(hotkey), limit)


async def _samples_of_miner(request: Request, hotkey: str, limit: int = 100) -> Response:
    await validator(request)
    return await samples.samples_of_miner(service_of(request), check_hotkey(hotkey), limit)


async def _task_of_miner(request: Request, task_id: str, hotkey: str) -> Response:
    checked, parts = check_hotkey(hotkey), service_of(request)
    return await tasks.task_of_miner(int(task_id), checked, parts.snapshots.current(), parts)


WRITES = {
    "/samples": Direct("/samples", _submit),
    "/samples/batch": Direct("/samples/batch", _submit_batch),
}
# The groups of a pattern are handed to the endpoint. 18 digits are below 2**63.
READS = [
    (re.compile("/samples/list"), Direct("/samples/list", _newest)),
    (
        re.compile("/samples/validator/([^/]+)"),
        Direct("/samples/validator/{validator_hotkey}", _samples_of_validator),
    ),
    (
        re.compile("/samples/miner/([^/]+)"),
        Direct("/samples/miner/{miner_hotkey}", _samples_of_miner),
    ),
    (
        re.compile("/tasks/([0-9]{1,18})/miner/([^/]+)"),
        Direct("/tasks/{task_id}/miner/{miner_hotkey}", _task_of_miner),
    ),
]
PREFIXES = ("/samples/", "/tasks/")


def _found(scope: Scope) -> tuple[Direct, tuple[str, ...], dict[str, int]] | None:
    """Return a route and what its path and its query say, None where FastAPI is to judge."""
    path: str = scope["path"]
    if scope["method"] == "POST":
        written = WRITES.get(path)
        return (written, (), {}) if written else None
    if scope["method"] != "GET" or not path.startswith(PREFIXES):
        return None
    asked = {}
    if query := scope["query_string"]:
        given = LIMIT.fullmatch(query)
        if given is None or int(given[1]) > PAGE_ROWS_MAX or path.startswith("/tasks/"):
            return None
        asked["limit"] = int(given[1])
    for pattern, route in READS:
        if matched := pattern.fullmatch(path):
            return route, matched.groups(), asked
    return None


class DirectRoutes:
    """Answers those, and leaves all else to FastAPI. It also routes HEAD as GET; the server leaves
    the body out.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            as_get = {**scope, "method": "GET", "leoma.method": "HEAD"}
            await self._answer(as_get, receive, send)
            if "route" in as_get:
                scope["route"] = as_get["route"]
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _found(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        route, given, asked = found
        # By which the request is counted.
        scope["route"] = route
        request = Request(scope, receive)
        try:
            answer = await route.answer(request, *given, **asked)
        except Exception as error:  # noqa: BLE001  (FastAPI's handlers know all of them)
            answer = await self._answer_to(error, request)
        await answer(scope, receive, send)

    async def _answer_to(self, error: Exception, request: Request) -> Response:
        handlers = self._app.exception_handlers
        handler = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)
        answer = handler(request, error)
        return answer if isinstance(answer, Response) else await answer
