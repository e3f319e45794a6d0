"""Where things are stored, and the limits of storing. Read once per process and passed in."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class WarehouseSettings(BaseSettings):
    """Settings of the log, the archive and the generations; each is an environment variable."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True)

    leoma_home: Path = Field(Path("data"), description="Directory of all embedded state.")
    log_url: str = Field(
        "", description="The log: `sqlite:///path`. Empty: `LEOMA_HOME/log/log.sqlite`."
    )
    warehouse_url: str = Field(
        "", description="Generations and archive: a directory. Empty: `LEOMA_HOME/warehouse`."
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
        100, gt=0, description="Task ids in one partition of the archive. Fixed once data exists."
    )
    archive_texts_per_run_max: int = Field(
        50_000, gt=0, description="Samples whose texts one run archives; the rest follows next run."
    )
    publish_lock_seconds_max: float = Field(
        120.0, gt=0, description="How long a run waits for another one that is publishing."
    )

    @model_validator(mode="after")
    def _only_embedded_storage(self) -> Self:
        if self.log_url and not self.log_url.startswith("sqlite:///"):
            raise ValueError("LOG_URL: only sqlite:///path is implemented")
        if "://" in self.warehouse_url:
            raise ValueError("WAREHOUSE_URL: only a directory is implemented")
        return self

    @property
    def log_path(self) -> Path:
        """The log's SQLite file, absolute."""
        embedded = self.leoma_home / "log" / "log.sqlite"
        path = Path(self.log_url.removeprefix("sqlite:///")) if self.log_url else embedded
        return path.absolute()

    @property
    def warehouse_path(self) -> Path:
        """The directory of generations, archive and chain snapshots, absolute."""
        path = Path(self.warehouse_url) if self.warehouse_url else self.leoma_home / "warehouse"
        return path.absolute()
