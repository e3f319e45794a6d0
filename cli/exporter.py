"""`/metrics` for Prometheus, on a port of its own: the workers' counters, and the state of it all.

It runs in the process of `leoma serve`, beside the workers, and reads what they share: counters
from a directory in memory, state from the log and the warehouse. A worker that hangs or dies hides
nothing.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.looks import answered_at_ms
from api.settings import ApiSettings
from warehouse.backends import open_read_log
from warehouse.generation import Generations, open_generation
from warehouse.log import LogReader
from warehouse.settings import WarehouseSettings

RESULTS_COUNTED_MAX = 100_000
GENERATION = (
    "SELECT watermark, computed_at_ms, valid_until_ms, metagraph_synced_at_ms FROM generation"
)


class State(Collector):
    """Gauges that are read when they are asked for; what cannot be read is left out."""

    def __init__(self, settings: WarehouseSettings) -> None:
        self._settings = settings
        self._generations = Generations(settings)
        self._log: LogReader | None = None
        # Of a generation nothing changes: read once, since each look opens a file.
        self._read: tuple[str, tuple[int, int, int, int]] | None = None

    def collect(self) -> Iterable[Metric]:
        """Return the gauges of now."""
        now_ms = time.time_ns() // 1_000_000
        found: list[tuple[str, str, float]] = []
        head = None
        # A part that cannot be read is absent from the answer, and that is what alerts look for.
        with contextlib.suppress(Exception):
            self._log = self._log or open_read_log(self._settings)
            head = self._log.head()
            depth, oldest_ms = self._log.backlog(RESULTS_COUNTED_MAX)
            waited_seconds = 0.0 if oldest_ms is None else (now_ms - oldest_ms) / 1000
            found += [
                ("log_head", "The log's highest seq.", head),
                ("outbox_depth", "Evaluation results that wait for object storage.", depth),
                (
                    "outbox_oldest_seconds",
                    "How long the oldest of them has waited.",
                    waited_seconds,
                ),
            ]
        with contextlib.suppress(Exception):
            generation = self._generation()
            if generation is not None:
                watermark, computed_ms, valid_until_ms, synced_ms = generation
                found += [
                    ("generation_age_seconds", "Since the current tables were computed.",
                     (now_ms - computed_ms) / 1000),
                    ("weights_valid_seconds", "Until the current weights expire.",
                     (valid_until_ms - now_ms) / 1000),
                    ("chain_sync_age_seconds", "Since the chain that they count was read.",
                     (now_ms - synced_ms) / 1000),
                ]  # fmt: skip
                if head is not None:
                    found.append(
                        ("log_lag_records", "Records that the tables do not count.",
                         max(0, head - watermark))
                    )  # fmt: skip
        if self._settings.warehouse_bucket is not None:
            silent_seconds = (now_ms - answered_at_ms(self._settings)) / 1000
            found.append(("bucket_silent_seconds", "Since the bucket answered.", silent_seconds))
        for name, meaning, value in found:
            yield GaugeMetricFamily(f"leoma_{name}", meaning, value=value)

    def _generation(self) -> tuple[int, int, int, int] | None:
        current = self._generations.current()
        if current is None:
            return None
        if self._read is None or self._read[0] != current.snapshot_id:
            with open_generation(current) as connection:
                (row,) = connection.execute(GENERATION).fetchall()
            self._read = current.snapshot_id, row
        return self._read[1]


@contextlib.contextmanager
def exported_metrics(
    settings: ApiSettings, warehouse: WarehouseSettings, directory: Path
) -> Iterator[None]:
    """Show `/metrics` while the block lasts; `directory` has the workers' counters."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    registry.register(State(warehouse))
    try:
        server, thread = start_http_server(
            settings.metrics_port, settings.metrics_host, registry=registry
        )
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {settings.metrics_host}:{settings.metrics_port} (METRICS_PORT): "
            f"{error.strerror or error}"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
