"""Links to the media of tasks: which objects they name, whose key signs them, how long they last.

A link names an object of S3_SAMPLES_BUCKET by task and miner. What a validator said about buckets
and prefixes is shown with its sample, and never signed.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

from api.settings import ApiSettings
from warehouse.presigning import AccessKey, Presigner
from warehouse.settings import WarehouseSettings

logger = logging.getLogger(__name__)

# How often boto3's chain is asked for its key: it renews those of roles a quarter of an hour
# before they end. Signing itself never waits for it.
CHAIN_POLL_SECONDS = 60.0
# A service that was just started waits so long for the chain's first answer.
CHAIN_START_SECONDS_MAX = 5.0
NO_KEY = "S3_SAMPLES_BUCKET is given, but no key to sign with: links to media are null"


def first_frame_key(task_id: int) -> str:
    """Return where the first frame of a task is."""
    return f"{task_id}/first_frame.png"


def original_clip_key(task_id: int) -> str:
    """Return where the original clip of a task is."""
    return f"{task_id}/original_clip.mp4"


def generated_video_key(task_id: int, miner_hotkey: str) -> str:
    """Return where a miner's video for a task is. The hotkey is one that was checked."""
    return f"{task_id}/generated_videos/{miner_hotkey}.mp4"


class _Kept(NamedTuple):
    """A link that was signed before."""

    url: str
    access_key: AccessKey
    signed_at: int


class MediaLinks:
    """Signs links, and gives each again for half of its life. Threads share it.

    `open` before use, `close` after it. `problem` says why there are none although a bucket is
    configured.
    """

    def __init__(
        self,
        settings: ApiSettings,
        warehouse_settings: WarehouseSettings,
        *,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self.problem: str | None = None
        self._now_unix = now_unix
        self._seconds = settings.media_url_seconds
        self._kept_max = settings.media_urls_kept
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = Lock()
        self._signer = self._configured_signer(warehouse_settings)
        self._access_key = _configured_key(warehouse_settings)
        self._closing = Event()
        self._was_asked = Event()
        self._thread: Thread | None = None

    def open(self) -> None:
        """Follow boto3's own chain if no key is configured."""
        if self._signer is None or self._access_key is not None:
            return
        self.problem = NO_KEY
        self._thread = Thread(target=self._follow_chain, name="media", daemon=True)
        self._thread.start()
        self._was_asked.wait(CHAIN_START_SECONDS_MAX)

    def close(self) -> None:
        """Stop following the chain. A question that it is putting just now is not waited for."""
        self._closing.set()

    def url(self, key: str) -> str | None:
        """Return a link to an object, good for at least half of MEDIA_URL_SECONDS.

        None without object storage, or without a key. Whether the object is there is not asked.
        """
        signer, access_key = self._signer, self._access_key
        if signer is None or access_key is None:
            return None
        now = int(self._now_unix())
        with self._lock:
            kept = self._kept.get(key)
            if kept and kept.access_key == access_key and self._is_young(now - kept.signed_at):
                self._kept.move_to_end(key)
                return kept.url
        url = signer.url(key, access_key, now, self._seconds)
        with self._lock:
            self._kept[key] = _Kept(url, access_key, now)
            self._kept.move_to_end(key)
            if len(self._kept) > self._kept_max:
                self._kept.popitem(last=False)
        return url

    def _is_young(self, age_seconds: int) -> bool:
        # A clock that was put back must not keep a link beyond its time.
        return 0 <= 2 * age_seconds < self._seconds

    def _configured_signer(self, settings: WarehouseSettings) -> Presigner | None:
        if not settings.s3_samples_bucket:
            return None
        try:
            return Presigner(
                settings.s3_endpoint_url,
                settings.s3_region,
                settings.s3_samples_bucket,
                is_virtual_host=settings.s3_addressing_style == "virtual",
            )
        except ValueError as error:
            self.problem = f"links to media cannot be made: {error}"
            logger.error("%s", self.problem)  # noqa: TRY400  (the traceback says nothing more)
            return None

    def _follow_chain(self) -> None:
        chain: Any = None
        while not self._closing.is_set():
            try:
                chain = chain or _found_in_chain()
                access_key, problem = _current_key(chain), NO_KEY
            except Exception as error:  # noqa: BLE001  (the chain is made of everything there is)
                # What it says may hold what a program printed that was asked for a key.
                access_key, problem = None, f"{NO_KEY} ({type(error).__name__})"
            self._access_key = access_key
            if access_key is None and problem != self.problem:
                logger.error("%s", problem)
            self.problem = None if access_key else problem
            self._was_asked.set()
            self._closing.wait(CHAIN_POLL_SECONDS)


def _configured_key(settings: WarehouseSettings) -> AccessKey | None:
    key_id = settings.s3_read_access_key_id
    secret = settings.s3_read_secret_access_key.get_secret_value()
    return AccessKey(key_id, secret) if key_id else None


def _found_in_chain() -> Any:
    """Return the credentials that boto3 itself would use, None if there are none."""
    # Imported only where it is needed: it takes 20 MB and a fifth of a second.
    from botocore.session import Session  # noqa: PLC0415

    return Session().get_credentials()


def _current_key(chain: Any) -> AccessKey | None:
    if chain is None:
        return None
    found = chain.get_frozen_credentials()
    return AccessKey(found.access_key, found.secret_key, found.token or "")
