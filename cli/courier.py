"""`leoma courier`: what goes to object storage, and what comes from it, in a process of its own."""

import contextlib
import logging
from threading import Event, Thread
from typing import Protocol

import click

from api.follower import Follower
from api.settings import ApiSettings
from api.uploader import GRACE_SECONDS, Uploader
from cli.failures import one_line, read_settings
from cli.logs import write_logs
from cli.options import log_level_option
from cli.processes import StopRequested, stop_signals
from warehouse.backends import open_outbox, open_read_log
from warehouse.generation import Generations
from warehouse.log import LogError
from warehouse.objects import ObjectStorageError, ObjectStore
from warehouse.settings import WarehouseSettings

# Beyond the uploads' own grace, for what comes after it.
JOIN_SECONDS_MAX = GRACE_SECONDS + 2.0

logger = logging.getLogger(__name__)


class Loop(Protocol):
    """What a courier does over and over, in a thread of its own."""

    def run(self, stopping: Event) -> None:
        """Work until `stopping` is set, then finish what is under way."""


def opened_loops(settings: WarehouseSettings, stack: contextlib.ExitStack) -> list[Loop]:
    """Return what the settings ask for; the stack closes what it uses."""
    loops: list[Loop] = []
    if settings.s3_samples_bucket:
        outbox, log = open_outbox(settings), open_read_log(settings)
        # An upload that fails is tried again by the outbox, which knows how all others fare.
        once = settings.model_copy(update={"s3_attempts_max": 1})
        store = ObjectStore(once, settings.s3_samples_bucket)
        for one in (outbox, log, store):
            stack.callback(one.close)
        generations = Generations(settings)

        def counted_seq() -> int:
            made_from = generations.made_from()
            return made_from[0] if made_from else 0

        loops.append(Uploader(settings, outbox, log, store, counted_seq))
    if settings.warehouse_bucket is not None:
        loops.append(Follower(settings))
    return loops


@click.command()
@log_level_option
def courier(*, log_level: str) -> None:
    """Carry results to object storage, and generations from there.

    Evaluation results go to S3_SAMPLES_BUCKET; generations come where WAREHOUSE_URL is a bucket.
    `leoma serve` starts one by itself. Several may run on one machine, and share the work. SIGTERM
    and Ctrl-C finish the uploads under way.
    """
    write_logs(read_settings(ApiSettings).log_format, log_level)
    for library in ("boto3", "botocore", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    settings = read_settings(WarehouseSettings)
    # From here, so that who stops it while it still opens things sees it end as later on.
    with contextlib.suppress(StopRequested), stop_signals(), contextlib.ExitStack() as stack:
        with one_line(LogError, ObjectStorageError, OSError):
            loops = opened_loops(settings, stack)
        if not loops:
            logger.info("object storage is not configured: there is nothing to do")
        run_until_stopped(loops)


def run_until_stopped(loops: list[Loop]) -> None:
    """Run the loops until `StopRequested`; raise a failure when one of them ends before."""
    stopping, broken = Event(), Event()

    def run(loop: Loop) -> None:
        try:
            loop.run(stopping)
        except Exception:
            logger.exception("a defect")
        if not stopping.is_set():
            broken.set()
            stopping.set()

    threads = [Thread(target=run, args=(loop,), daemon=True) for loop in loops]
    try:
        for thread in threads:
            thread.start()
        stopping.wait()
    except StopRequested:
        stopping.set()
    for thread in threads:
        thread.join(JOIN_SECONDS_MAX)
    if broken.is_set():
        raise click.ClickException("a part of the courier ended by itself")
