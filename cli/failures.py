"""Failures that a person can do something about: one line on stderr, exit code 1."""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import click
from pydantic import ValidationError
from pydantic_settings import BaseSettings

Settings = TypeVar("Settings", bound=BaseSettings)


@contextlib.contextmanager
def one_line(*kinds: type[Exception]) -> Iterator[None]:
    """Turn these exceptions into one line; anything else is a defect and stays visible."""
    try:
        yield
    except kinds as error:
        text = " ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
        raise click.ClickException(text) from error


def read_settings(kind: type[Settings]) -> Settings:
    """Read settings from the environment; a bad value is named with its variable."""
    try:
        return kind()
    except ValidationError as error:
        reasons = [
            ": ".join([*(str(part).upper() for part in problem["loc"]), problem["msg"]])
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise click.ClickException("; ".join(reasons)) from error
