"""`leoma materialize` and `leoma keep`: one run of a job now, in this process."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cli.failures import one_line, read_settings
from cli.options import json_option, print_json
from pipelines.settings import PipelineSettings
from warehouse.settings import WarehouseSettings

if TYPE_CHECKING:  # it takes Polars along
    from warehouse.export import OnProgress


# Of the log's records. Fewer are a matter of seconds.
PROGRESS_SEQS_MIN = 50_000
NO_LIMIT = 10**15


@contextlib.contextmanager
def progress_bars() -> Iterator["OnProgress"]:
    """Show how far an export is, one bar for each part that takes long."""
    with contextlib.ExitStack() as bars:
        shown: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if total < PROGRESS_SEQS_MIN:
                return
            if what not in shown:
                bars.close()
                label = f"{what:<12}"
                bar = click.progressbar(length=total, label=label, file=sys.stderr)
                shown[what] = bars.enter_context(bar)
            shown[what].update(done - shown[what].pos)

        yield on_progress


@click.command()
@click.option(
    "--all-texts",
    "is_all",
    is_flag=True,
    help="Archive all texts and submissions now, however many wait (otherwise each run takes "
    "ARCHIVE_TEXTS_PER_RUN_MAX): to make everything anew from the log.",
)
@json_option
def materialize(*, is_all: bool, is_json: bool) -> None:
    """Make and publish all tables now, in this process.

    Reads the log (LEOMA_HOME, LOG_URL) and the metagraph (CHAIN_SOURCE), and prints the generation
    that it published. A run that fails publishes nothing, and the last generation stays in force.
    """
    settings, warehouse = read_settings(PipelineSettings), read_settings(WarehouseSettings)
    from pipelines import run  # noqa: PLC0415 - it reads the settings, checked above, at import

    if is_all:
        warehouse = warehouse.model_copy(update={"archive_texts_per_run_max": NO_LIMIT})
    with one_line(run.MaterializationError, OSError), progress_bars() as on_progress:
        made = run.materialize(settings, warehouse, on_progress)
    if is_json:
        print_json(dataclasses.asdict(made))
    else:
        click.echo(
            f"Published {made.snapshot_id} in {made.seconds:.2f} s, counting the log up to "
            f"{made.watermark}:\n{made.path}"
        )


@click.command()
def keep() -> None:
    """Do the nightly work now: compact the archive, drop what is no longer kept."""
    settings, warehouse = read_settings(PipelineSettings), read_settings(WarehouseSettings)
    from pipelines import run  # noqa: PLC0415 - it reads the settings, checked above, at import

    with one_line(run.MaterializationError, OSError):
        run.keep(settings, warehouse)
    click.echo("Done.")
