"""The form of what the service's processes write to stderr: text for people, JSON for programs.

Everything goes through Python's own logging, the libraries' lines too; structlog gives it its form.
"""

import logging
import sys
from typing import Any, Literal

import structlog

# The environment's name of what `--log-level` says, for the workers.
LOG_LEVEL = "LOG_LEVEL"


def _without_colours(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    """Drop uvicorn's second text of the same, which is for terminals."""
    event.pop("color_message", None)
    return event


def write_logs(form: Literal["text", "json"], level: str) -> None:
    """Have all loggers of this process write to stderr, from `level` on."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        last += [
            structlog.processors.format_exc_info,
            # A newline or a control character of somebody else's stays inside its text.
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ]
    else:
        # Its own choice, where `rich` is installed, shows every local variable, bodies, signatures
        # and settings, and the event loop stands still for seconds meanwhile.
        plain = structlog.dev.plain_traceback
        last += [
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, exception_formatter=plain)
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line a request is ours (api.observed), with what operators look for.
    logging.getLogger("uvicorn.access").disabled = True
