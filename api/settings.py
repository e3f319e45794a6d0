"""What the API may be told from outside. Read once per process and passed in."""

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from warehouse.hotkeys import InvalidHotkeyError, public_key
from warehouse.presigning import PRESIGNED_SECONDS_MAX


def _listed(value: object) -> object:
    """Take a comma separated text apart; anything else stays as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class ApiSettings(BaseSettings):
    """Settings of the API; each is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True)

    admin_hotkeys: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="Hotkeys that may announce tasks and keep the blacklist, by comma."
    )
    signature_expiry_seconds: int = Field(
        300,
        gt=0,
        # The log remembers for a day which signatures were used up.
        le=3_600,
        description="How far X-Timestamp may be from the server's clock, either way.",
    )
    require_signature_v2: Literal["none", "admin", "all"] = Field(
        "none", description="Which routes refuse scheme 1: none, admin routes, or all signed ones."
    )
    max_body_size: int = Field(
        2 * 2**20,
        gt=0,
        description="Bytes of a request body, at most; more is 413. A full batch with 2 kB of "
        "texts a sample has a tenth of it.",
    )
    samples_per_batch_max: int = Field(100, gt=0, description="Samples in one batch, at most.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may read the API, by comma. Empty: every origin. There "
        "are no credentials.",
    )
    snapshot_poll_seconds: float = Field(
        0.25, gt=0, description="How often the pointer to the current generation is read."
    )
    cache_max_age_seconds: int = Field(
        2, ge=0, description="How long caches may keep an answer of a materialised route."
    )
    past_weights_max_age_seconds: int = Field(
        86_400, ge=0, description="How long caches may keep the weights of one named snapshot."
    )
    chain_sync_interval_seconds: int = Field(300, gt=0, description="As for the pipelines.")
    retry_after_seconds: int = Field(
        2, gt=0, description="What Retry-After says when the log or the tables are not available."
    )
    rendered_bytes_max: int = Field(
        4 * 2**20, gt=0, description="Bytes of rendered answers that a worker keeps, at most."
    )
    log_read_threads: int = Field(
        2,
        gt=0,
        le=64,
        description="Threads of a worker that read lists of samples. Python runs one at a time: "
        "more of them are slower together, and each keeps pages of the log in memory.",
    )
    archive_read_threads: int = Field(
        2,
        gt=0,
        le=64,
        description="Threads of a worker that read whole tasks, the tables and the archive, which "
        "takes longer.",
    )
    rate_per_address: float = Field(
        100.0,
        ge=0,
        le=1e6,
        description="Requests a second from one address (IPv6: one /64), of all workers together; "
        "more is 429. A page asks for some ten at once. 0: no limit.",
    )
    rate_per_address_burst: int = Field(
        500, gt=0, le=10**6, description="How many of them at once, after a rest."
    )
    rate_per_hotkey: float = Field(
        500.0,
        ge=0,
        le=1e6,
        description="Signed requests a second from one hotkey, of all workers together; more is "
        "429. A task with 256 miners, judged one by one, is 256. 0: no limit.",
    )
    rate_per_hotkey_burst: int = Field(
        1_000, gt=0, le=10**6, description="How many of them at once, after a rest."
    )
    rate_refused_cost: int = Field(
        100,
        gt=0,
        le=10**6,
        description="How many requests a write counts for that is refused only for now (stamped "
        "too early, or on the blacklist): its signature is remembered, which takes room.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1", "::1"),
        description="Addresses or networks of proxies whose X-Forwarded-For is believed, by comma. "
        "Requests of their own have no limit by address.",
    )
    request_seconds_max: float = Field(
        30.0,
        gt=0,
        description="How long a request may take from its head to the end of its answer. A commit "
        "waits for LOG_LOCK_SECONDS_MAX at most.",
    )
    concurrent_requests_max: int = Field(
        500,
        gt=0,
        description="Requests under way in one worker, answers rendered beforehand aside; more is "
        "503 with Retry-After.",
    )
    body_bytes_under_way_max: int = Field(
        64 * 2**20,
        gt=0,
        description="Bytes of request bodies that one worker holds, at most; more is 503 with "
        "Retry-After. So slow senders cannot fill its memory.",
    )
    requests_per_address_max: int = Field(
        100,
        gt=0,
        description="Requests under way of one address in one worker, so that nobody takes all of "
        "CONCURRENT_REQUESTS_MAX; more is 503. A trusted proxy stands for the clients it names.",
    )
    body_bytes_per_address_max: int = Field(
        16 * 2**20,
        gt=0,
        description="Bytes of request bodies of one address in one worker, so that nobody takes "
        "all of BODY_BYTES_UNDER_WAY_MAX; more is 503.",
    )
    shutdown_seconds_max: float = Field(
        10.0,
        gt=0,
        description="How long requests under way may take when the service is told to end; then "
        "they are cut off. Whoever stops it must wait for longer.",
    )
    header_seconds_max: float = Field(
        10.0, gt=0, description="How long a new connection may take until its request has a head."
    )
    header_bytes_max: int = Field(
        16_384, gt=0, description="Bytes of a request's head, at most; more is 431."
    )
    keep_alive_seconds: float = Field(
        5.0, gt=0, description="How long a connection is kept after its last answer."
    )
    connections_max: int = Field(
        1_000,
        gt=0,
        description="Connections of one worker; one more is closed at once. Each takes a handle.",
    )
    connections_per_address_max: int = Field(
        200,
        gt=0,
        description="Connections of one address to one worker, trusted proxies aside; one more is "
        "closed at once.",
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port of `/metrics` for Prometheus, which shows all workers together. 0: none.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address of `/metrics`. It has no password: keep it private."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of the log on stderr: `json` has one object a line."
    )
    media_url_seconds: int = Field(
        3_600,
        gt=0,
        le=PRESIGNED_SECONDS_MAX,
        description="How long a link to media is good. It is given again for half of that time.",
    )
    media_urls_kept: int = Field(
        10_000, ge=0, description="Links that a worker keeps to give them again, at most."
    )

    @property
    def metagraph_stale_seconds(self) -> int:
        """The age from which the metagraph counts as not synced: three intervals."""
        return 3 * self.chain_sync_interval_seconds

    @field_validator("admin_hotkeys", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _by_comma(cls, value: object) -> object:
        return _listed(value)

    @field_validator("admin_hotkeys")
    @classmethod
    def _real_hotkeys(cls, value: frozenset[str]) -> frozenset[str]:
        for hotkey in sorted(value):
            try:
                public_key(hotkey)
            except InvalidHotkeyError:
                raise ValueError(f"ADMIN_HOTKEYS: {hotkey!r} is not an SS58 address") from None
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _real_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            try:
                ip_network(address)
            except ValueError:
                raise ValueError(
                    f"TRUSTED_PROXIES: {address!r} is neither an IP address nor a network"
                ) from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _every_origin_is_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return () if "*" in value else value
