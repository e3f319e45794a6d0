"""Hugging Face, asked about one revision of a model at a time: what it says, or `NoAnswer`.

The library is asked with the configured address and token alone. It would also look at proxies,
a cached login and further settings in the environment, and ask its registry of coding agents.
"""

import functools
import re
from json import JSONDecodeError

import huggingface_hub
from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipelines.outside import (
    Cause,
    Clock,
    NoAnswer,
    bounded_client,
    due_within,
    header_secret,
    no_answer,
    no_answer_of_status,
    now_ms,
    printable,
)
from pipelines.validation import ModelFact, is_weight_file, model_hash

SHA256 = re.compile(r"[0-9a-f]{64}")
REVISION_CHARS_MAX = 256


class HuggingFace:
    """A client of Hugging Face's hub, safe for use by several threads; close it when done.

    `timeout_seconds` limits a question as a whole, redirects included. Without a token none is
    sent, whoever is logged in on this machine.
    """

    def __init__(
        self, endpoint: str, token: str, timeout_seconds: float, clock_ms: Clock = now_ms
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._clock_ms = clock_ms
        self._has_token = bool(token.strip())
        self._api = HfApi(
            endpoint=endpoint.rstrip("/"),
            token=header_secret("HF_TOKEN", token) or False,
            headers={"user-agent": "leoma"},
        )
        _prepare_library()

    def fact(
        self, model_name: str, model_revision: str, timeout_seconds: float | None = None
    ) -> ModelFact:
        """Return what Hugging Face says about a revision now; raise `NoAnswer` when nothing.

        There is a definite answer when it describes the revision, or says that there is none, or
        none that we may see. A name or revision that cannot exist is not found without a
        question. `timeout_seconds`, when it is shorter than the client's own, takes its place.
        """
        if not _can_be_revision(model_revision):
            return self._absent(model_name, model_revision)
        seconds = self._timeout_seconds
        if timeout_seconds is not None:
            seconds = min(seconds, timeout_seconds)
        try:
            with due_within(seconds):
                info = self._api.repo_info(
                    model_name, revision=model_revision, files_metadata=True, timeout=seconds
                )
            return self._described(model_name, model_revision, info)
        except HFValidationError:
            return self._absent(model_name, model_revision)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong on the way is no answer
            if self._is_denial(error):
                return self._absent(model_name, model_revision)
            failure = _no_answer(error)
        # Raised outside of the handler: the error that it would carry along knows our token.
        raise failure

    def close(self) -> None:
        """Close all connections; the library's are one set for the whole process."""
        huggingface_hub.close_session()

    def _is_denial(self, error: Exception) -> bool:
        """Tell whether Hugging Face says that there is no such revision, or none for us."""
        if isinstance(error, RevisionNotFoundError | DisabledRepoError):
            return True
        if not isinstance(error, RepositoryNotFoundError):
            return False
        # The library takes any 401 for a missing repository, as Hugging Face answers those who are
        # nobody. We are somebody where we have a token: then 401 may be about the token. Another
        # service at that address, or one in between, does not use its headers.
        headers = error.response.headers
        return "x-error-code" in headers or (not self._has_token and "x-error-message" in headers)

    def _absent(self, model_name: str, model_revision: str) -> ModelFact:
        return ModelFact(
            model_name,
            model_revision,
            is_found=False,
            sha=None,
            model_hash=None,
            answered_at_ms=self._clock_ms(),
        )

    def _described(self, model_name: str, model_revision: str, info: object) -> ModelFact:
        """Read a revision's description; another form than the known one is no answer."""
        if not isinstance(info, ModelInfo) or not isinstance(info.sha, str) or not info.sha:
            raise NoAnswer("JSON of another form: no `sha`", Cause.UNUSABLE)
        # Left out is not the same as none: without weight files nobody is valid.
        if info.siblings is None:
            raise NoAnswer("JSON of another form: no `siblings`", Cause.UNUSABLE)
        digests = [
            sibling.lfs.sha256
            for sibling in info.siblings
            if sibling.lfs is not None and is_weight_file(sibling.rfilename)
        ]
        if not all(isinstance(digest, str) and SHA256.fullmatch(digest) for digest in digests):
            raise NoAnswer("JSON of another form: a `sha256` is not one", Cause.UNUSABLE)
        return ModelFact(
            model_name,
            model_revision,
            is_found=True,
            sha=printable(info.sha),
            model_hash=model_hash(digests),
            answered_at_ms=self._clock_ms(),
        )


@functools.cache
def _prepare_library() -> None:
    """Give the library, once per process, a client without the environment and without reports."""
    huggingface_hub.set_client_factory(lambda: bounded_client(follow_redirects=True))
    # It would ask huggingface.co, whatever the endpoint, which agents there are, to name ours.
    constants.HF_HUB_DISABLE_TELEMETRY = True


def _can_be_revision(model_revision: str) -> bool:
    """Tell whether git could call anything so: else it might be taken for part of a path."""
    return (
        0 < len(model_revision) <= REVISION_CHARS_MAX
        and model_revision.isprintable()
        and model_revision != "."
        and ".." not in model_revision
        and "\\" not in model_revision
    )


def _no_answer(error: Exception) -> NoAnswer:
    if isinstance(error, HfHubHTTPError):
        return no_answer_of_status(error.response.status_code, error.response.headers)
    if isinstance(error, JSONDecodeError | UnicodeDecodeError):
        # Neither a model nor a denial: something in between speaks.
        return NoAnswer("not JSON")
    if isinstance(error, KeyError | TypeError | AttributeError | ValueError | RecursionError):
        return NoAnswer("JSON of another form: the library cannot read it", Cause.UNUSABLE)
    return no_answer(error)
