"""How the commands write what they print: escaped, ages as people say them, and the lines of a stream."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mailglass_reconcile.rules.wording import age, seconds_of


class Duration(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A number and a unit, such as `90s`, `5m`, `2h`, `6d`; its value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        try:
            return seconds_of(value)
        except ValueError as error:
            self.fail(f"{value!r} is not a duration: {error}")


def moment(iso: str) -> str:
    """Return a time in ISO 8601, UTC, as people read it, with how long ago that is: both for a line of text."""
    try:
        at = dt.datetime.fromisoformat(iso)
    except ValueError:  # Postgres knows infinity, and years that Python does not
        return iso
    seconds = (dt.datetime.now(dt.UTC) - at).total_seconds()
    return (
        f"{at:%Y-%m-%d %H:%M:%S} UTC ({age(seconds)} ago)"
        if seconds >= 0
        else (f"{at:%Y-%m-%d %H:%M:%S} UTC (in {age(-seconds)})")
    )


def wrapped(text: str, indent: str = "", first: str | None = None) -> str:
    """Return *text* in lines of 80 columns, broken between words only: ids can be copied."""
    return textwrap.fill(
        text,
        80,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_json(value: Any) -> None:
    """Print one line of JSON, at once, also into a pipe."""
    click.echo(json.dumps(value))  # echo flushes


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End quietly with 0 if who reads the output has left, such as `head` when it has seen enough."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(0)
