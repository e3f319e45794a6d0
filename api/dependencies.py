"""What the routes are handed: the service's parts, the caller, and checked parameters."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import duckdb
import jiter
from fastapi import Depends, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from api.auth import (
    UnauthorizedError,
    authenticated,
    blacklisted,
    credentials_of,
    is_signed,
    may_be_good_later,
    method_of,
    path_of,
    read_body,
)
from api.bodies import INT63_MAX, Body
from api.caching import is_match
from api.errors import INVALID_HOTKEY, JsonResponse, TooManyRequestsError, invalid_fields
from api.history import ArchiveNeededError, History
from api.instants import now_ms
from api.landing import Landing
from api.media import MediaLinks
from api.metrics import Metrics
from api.rates import Rates
from api.settings import ApiSettings
from api.snapshot import Snapshot, Snapshots
from api.threads import ReadingThreads
from warehouse.hotkeys import is_hotkey
from warehouse.log import AdminStateChangedError, LogReader, LogUnavailableError, LogWriter
from warehouse.records import Appended, Evaluation, Sample, SignedRequest

# The one form that a NUL has in JSON, without its last digit: CPython finds five bytes in a third
# of the time of six, and what else begins so is told apart by looking.
ESCAPED_NUL = b"\\u000"

AnyBody = TypeVar("AnyBody", bound=Body)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """What one worker holds open. `reader` and `writer` may be the same object."""

    settings: ApiSettings
    reader: LogReader
    writer: LogWriter
    snapshots: Snapshots
    media: MediaLinks
    rates: Rates
    metrics: Metrics
    threads: ReadingThreads
    landing: Landing

    async def reading(self, ask: Callable[[History], T], *, is_long: bool = False) -> T:
        """Return what `ask` makes of the samples, in a thread: rendering takes as long as reading.

        Where the log alone does not do, or it takes long, the archive is asked in another thread.
        """
        self.check_log()

        def of(*, has_archive: bool) -> Callable[[], T]:
            return lambda: ask(History(self.reader, self.snapshots, has_archive=has_archive))

        if not is_long:
            with suppress(ArchiveNeededError):
                return await self.threads.of_log(of(has_archive=False))
        return await self.threads.of_archive(of(has_archive=True))

    def check_log(self) -> None:
        """Raise `LogUnavailableError` where the log ends before what the generation counts.

        Then it is an older copy, or this is another machine than that of the log: its answers would
        lack samples that are counted, and it would give their ids to others.
        """
        latest = self.snapshots.latest
        if latest is not None and not latest.is_covered_by(self.reader.head):
            raise LogUnavailableError("the log ends before what the current generation counts")

    def check_rate(self, hotkey: str, cost: int = 1) -> None:
        """Count what a hotkey signed as `cost` requests; raise `TooManyRequestsError` for too many.

        Never before the signature is verified: anybody could use up another's line.
        """
        per_second = self.settings.rate_per_hotkey
        if per_second:
            wait_seconds = self.rates.wait_seconds(
                f"hotkey {hotkey}", per_second, self.settings.rate_per_hotkey_burst, cost
            )
            if wait_seconds:
                self.metrics.rate_limited.labels("hotkey").inc()
                raise TooManyRequestsError(wait_seconds)

    async def remember_signature(self, signature: bytes, good_at_ms: int = 0) -> None:
        """Return when no write will ever accept this signature, which is good around `good_at_ms`.

        0 for one that is good now.
        """
        await self.landing.of(self.writer.remember_signature(signature, good_at_ms))


def service_of(request: Request) -> Service:
    """Return what the lifespan opened."""
    # As `request.state` has it, without making one.
    found: Service = request.scope["state"]["service"]
    return found


# Dependencies are coroutines though they wait for nothing: FastAPI sends plain functions to a
# thread, which costs more than all the rest of a small request.
async def service(request: Request) -> Service:
    """Return what the lifespan opened."""
    return service_of(request)


async def reader(request: Request) -> LogReader:
    """Return the log for reading."""
    parts = service_of(request)
    parts.check_log()
    return parts.reader


async def snapshot(request: Request) -> Snapshot:
    """Return the current generation, once for the whole request."""
    return service_of(request).snapshots.current()


TheService = Annotated[Service, Depends(service)]


Reader = Annotated[LogReader, Depends(reader)]
Current = Annotated[Snapshot, Depends(snapshot)]


async def _caller(
    request: Request, *, is_admin_route: bool = False, is_append: bool = False
) -> SignedRequest:
    parts = service_of(request)
    try:
        signed = await authenticated(
            request,
            parts.settings,
            parts.snapshots,
            parts.reader,
            now_unix=lambda: now_ms() // 1000,
            is_admin_route=is_admin_route,
            is_append=is_append,
        )
    except UnauthorizedError as error:
        parts.metrics.auth_failures.labels(error.reason).inc()
        await _use_up(request, parts, error)
        raise
    request.scope["state"]["hotkey"] = signed.hotkey
    parts.check_rate(signed.hotkey)
    parts.check_log()
    return signed


async def _use_up(request: Request, parts: Service, error: UnauthorizedError) -> None:
    """Use up the signature of a write that was refused for now, and would be good later."""
    if request.method not in {"POST", "DELETE"} or error.reason not in {"early", "blacklisted"}:
        return
    given = credentials_of(request)
    if not may_be_good_later(error, given, parts.settings, parts.snapshots):
        return
    body = error.body
    if body is None:
        body = await read_body(request, parts.settings.max_body_size)
    if is_signed(given, method_of(request), path_of(request), body):
        parts.check_rate(given.hotkey, parts.settings.rate_refused_cost)
        await parts.remember_signature(given.signature, int(given.timestamp) * 1000)


async def validator(request: Request) -> SignedRequest:
    """Return the request of a registered validator or an admin; refuse all others."""
    return await _caller(request)


async def submitter(request: Request) -> SignedRequest:
    """Return such a request that has samples, for `appended`, which judges its sender again.

    Until then who was put on the blacklist just now is told like anybody else what is wrong with a
    body.
    """
    return await _caller(request, is_append=True)


async def appended(
    parts: Service, request: SignedRequest, samples: list[Sample], judged: Evaluation | None
) -> Appended:
    """Have samples stored, durably; raise the 401 if their sender is on the blacklist by then.

    To ask the log about each request takes nearly as long as to verify its signature. So what was
    known before is believed, and the commit says whether that still holds. Raises `LogError`.
    """
    state = parts.reader.known_admin_state()
    while request.hotkey not in state.blacklist:
        try:
            return await parts.landing.of(
                parts.writer.append_samples(request, samples, judged, state.seq)
            )
        except AdminStateChangedError:
            known, state = state, await parts.threads.brief(parts.reader.admin_state)
            # What the commit saw is stored by now, so whoever reads the same log sees it, too.
            if state.seq <= known.seq:
                raise LogUnavailableError("the log that is read is not the one written") from None
    refused = blacklisted()
    parts.metrics.auth_failures.labels(refused.reason).inc()
    # For nothing: only those are here that were under way when the admin acted, and a sender who
    # has no credit left must not keep a signature that is good later.
    await parts.remember_signature(request.signature, int(request.timestamp) * 1000)
    raise refused


async def admin(request: Request) -> SignedRequest:
    """Return the request of an admin; refuse all others."""
    return await _caller(request, is_admin_route=True)


@asynccontextmanager
async def refusals_bind_admins(parts: Service, signed: SignedRequest) -> AsyncIterator[None]:
    """Use an admin's signature up where the block refuses a submission.

    In scheme 1 the same body may be good for another write: one with a task_id announces a task.
    """
    try:
        yield
    except (RequestValidationError, HTTPException):
        if signed.hotkey in parts.settings.admin_hotkeys:
            await parts.remember_signature(signed.signature)
        raise


BySubmitter = Annotated[SignedRequest, Depends(submitter)]
ByValidator = Annotated[SignedRequest, Depends(validator)]
ByAdmin = Annotated[SignedRequest, Depends(admin)]


def check_hotkey(text: str) -> str:
    """Return the hotkey of a path or a query; raise 400 for anything else."""
    if not is_hotkey(text):
        raise HTTPException(400, INVALID_HOTKEY)
    return text


# Said to readers and their tools, not enforced by the framework: a malformed address is a 400.
HOTKEY_SCHEMA = {
    "pattern": "^[1-9A-HJ-NP-Za-km-z]{46,49}$",
    "examples": ["5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"],
}
HotkeyText = Annotated[str, Path(description="SS58 address", json_schema_extra=HOTKEY_SCHEMA)]
HotkeyQuery = Annotated[str, Query(description="SS58 address", json_schema_extra=HOTKEY_SCHEMA)]


async def miner_hotkey_in_path(miner_hotkey: HotkeyText) -> str:
    """Return a checked path parameter."""
    return check_hotkey(miner_hotkey)


async def validator_hotkey_in_path(validator_hotkey: HotkeyText) -> str:
    """Return a checked path parameter."""
    return check_hotkey(validator_hotkey)


MinerHotkey = Annotated[str, Depends(miner_hotkey_in_path)]
ValidatorHotkey = Annotated[str, Depends(validator_hotkey_in_path)]
TaskId = Annotated[int, Path(ge=0, le=INT63_MAX)]
# As the contract has it: a page is some MB at most.
PAGE_ROWS_MAX = 500
RowLimit = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX)]


def parsed_json(content: bytes) -> Any:
    """Return the document; raise the 422 for anything that is not strictly JSON.

    A key that is given twice is none: one reader takes the first and another the last, so what was
    said is unclear.
    """
    try:
        return jiter.from_json(
            content, allow_inf_nan=False, cache_mode="keys", catch_duplicate_keys=True
        )
    except ValueError as error:
        reason = str(error)
        # The key is in the message, and may be as long as a body.
        if "duplicate key" in reason:
            reason = "a key is given twice"
        problem = {"type": "json_invalid", "loc": ("body",), "msg": f"JSON decode error: {reason}"}
        raise RequestValidationError([problem]) from None


def fitted(model: type[AnyBody], document: Any, content: bytes) -> AnyBody:
    """Return the document of a body as a model; raise the 422 that says where it does not fit."""
    try:
        body = model.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(invalid_fields(problems, "body")) from None
    # Not asked of each text by itself: a batch has hundreds.
    if ESCAPED_NUL in content and (places := body.nuls()):
        refused = {"type": "nul_character", "msg": "Text must hold no NUL character"}
        found = [dict(refused, loc=place) for place in places]
        raise RequestValidationError(invalid_fields(found, "body"))
    return body


def read(model: type[AnyBody], content: bytes) -> AnyBody:
    """Return a body as a model; raise the 422 that says what is wrong with it."""
    return fitted(model, parsed_json(content), content)


async def admin_body(signed: SignedRequest, model: type[AnyBody], parts: Service) -> AnyBody:
    """Return an admin's body. One that does not fit uses its signature up before the 422."""
    try:
        return read(model, signed.body)
    except RequestValidationError:
        await parts.remember_signature(signed.signature)
        raise


