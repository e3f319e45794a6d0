"""The client of the Leoma API: signs, retries safely, corrects its clock. Imports no server code.

Its errors and typed answers are in `api.answers`.

    with LeomaClient("https://api.example", keypair) as client:
        client.submit_batch(samples)
        weights = client.weights()
        if weights.is_usable():
            ...

Why retrying is safe: a retry sends the same signed bytes, and a signature is good for one write.
When the first attempt was stored and only its answer was lost, the service repeats that answer.
"""

import contextlib
import json
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from api.answers import (
    DELAY_SECONDS_MAX,
    AnswerError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    LeomaError,
    MalformedAnswerError,
    NotFoundError,
    RankEntry,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    Weights,
    answer_error,
    contract,
    document,
    error_detail,
    objects,
    one_object,
    retry_after_seconds,
    server_time,
)
from warehouse.evaluation import evaluation_entry, evaluation_payload
from warehouse.hotkeys import signed_message

BATCH_SAMPLES_MAX = 100
BODY_BYTES_MAX = 2 * 2**20
# The service accepts a signature for 300 s in either direction; a retry later than this is signed
# anew. The margin pays for the way there and for what is left of a wrong clock.
SIGNATURE_SECONDS_MAX = 270.0
BACKOFF_SECONDS = 0.25
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

__all__ = [
    "AnswerError",
    "ConflictError",
    "ForbiddenError",
    "InvalidRequestError",
    "LeomaClient",
    "LeomaError",
    "MalformedAnswerError",
    "NotFoundError",
    "RankEntry",
    "Signer",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "Weights",
]


class Signer(Protocol):
    """What signs: a `substrateinterface.Keypair`, or the hotkey of a Bittensor wallet."""

    @property
    def ss58_address(self) -> str:
        """The hotkey's address, prefix 42."""

    def sign(self, data: bytes) -> bytes | str:
        """Return the sr25519 signature of `data`, as bytes or in hex."""


@dataclass(frozen=True, slots=True)
class _Signed:
    """A request that can be sent again as it is until its signature is too old."""

    headers: dict[str, str]
    signed_at: float  # monotonic seconds


