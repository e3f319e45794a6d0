"""Objects in a bucket of any service that speaks S3; not what is in them.

Three failures are told apart, because they mean different things: an object that is not there
(`ObjectMissingError`), one that changed in between (`ObjectChangedError`), and a service or a
bucket that did not do what was asked (`ObjectStorageError`). No secret is in any message.
"""

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from warehouse.files import replace_durably, temporary_beside
from warehouse.settings import WarehouseSettings

# Of one client; more threads than this wait for each other.
CONNECTIONS_MAX = 32
# What is read into memory. Larger objects are downloaded to files.
OBJECT_BYTES_MAX = 256 * 2**20
CHUNK_BYTES = 256 * 1024
# What S3 takes in one request.
DELETED_AT_ONCE = 1_000
# By the service's own words: a bare 404 may be of a wrong address or of a proxy.
MISSING = ("NoSuchKey",)
CHANGED = ("PreconditionFailed", "ConditionalRequestConflict")


class ObjectStorageError(Exception):
    """Object storage did not do what was asked; whether it happened all the same is not known."""


class ObjectMissingError(ObjectStorageError):
    """The bucket answered that there is no such object."""


class ObjectChangedError(ObjectStorageError):
    """The object is not what the caller had seen: somebody else wrote it. Nothing was written."""


class StoredObject(NamedTuple):
    """An object's bytes, and the tag that changes with them."""

    content: bytes
    etag: str


class ListedObject(NamedTuple):
    """An object as a listing tells it. `modified_at_ms`: the service's clock, UTC."""

    key: str
    size: int
    modified_at_ms: int


class ObjectStore:
    """The objects below a prefix of one bucket. Threads share it; keys are relative to the prefix.

    `access` chooses the credentials. Nothing is asked before the first call. Every method raises
    `ObjectStorageError`; one socket operation may take S3_TIMEOUT_SECONDS, a transfer
    S3_TRANSFER_SECONDS_MAX, and a request is put S3_ATTEMPTS_MAX times.
    """

    def __init__(
        self,
        settings: WarehouseSettings,
        bucket: str,
        prefix: str = "",
        access: Literal["read", "write"] = "write",
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._settings = settings
        self._access = access
        self._seconds_max = settings.s3_transfer_seconds_max
        # What no message shows.
        self.keys_hidden = [
            key
            for key in (
                settings.s3_read_access_key_id,
                settings.s3_read_secret_access_key.get_secret_value(),
                settings.s3_write_access_key_id,
                settings.s3_write_secret_access_key.get_secret_value(),
            )
            if key
        ]
        self._lock = Lock()
        self._opened: Any = None

    @property
    def _client(self) -> Any:
        # Made when it is first needed: it takes a quarter of a second.
        with self._lock:
            if self._opened is None:
                self._opened = _client(self._settings, self._access)
            return self._opened

    @property
    def url(self) -> str:
        """Where the objects are, for people."""
        return f"s3://{self.bucket}/{self.prefix}"

    def put(
        self,
        key: str,
        content: bytes,
        *,
        if_match: str | None = None,
        is_new: bool = False,
        content_type: str = "application/octet-stream",
    ) -> str:
        """Store an object; return its tag.

        With `if_match`, only in the place of the version with that tag; with `is_new`, only where
        there is none. Else raises `ObjectChangedError`, also when this very call was applied but
        its answer lost and the library repeated it: read the object again to know.
        """
        conditions = {"IfMatch": if_match} if if_match else {}
        conditions |= {"IfNoneMatch": "*"} if is_new else {}
        with _Translated(self, "store", key):
            answer = self._client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=_Deadlined(io.BytesIO(content), self._seconds_max),
                ContentLength=len(content),
                ContentType=content_type,
                **conditions,
            )
            return str(answer["ETag"])

    def put_file(self, key: str, path: Path) -> None:
        """Store a file's content."""
        with _Translated(self, "store", key), path.open("rb") as file:
            self._client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=_Deadlined(file, self._seconds_max),
                ContentLength=path.stat().st_size,
            )

    def get(
        self, key: str, *, unless: str | None = None, bytes_max: int = OBJECT_BYTES_MAX
    ) -> StoredObject | None:
        """Return an object, None if its tag still is `unless`; or raise `ObjectMissingError`."""
        conditions = {"IfNoneMatch": unless} if unless else {}
        with _Translated(self, "read", key):
            try:
                answer = self._client.get_object(
                    Bucket=self.bucket, Key=self.prefix + key, **conditions
                )
            except ClientError as error:
                if unless and _status(error) == 304:
                    return None
                raise
            content = bytearray()
            for chunk in _chunks(answer, self._seconds_max):
                content += chunk
                if len(content) > bytes_max:
                    raise ObjectStorageError(f"{self.url}{key} has more than {bytes_max} bytes")
            return StoredObject(bytes(content), str(answer["ETag"]))

    def download(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        """Store an object as a durable file, which appears whole or not at all.

        Raises `ObjectStorageError` unless the bytes are those that were published.
        """
        temporary = temporary_beside(path)
        digest, received = hashlib.sha256(), 0
        try:
            with _Translated(self, "read", key), temporary.open("wb") as file:
                answer = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)
                for chunk in _chunks(answer, self._seconds_max):
                    received += len(chunk)
                    if received > size:
                        break
                    digest.update(chunk)
                    file.write(chunk)
            if received != size or digest.hexdigest() != sha256:
                raise ObjectStorageError(
                    f"{self.url}{key} is not what was published: other bytes than its digest says"
                )
            replace_durably(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        """Yield what is stored below a further prefix, by key."""
        more: dict[str, str] = {}
        while True:
            with _Translated(self, "list", prefix):
                answer = self._client.list_objects_v2(
                    Bucket=self.bucket, Prefix=self.prefix + prefix, **more
                )
                page = [
                    ListedObject(
                        entry["Key"].removeprefix(self.prefix),
                        entry["Size"],
                        _milliseconds(entry["LastModified"]),
                    )
                    for entry in answer.get("Contents", ())
                ]
                token = answer.get("NextContinuationToken")
            yield from page
            if not answer.get("IsTruncated"):
                return
            if not token:
                raise ObjectStorageError(f"{self.url}{prefix}: the listing broke off")
            more = {"ContinuationToken": token}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        for first in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[first : first + DELETED_AT_ONCE]
            with _Translated(self, "remove", some[0]):
                answer = self._client.delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": self.prefix + key} for key in some], "Quiet": True},
                )
            for refused in answer.get("Errors", ()):
                raise ObjectStorageError(
                    f"cannot remove s3://{self.bucket}/{refused.get('Key')}: "
                    f"{refused.get('Code')} {refused.get('Message')}"
                )

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()


