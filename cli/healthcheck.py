"""`leoma healthcheck`: for container engines, which have no HTTP client of their own."""

import urllib.error
import urllib.request

import click

TIMEOUT_SECONDS = 4


@click.command()
@click.argument("url")
def healthcheck(*, url: str) -> None:
    """Exit with 0 if URL answers with a 2xx status, else with 1."""
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("give an http:// or https:// URL.")
    # A proxy of the environment cannot reach this container's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            click.echo(answer.status)
    except (urllib.error.URLError, OSError) as error:
        raise click.ClickException(f"{url}: {error}") from error