class LeomaClient:
    """Talks to one Leoma API. Without a `keypair` it reads the public routes. Threads may share it.

    `scheme` 2 signs method, path and a nonce as well; 1 is the published scheme of older services.
    `retries` counts the attempts after the first; a retry of a request signed longer ago than
    `signature_seconds_max` is signed anew; `sleep` and `clock` (Unix seconds) are for tests.
    """

    def __init__(
        self,
        base_url: str,
        keypair: Signer | None = None,
        *,
        scheme: int = 2,
        timeout_seconds: float = 15.0,
        retries: int = 5,
        signature_seconds_max: float = SIGNATURE_SECONDS_MAX,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if scheme not in (1, 2):
            raise ValueError("scheme is 1 or 2")
        url = httpx.URL(base_url)
        self._http = httpx.Client(
            base_url=url,
            timeout=timeout_seconds,
            headers={"User-Agent": "leoma-client"},
            # A proxy of the environment cannot know this machine's loopback.
            trust_env=url.host not in LOOPBACK_HOSTS,
        )
        self._keypair = keypair
        self._scheme = scheme
        self._retries = retries
        self._signature_seconds_max = signature_seconds_max
        self._sleep = sleep
        self._clock = clock
        self._clock_offset_seconds = 0.0

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # What validators do.

    def submit_sample(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Submit one sample (the contract's SampleSubmission); return it as stored, durably."""
        return one_object(self._send("POST", "/samples", sample, is_signed=True))

    def submit_batch(
        self, samples: Sequence[Mapping[str, Any]], *, sign_evaluation: bool = True
    ) -> list[dict[str, Any]]:
        """Submit samples in requests of at most 100; return them as stored, in the same order.

        `sign_evaluation` signs the evaluation results of each request, which the service publishes;
        consecutive samples of different tasks then go in different requests. Each request is all
        or nothing. When one fails, those before it are stored (a note on the error counts them);
        submitting all again is safe, because the newest version of a sample is the one that counts.
        """
        stored: list[dict[str, Any]] = []
        for chunk in chunks(samples, one_task_each=sign_evaluation):
            body: dict[str, Any] = {"samples": chunk}
            if sign_evaluation:
                entries = [evaluation_entry(sample) for sample in chunk]
                body = {"signature": self._sign(evaluation_payload(entries)), "samples": chunk}
            try:
                answer = self._send("POST", "/samples/batch", body, is_signed=True)
            except LeomaError as error:
                error.add_note(f"{len(stored)} of {len(samples)} samples were stored before this")
                raise
            with contract("POST /samples/batch"):
                stored += objects(answer)
        return stored

    def weights(self, at: str | None = None) -> Weights:
        """Return the current weights, or those `at` a snapshot id or an ISO 8601 time."""
        answer = self._send("GET", "/weights", params={"at": at} if at else None)
        with contract("GET /weights"):
            return Weights.of(answer)

    def rank(self) -> list[RankEntry]:
        """Return the rank table, the winner first."""
        answer = self._send("GET", "/scores/rank")
        with contract("GET /scores/rank"):
            return [RankEntry.of(entry) for entry in answer["ranks"]]

    def scores(self) -> dict[str, Any]:
        """Return the aggregated scores by miner."""
        return one_object(self._send("GET", "/scores"))

    def latest_task(self) -> int | None:
        """Return the latest task id, None before the first one."""
        try:
            answer = self._send("GET", "/tasks/latest")
        except NotFoundError:
            return None
        with contract("GET /tasks/latest"):
            return int(answer["task_id"])

    def health(self) -> dict[str, Any]:
        """Return the service's own view of its health."""
        return one_object(self._send("GET", "/health"))

    # What admins do.

    def announce_task(self, task_id: int) -> dict[str, Any]:
        """Announce the latest task; raise `ConflictError` if that is a step backwards."""
        return one_object(self._send_admin("POST", "/tasks", {"task_id": task_id}))

    def blacklist(self) -> list[dict[str, Any]]:
        """Return the blacklist's entries."""
        answer = self._send("GET", "/blacklist")
        with contract("GET /blacklist"):
            return objects(answer)

    def blacklist_add(self, hotkey: str, reason: str | None = None) -> dict[str, Any]:
        """Put a hotkey on the blacklist, or give its entry a new reason; return the entry."""
        body = {"hotkey": hotkey} if reason is None else {"hotkey": hotkey, "reason": reason}
        return one_object(self._send_admin("POST", "/blacklist", body))

    def blacklist_remove(self, hotkey: str) -> None:
        """Take a hotkey off the blacklist; raise `NotFoundError` if it is not on it."""
        path = f"/blacklist/{hotkey}"
        try:
            self._send("DELETE", path, is_signed=True)
        except ConflictError as error:
            if not _is_signature_used(error):
                raise
            # A lost first attempt was decided; either way the hotkey is off the list after this.
            with contextlib.suppress(NotFoundError):
                self._send("DELETE", path, is_signed=True)

    # How requests go out.

    def _send_admin(self, method: str, path: str, content: Any = None) -> Any:
        """Send an admin's write. Where a lost first attempt used the signature up, sign once more.

        The service does not repeat the answers of admin writes, but all of them may be done twice.
        """
        try:
            return self._send(method, path, content, is_signed=True)
        except ConflictError as error:
            if not _is_signature_used(error):
                raise
            return self._send(method, path, content, is_signed=True)

    def _send(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        params: dict[str, str] | None = None,
        is_signed: bool = False,
    ) -> Any:
        """Send one request until it is answered or the retries are used up; return the JSON."""
        body = b"" if content is None else json.dumps(content).encode()
        name = f"{method} {path}"
        headers = {"Content-Type": "application/json"} if body else {}
        signed = self._signed(method, path, body) if is_signed else None
        is_clock_corrected = False
        attempt = 0
        while True:
            if signed and time.monotonic() - signed.signed_at > self._signature_seconds_max:
                signed = self._signed(method, path, body)
            try:
                response = self._http.request(
                    method,
                    path,
                    content=body,
                    params=params,
                    headers={**headers, **(signed.headers if signed else {})},
                )
            except httpx.TransportError as error:
                if attempt >= self._retries:
                    raise UnreachableError(
                        f"{name} at {self._http.base_url} got no answer in {attempt + 1} attempts: "
                        f"{error or type(error).__name__}"
                    ) from error
                self._sleep(backoff_seconds(attempt))
                attempt += 1
                continue
            if response.is_success:
                return document(name, response)
            if signed and not is_clock_corrected and self._corrects_clock(response):
                is_clock_corrected = True
                signed = self._signed(method, path, body)
            elif response.status_code in RETRIED_STATUSES and attempt < self._retries:
                self._sleep(max(backoff_seconds(attempt), retry_after_seconds(response)))
                attempt += 1
            else:
                raise answer_error(name, response)

    def _signed(self, method: str, path: str, body: bytes) -> _Signed:
        """Return the headers that sign a request as of now. Signed paths have no query."""
        if self._keypair is None:
            raise ValueError(f"{method} {path} must be signed: give the client a keypair")
        timestamp = str(int(self._clock() + self._clock_offset_seconds))
        nonce = secrets.token_hex(16) if self._scheme == 2 else None
        message = signed_message(
            scheme=self._scheme,
            method=method,
            path=path,
            body=body,
            timestamp=timestamp,
            nonce=nonce,
        )
        headers = {
            "X-Validator-Hotkey": self._keypair.ss58_address,
            "X-Signature": self._sign(message),
            "X-Timestamp": timestamp,
        }
        if nonce is not None:
            headers |= {"X-Signature-Version": "2", "X-Nonce": nonce}
        return _Signed(headers, time.monotonic())

    def _sign(self, message: bytes) -> str:
        if self._keypair is None:
            raise ValueError("only a client with a keypair signs")
        signature = self._keypair.sign(message)
        return (signature if isinstance(signature, str) else signature.hex()).removeprefix("0x")

    def _corrects_clock(self, response: httpx.Response) -> bool:
        """Take the server's time out of a 401 about a stale timestamp; tell whether it was one."""
        if response.status_code != 401:
            return False
        detail = error_detail(response)
        text = detail if isinstance(detail, str) else json.dumps(detail)
        if "timestamp" not in text.lower():
            return False
        server_unix = server_time(text)
        if server_unix is None:
            try:
                server_unix = float(self._http.get("/time").json()["unix"])
            except (httpx.TransportError, ValueError, KeyError, TypeError):
                return False
        self._clock_offset_seconds = server_unix - self._clock()
        return True


def _is_signature_used(error: ConflictError) -> bool:
    return "signature" in str(error.detail).lower()


def chunks(
    samples: Sequence[Mapping[str, Any]], *, one_task_each: bool
) -> Iterator[list[Mapping[str, Any]]]:
    """Cut samples, in order, into batches that the service takes: by count, by size, by task."""

    def task(sample: Mapping[str, Any]) -> str:
        if not one_task_each:
            return ""
        task_id = sample.get("task_id")
        return str(sample.get("sample_id") if task_id is None else task_id)

    for _, group in groupby(samples, key=task):
        chunk: list[Mapping[str, Any]] = []
        # The wrapper and the signature take less than 1 kB.
        bytes_left = BODY_BYTES_MAX - 1024
        for sample in group:
            size = len(json.dumps(sample)) + 2
            if chunk and (len(chunk) == BATCH_SAMPLES_MAX or size > bytes_left):
                yield chunk
                chunk, bytes_left = [], BODY_BYTES_MAX - 1024
            chunk.append(sample)
            bytes_left -= size
        yield chunk


def backoff_seconds(attempt: int) -> float:
    """Return how long to wait after attempt 0, 1, ...

    Doubling, and jittered, so that clients that failed together do not come back together.
    """
    ceiling = min(BACKOFF_SECONDS * 2.0**attempt, DELAY_SECONDS_MAX)
    # Jitter is no secret, so any random number will do.
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311
