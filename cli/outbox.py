"""`leoma outbox`: the evaluation results that wait for object storage."""

import time
from typing import Any

import click

from cli.failures import one_line, read_settings
from cli.options import json_option, print_json
from warehouse.backends import open_outbox
from warehouse.log import LogError, OutboxStatus
from warehouse.settings import WarehouseSettings


@click.command()
@json_option
def outbox(*, is_json: bool) -> None:
    """Show what waits for object storage.

    How many evaluation results, for how long, and the last failure of one of them.
    """
    settings = read_settings(WarehouseSettings)
    with one_line(LogError, OSError):
        opened = open_outbox(settings)
        try:
            status = opened.status()
        finally:
            opened.close()
    shown = shown_status(status, settings, time.time_ns() // 1_000_000)
    if is_json:
        print_json(shown)
    else:
        click.echo(_text(shown))


def shown_status(status: OutboxStatus, settings: WarehouseSettings, at_ms: int) -> dict[str, Any]:
    """Return what is shown, with ages in seconds as of an instant."""

    def age_seconds(since_ms: int | None) -> float | None:
        return None if since_ms is None else max(0.0, (at_ms - since_ms) / 1000)

    return {
        "is_configured": bool(settings.s3_samples_bucket),
        "depth": status.depth,
        "oldest_seconds": age_seconds(status.oldest_queued_at_ms),
        "in_flight": status.in_flight,
        "attempts_max": status.attempts_max,
        "last_error": status.last_error,
        "last_error_seconds": age_seconds(status.last_failed_at_ms),
    }


def _text(shown: dict[str, Any]) -> str:
    lines = []
    if not shown["is_configured"]:
        lines.append("S3_SAMPLES_BUCKET is not set: results wait, and nothing uploads them.")
    if not shown["depth"]:
        return "\n".join([*lines, "No evaluation result waits."])
    lines += [
        f"{shown['depth']} evaluation results wait, {shown['oldest_seconds']:.0f} s at most.",
        f"{shown['in_flight']} in flight, {shown['attempts_max']} failures of one at most.",
    ]
    if shown["last_error"] is not None:
        # What a service said is shown as text, not sent to the terminal.
        error = "".join(char if char.isprintable() else " " for char in shown["last_error"])
        lines.append(f"The last failure, {shown['last_error_seconds']:.0f} s ago: {error}")
    return "\n".join(lines)
