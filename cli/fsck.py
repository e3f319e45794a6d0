"""`leoma fsck`: the whole log, verified from what is stored alone."""

import click

from cli.failures import one_line, read_settings
from warehouse.backends import open_kept_log
from warehouse.log import LogError
from warehouse.settings import WarehouseSettings


@click.command()
def fsck() -> None:
    """Verify the whole log: no gap, no orphan, every signature.

    The exit code is 1 if anything is wrong.
    """
    with one_line(LogError, OSError):
        log = open_kept_log(read_settings(WarehouseSettings))
        try:
            head, floor, problems = log.head(), log.dropped_through(), log.check()
        finally:
            log.close()
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException(f"{len(problems)} problems in a log of {head - floor} records.")
    archived = f" after {floor}, up to where the archive has them" if floor else ""
    click.echo(f"{head - floor} records{archived}, nothing wrong.")