def _client(settings: WarehouseSettings, access: Literal["read", "write"]) -> Any:
    if access == "read":
        key_id, secret = settings.s3_read_access_key_id, settings.s3_read_secret_access_key
    else:
        key_id, secret = settings.s3_write_access_key_id, settings.s3_write_secret_access_key
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=settings.s3_region,
        aws_access_key_id=key_id or None,
        aws_secret_access_key=secret.get_secret_value() or None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=settings.s3_timeout_seconds,
            read_timeout=settings.s3_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": settings.s3_attempts_max},
            max_pool_connections=CONNECTIONS_MAX,
            # The signature covers the SHA-256 of what is sent, so that the service itself refuses
            # other bytes. Further checksums are what services other than AWS trip over.
            s3={"addressing_style": settings.s3_addressing_style, "payload_signing_enabled": True},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


class _Translated:
    """Raises what the library raises as errors of this module, with what was asked."""

    def __init__(self, store: ObjectStore, what: str, key: str) -> None:
        self._asked = f"cannot {what} {store.url}{key}"
        self._keys = store.keys_hidden

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ClientError):
            answered = error.response.get("Error", {})
            code, message = str(answered.get("Code", "")), answered.get("Message", "")
            text = f"{self._asked}: {code or _status(error)} {message}".rstrip()
            # A service may repeat what it was sent. From None, so that no traceback shows it.
            for key in self._keys:
                text = text.replace(key, "***")
            # Only the code tells a missing object from a missing bucket.
            if code in MISSING:
                raise ObjectMissingError(text) from None
            if code in CHANGED:
                raise ObjectChangedError(text) from None
            raise ObjectStorageError(text) from None
        # urllib3's own errors come through while a body is read.
        if isinstance(error, (BotoCoreError, OSError, HTTPError, ValueError)):
            raise ObjectStorageError(f"{self._asked}: {error}") from error


class _Deadlined:
    """A body to send that gives out when its time is over, however slowly it is taken."""

    def __init__(self, file: Any, seconds_max: float) -> None:
        self._file = file
        self._seconds_max = seconds_max
        self._until = time.monotonic() + seconds_max

    def read(self, size: int = -1) -> bytes:
        if time.monotonic() > self._until:
            raise TimeoutError(f"it took longer than {self._seconds_max:g} s")
        content: bytes = self._file.read(size)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _chunks(answer: dict[str, Any], seconds_max: float) -> Iterator[bytes]:
    until = time.monotonic() + seconds_max
    # The library compares what came with the announced length, and raises if it is cut.
    with answer["Body"] as body:
        while chunk := body.read(CHUNK_BYTES):
            if time.monotonic() > until:
                raise TimeoutError(f"it took longer than {seconds_max:g} s")
            yield chunk


def _milliseconds(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
