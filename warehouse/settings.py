"""Where things are stored, and the limits of storing. Read once per process and passed in."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# A prefix is a path of plain names: nothing in it needs quoting, in a URL or in SQL.
BUCKET_URL = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(/[\w.-]+)*)/?"
)


class WarehouseSettings(BaseSettings):
    """Settings of log, archive, generations and object storage; each an environment variable."""

    model_config = SettingsConfigDict(
        env_prefix="", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    leoma_home: Path = Field(Path("data"), description="Directory of all embedded state.")
    log_url: str = Field(
        "", description="The log: `sqlite:///path`. Empty: `LEOMA_HOME/log/log.sqlite`."
    )
    warehouse_url: str = Field(
        "",
        description="Generations and archive: a directory, or `s3://bucket/prefix` for a bucket "
        "with a working copy in `LEOMA_HOME/warehouse`. Empty: `LEOMA_HOME/warehouse` alone.",
    )
    log_queue_bytes_max: int = Field(
        64 * 2**20,
        gt=0,
        description="Bytes of submissions waiting for a commit, per worker; beyond it a write is "
        "refused with 503 and Retry-After instead of growing memory.",
    )
    log_group_bytes_max: int = Field(
        8 * 2**20,
        gt=0,
        description="Bytes that one commit takes at most, so that no submission waits long.",
    )
    log_lock_seconds_max: float = Field(
        10.0, gt=0, description="How long a commit waits for the other workers before it fails."
    )
    log_retention_days: int = Field(
        0,
        ge=0,
        description="Days after which archived and verified submissions leave the log (they stay "
        "in the archive). 0 keeps everything in the log.",
    )
    generations_kept: int = Field(
        50, ge=2, description="Newest generations that are kept, whatever their age."
    )
    generations_hourly_days: int = Field(
        7, ge=0, description="Days for which the last generation of every hour is kept as well."
    )
    archive_tasks_per_partition: int = Field(
        25, gt=0, description="Task ids in one partition of the archive. Fixed once data exists."
    )
    archive_texts_per_run_max: int = Field(
        50_000, gt=0, description="Samples whose texts one run archives; the rest follows next run."
    )
    publish_lock_seconds_max: float = Field(
        120.0, gt=0, description="How long a run waits for another one that is publishing."
    )
    warehouse_poll_seconds: float = Field(
        2.0, gt=0, description="How often a node asks the bucket for a newer generation."
    )
    warehouse_stale_seconds: int = Field(
        60, gt=0, description="When the bucket has not answered for so long, `/health` says so."
    )
    s3_endpoint_url: str = Field(
        "",
        repr=False,
        description="Object storage that speaks S3: `https://...`, without a bucket. Empty: AWS.",
    )
    s3_region: str = Field(
        "auto",
        min_length=1,
        description="Its region. Cloudflare R2: `auto`; AWS wants the real one.",
    )
    s3_addressing_style: Literal["path", "virtual"] = Field(
        "path", description="Whether a bucket's name is in the path or in the host name."
    )
    s3_samples_bucket: str = Field(
        "",
        description="Bucket of the miners' videos and of evaluation results. Empty: links are null "
        "and results wait in the outbox.",
    )
    s3_read_access_key_id: str = Field(
        "", repr=False, description="Key that may read; it signs links. Empty: boto3's own chain."
    )
    s3_read_secret_access_key: SecretStr = Field(
        SecretStr(""), description="Its secret. Never shown."
    )
    s3_write_access_key_id: str = Field(
        "", repr=False, description="Key that may write and list. Empty: boto3's own chain."
    )
    s3_write_secret_access_key: SecretStr = Field(
        SecretStr(""), description="Its secret. Never shown."
    )
    s3_timeout_seconds: float = Field(
        10.0,
        gt=0,
        description="How long object storage may take to connect, and between two bytes.",
    )
    s3_transfer_seconds_max: float = Field(
        120.0, gt=0, description="How long one object may take as a whole."
    )
    s3_concurrency_max: int = Field(
        8, gt=0, le=32, description="Archive files that a run sends to the bucket at once."
    )
    s3_attempts_max: int = Field(
        3, gt=0, le=10, description="How often a request to object storage is put before it fails."
    )
    outbox_concurrency_max: int = Field(
        8, gt=0, le=32, description="Evaluation results that one courier uploads at the same time."
    )
    outbox_lease_seconds: float = Field(
        60.0,
        gt=0,
        description="How long a result stays with a courier that says nothing more, before another "
        "takes it.",
    )
    outbox_retry_seconds_max: float = Field(
        300.0, gt=0, description="The longest wait before a failed upload is tried again."
    )
    outbox_probe_seconds_max: float = Field(
        15.0,
        gt=0,
        description="While every upload fails, one is tried after a wait of at most this long.",
    )
    outbox_poll_seconds: float = Field(
        0.5, gt=0, description="How often a courier looks for results when none waits."
    )
    outbox_stale_seconds: int = Field(
        600,
        gt=0,
        description="When a result waits for longer than this, `/health` says degraded.",
    )

    @model_validator(mode="after")
    def _known_storage(self) -> Self:
        if self.log_url and not self.log_url.startswith("sqlite:///"):
            raise ValueError("LOG_URL: only sqlite:///path is implemented")
        if "://" in self.warehouse_url and not BUCKET_URL.fullmatch(self.warehouse_url):
            raise ValueError("WAREHOUSE_URL: give a directory or s3://bucket/prefix")
        if "@" in self.s3_endpoint_url:
            # What fails would be told with the address.
            raise ValueError("S3_ENDPOINT_URL: no user and no password in it; keys are settings")
        if self.s3_endpoint_url and not self.s3_endpoint_url.startswith(("http://", "https://")):
            raise ValueError("S3_ENDPOINT_URL: give an http:// or https:// address")
        for name, key_id, secret in (
            ("S3_READ", self.s3_read_access_key_id, self.s3_read_secret_access_key),
            ("S3_WRITE", self.s3_write_access_key_id, self.s3_write_secret_access_key),
        ):
            if bool(key_id) != bool(secret.get_secret_value()):
                raise ValueError(f"{name}_ACCESS_KEY_ID and its secret: give both or neither")
        return self

    @property
    def log_path(self) -> Path:
        """The log's SQLite file, absolute."""
        embedded = self.leoma_home / "log" / "log.sqlite"
        path = Path(self.log_url.removeprefix("sqlite:///")) if self.log_url else embedded
        return path.absolute()

    @property
    def warehouse_path(self) -> Path:
        """The directory of generations, archive and chain snapshots, absolute.

        With a bucket it is the working copy of this machine.
        """
        is_directory = self.warehouse_url and self.warehouse_bucket is None
        path = Path(self.warehouse_url) if is_directory else self.leoma_home / "warehouse"
        return path.absolute()

    @property
    def warehouse_bucket(self) -> tuple[str, str] | None:
        """Bucket and prefix (empty, or with a slash at its end) of the warehouse, None for none."""
        found = BUCKET_URL.fullmatch(self.warehouse_url)
        if found is None:
            return None
        prefix = found["prefix"].strip("/")
        return found["bucket"], f"{prefix}/" if prefix else ""
