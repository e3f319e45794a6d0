"""What goes wrong, and how it is answered: always `{"detail": ...}`, never a traceback.

HTTPException            raised where the status is known; FastAPI answers it
RequestValidationError   422, without the input
NotReadyError            503: no generation has been published yet
GenerationError          503: the tables cannot be read
BodyTooLargeError        413
BodiesFullError          503: other bodies fill what a worker may hold
TooManyRequestsError     429
LogError (warehouse)     503, or 409 for a write that was refused
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect

from api.models import ErrorResponse, ValidationErrorResponse
from api.request_ids import request_id
from warehouse.generation import GenerationError
from warehouse.log import (
    LogBusyError,
    LogError,
    NotBlacklistedError,
    RefusedError,
    SignatureUsedError,
    TaskGoesBackwardsError,
    TaskNotAnnouncedError,
)

logger = logging.getLogger(__name__)

INVALID_HOTKEY = "Invalid SS58 address format"
DESCRIPTIONS = {
    400: "The path, the query or the batch is not acceptable.",
    401: "The authentication headers are missing, stale, or not from an accepted hotkey.",
    403: "The signature is valid, but its hotkey is not an admin.",
    404: "Not found.",
    409: "The write contradicts what is stored, or its signature was used before.",
    408: "The request did not arrive within REQUEST_SECONDS_MAX.",
    413: "The body is larger than MAX_BODY_SIZE.",
    422: "The input does not fit the schema.",
    429: "More requests than this hotkey or address may put; see Retry-After.",
    503: "The log or the tables are not available now, or too much is under way; see Retry-After.",
}
REFUSALS: dict[type[RefusedError], tuple[int, str]] = {
    SignatureUsedError: (409, "this signature was already used"),
    NotBlacklistedError: (404, "this hotkey is not on the blacklist"),
}


class NotReadyError(Exception):
    """No generation has been published yet, so what is asked is unknown."""


class BodyTooLargeError(Exception):
    """The body is larger than allowed."""

    def __init__(self, body_bytes_max: int) -> None:
        super().__init__(f"the body is larger than {body_bytes_max} bytes")


class BodiesFullError(Exception):
    """The bodies that are under way fill what a worker holds of them."""

    def __init__(self) -> None:
        super().__init__("too many bodies are under way; try again")


class TooManyRequestsError(Exception):
    """Whoever asks has used its rate up; the next request is taken in `wait_seconds`."""

    def __init__(self, wait_seconds: float) -> None:
        super().__init__("too many requests; Retry-After says when to put the next one")
        self.wait_seconds = wait_seconds


class JsonResponse(Response):
    """An answer that is bytes of JSON already."""

    media_type = "application/json"


def error_response(
    status: int, detail: object, headers: dict[str, str] | None = None
) -> JsonResponse:
    """Return `{"detail": …}`."""
    return JsonResponse(orjson.dumps({"detail": detail}), status, headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of a route's errors."""
    return {
        status: {
            "model": ValidationErrorResponse if status == 422 else ErrorResponse,
            "description": DESCRIPTIONS[status],
        }
        for status in statuses
    }


def overload_response(detail: str, retry_after_seconds: int) -> JsonResponse:
    """Answer what cannot be taken in now. What is left of its body is not read."""
    headers = {"Connection": "close", "Retry-After": str(retry_after_seconds)}
    return error_response(503, detail, headers)


def limit_response(error: Exception, retry_after_seconds: int) -> JsonResponse:
    """Answer one request too many, or a body for which there is no room."""
    if isinstance(error, TooManyRequestsError):
        seconds = max(1, math.ceil(error.wait_seconds))
        return error_response(429, str(error), {"Retry-After": str(seconds)})
    return overload_response(str(error), retry_after_seconds)


def invalid_fields(errors: Sequence[Any], *prefix: str) -> list[dict[str, Any]]:
    """Return what is wrong and where, without repeating the input."""
    return [
        {"type": error["type"], "loc": [*prefix, *error["loc"]], "msg": error["msg"]}
        for error in errors
    ]


def log_error_response(error: LogError, retry_after_seconds: int) -> JsonResponse:
    """Answer a log that refused, is busy or is not available."""
    if isinstance(error, TaskGoesBackwardsError):
        return error_response(409, f"the latest task is already {error.latest_task_id}")
    if isinstance(error, TaskNotAnnouncedError):
        return error_response(400, str(error))
    if isinstance(error, RefusedError):
        status, detail = REFUSALS.get(type(error), (409, "the write was refused"))
        return error_response(status, detail)
    detail = (
        "too many submissions are waiting; try again"
        if isinstance(error, LogBusyError)
        else "the log is not available now; try again"
    )
    return error_response(503, detail, {"Retry-After": str(retry_after_seconds)})


def tables_error_response(error: Exception, retry_after_seconds: int) -> JsonResponse:
    """Answer that the tables are not there, or cannot be read."""
    what = "no generation has been published yet, so this is not known"
    if isinstance(error, GenerationError):
        logger.error("%s", error)
        what = "the tables cannot be read now"
    return error_response(503, f"{what}; try again", {"Retry-After": str(retry_after_seconds)})


def install_error_handlers(app: FastAPI, retry_after_seconds: int) -> None:
    """Give every kind of failure its answer."""

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  (what it is installed for)
        problems = invalid_fields(error.errors())
        # A body that does not fit, and a limit out of range, are 422; any other path or query 400.
        amiss = [one for one in problems if one["loc"][0] != "body" and one["loc"][-1] != "limit"]
        if amiss:
            return error_response(400, "; ".join(f"{p['loc'][-1]}: {p['msg']}" for p in amiss))
        return error_response(422, problems)

    async def no_tables(_request: Request, error: Exception) -> Response:
        return tables_error_response(error, retry_after_seconds)

    async def too_large(_request: Request, error: Exception) -> Response:
        return error_response(413, str(error))

    async def limited(_request: Request, error: Exception) -> Response:
        return limit_response(error, retry_after_seconds)

    async def log_failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, LogError)  # noqa: S101  (what it is installed for)
        answer = log_error_response(error, retry_after_seconds)
        if answer.status_code == 503:
            logger.error("%s %s: %s", request.method, request.url.path, error)
        return answer

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    async def unexpected(request: Request, error: Exception) -> Response:
        facts = {"request_id": request_id(request.scope)}
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error, extra=facts)
        return error_response(500, "Internal Server Error")

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(NotReadyError, no_tables)
    app.add_exception_handler(GenerationError, no_tables)
    app.add_exception_handler(BodyTooLargeError, too_large)
    app.add_exception_handler(BodiesFullError, limited)
    app.add_exception_handler(TooManyRequestsError, limited)
    app.add_exception_handler(LogError, log_failed)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)
