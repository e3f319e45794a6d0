"""`leoma recompute`: a published generation, checked against the log and the chain snapshot."""

import dataclasses
import sys

import click

from cli.failures import one_line, read_settings
from cli.options import json_option, print_json
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import MetagraphError
from pipelines.recompute import Recomputed
from pipelines.recompute import recompute as recomputed
from warehouse.backends import open_kept_log
from warehouse.generation import GenerationError, Generations
from warehouse.log import LogError
from warehouse.settings import WarehouseSettings


@click.command()
@click.argument("snapshot_id", required=False)
@json_option
def recompute(*, snapshot_id: str | None, is_json: bool) -> None:
    """Compute a published generation anew, and compare.

    Reads the log up to the generation's watermark, and the chain snapshot that it names, and makes
    every table again by the same rules: scores, ranks, weights. SNAPSHOT_ID is a kept generation's
    name, as GET /weights tells it; without it the current one is taken.

    The exit code is 1 if anything differs or cannot be computed. Nothing is changed.
    """
    settings = read_settings(WarehouseSettings)
    with one_line(LogError, GenerationError, MetagraphError, OSError):
        found = _recomputed(settings, snapshot_id)
    if is_json:
        print_json(dataclasses.asdict(found))
    for difference in found.differences:
        click.echo(difference, err=is_json)
    if found.differences:
        raise click.ClickException(f"{found.snapshot_id} is not what its sources lead to.")
    if not is_json:
        click.echo(
            f"{found.snapshot_id}: every table is what the log up to {found.watermark} and the "
            f"chain at block {found.block} lead to."
        )


def _recomputed(settings: WarehouseSettings, snapshot_id: str | None) -> Recomputed:
    generations = Generations(settings)
    generation = generations.find(snapshot_id) if snapshot_id else generations.current()
    if generation is None:
        raise GenerationError(
            f"{snapshot_id} is not kept" if snapshot_id else "no generation was published yet"
        )
    log = open_kept_log(settings)
    try:
        with click.progressbar(length=1_000, label="Reading the log", file=sys.stderr) as bar:

            def on_progress(done: int, total: int) -> None:
                bar.update(1_000 * done // max(1, total) - bar.pos)

            return recomputed(generation, log, ChainSnapshots(settings), on_progress)
    finally:
        log.close()
