"""`leoma materialize` and `leoma keep`: one run of a job now, in this process."""

import dataclasses

import click

from cli.failures import one_line, read_settings
from cli.options import json_option, print_json
from pipelines.settings import PipelineSettings
from warehouse.settings import WarehouseSettings


@click.command()
@json_option
def materialize(*, is_json: bool) -> None:
    """Make and publish all tables now, in this process.

    Reads the log (LEOMA_HOME, LOG_URL) and the metagraph (CHAIN_SOURCE), and prints the generation
    that it published. A run that fails publishes nothing, and the last generation stays in force.
    """
    settings, warehouse = read_settings(PipelineSettings), read_settings(WarehouseSettings)
    from pipelines import run  # noqa: PLC0415 - it reads the settings, checked above, at import

    with one_line(run.MaterializationError, OSError):
        made = run.materialize(settings, warehouse)
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