def materialised(
    request: Request, etag: str, content: bytes, *, cache_control: str | None = None
) -> Response:
    """Answer from a generation: 304 if the client has it, else `content`."""
    parts = service_of(request)
    age = parts.settings.cache_max_age_seconds
    headers = {"ETag": etag, "Cache-Control": cache_control or f"public, max-age={age}"}
    if is_known(request, etag):
        return Response(status_code=304, headers=headers)
    return JsonResponse(content, headers=headers)


def is_known(request: Request, etag: str) -> bool:
    """Tell whether the client has an answer already."""
    known = ",".join(request.headers.getlist("if-none-match"))
    return bool(known) and is_match(etag.encode(), known.encode("latin-1"))


async def rendered(
    request: Request,
    snapshot: Snapshot,
    question: Callable[[duckdb.DuckDBPyConnection, str], bytes],
    hotkey: str,
) -> Response:
    """Answer a question about one hotkey: with what is kept, else rendered in a thread."""
    parts = service_of(request)
    answers = parts.snapshots.rendered
    key = (snapshot.snapshot_id, question.__name__, hotkey)
    content = b"" if is_known(request, snapshot.etag) else answers.kept(key)
    if content is None:
        content = await parts.threads.of_archive(
            lambda: answers.get(key, lambda: snapshot.render(question, hotkey))
        )
    return materialised(request, snapshot.etag, content)
