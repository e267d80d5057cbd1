"""How the commands write what they print: escaped, ages as people say them, and the lines of a stream."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


def printable(text: str) -> str:
    """Return *text* with everything escaped that a terminal might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
