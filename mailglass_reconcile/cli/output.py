"""Output of the commands: escaping, wrapping for terminals, tables, ages, JSON."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mailglass_reconcile.errors import with_local_names
from mailglass_reconcile.ops.unknown_tenants import describe_unknown
from mailglass_reconcile.rules.humanize import escape_unprintable, parse_duration
from mailglass_reconcile.rules.times import format_time, parse
from mailglass_reconcile.store.database import Database


class Duration(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A number and a unit, such as `90s`, `5m`, `2h`, `6d`; its value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is not a duration: {error}")


def format_as_of(ended_at: str | None) -> str:
    """Return the note that states are as of the end of the last full sweep, *ended_at* in ISO 8601."""
    if ended_at is None:
        return "no full sweep has ended yet"
    return f"states as of {format_time(ended_at)}, when the last full sweep ended"


def format_in_row(iso: str) -> str:
    """Return a time in UTC for a row: on a terminal, of 80 columns perhaps, only the time if it is of today."""
    at = parse(iso)
    if at is None:
        return iso
    if not sys.stdout.isatty():
        return f"{at:%Y-%m-%d %H:%M:%S}"
    return f"{at:%H:%M:%S}" if at.date() == dt.datetime.now(dt.UTC).date() else f"{at:%m-%d %H:%M}"


def wrap_text(text: str, indent: str = "", first_indent: str | None = None) -> str:
    """Return *text*, escaped: in lines of 80 columns on a terminal, in one line in a pipe."""
    first_indent, text = indent if first_indent is None else first_indent, escape_unprintable(text)
    if not sys.stdout.isatty():
        return first_indent + text
    return textwrap.fill(
        text, 80, initial_indent=first_indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def wrap_with_commands(text: str, indent: str = "", first: str | None = None) -> str:
    """Return *text* as `wrap_text` does; on a terminal, each command in it has a line of its own, to copy and paste."""
    if not sys.stdout.isatty():
        return wrap_text(text, indent, first)
    beginning = with_local_names("`mailglass-reconcile ")
    lines: list[str] = []
    for number, part in enumerate(re.split(rf"({re.escape(beginning)}[^`]*`)", text)):
        if number % 2:
            lines.append(escape_unprintable(part.strip("`")))
        elif words := part.strip(" ;,") if number else part.strip():
            lines.append(wrap_text(words, indent, None if lines else first))
    return "\n".join(lines)


def console() -> Console:
    """Return where tables are printed: as wide as the terminal, and in a pipe so wide that nothing is wrapped."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=10_000)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; its cells are escaped, and not read as markup."""
    table_ = Table(*columns)
    for row in rows:
        table_.add_row(*(Text(escape_unprintable(str(cell))) for cell in row))
    return table_


def argument(value: str) -> str:
    """Return an argument, or for `-` a line of standard input: shells and process lists keep arguments."""
    if value != "-":
        return value
    if sys.stdin.isatty():
        click.echo("address or id: ", err=True, nl=False)
    return sys.stdin.readline().strip()


def require_terminal(instead: str) -> None:
    """Refuse a confirmation without a terminal; *instead* says what to do."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"no terminal to confirm on: {instead}")


def confirm(question: str) -> None:
    """Ask before something is written; any answer but yes ends the command with 1."""
    click.confirm(question, abort=True, err=True)


def warn_of_unknown_tenant(database: Database, tenant_id: str) -> None:
    """Print to standard error that no row has this tenant; print nothing if one has it."""
    sentence = describe_unknown(database, tenant_id)
    if sentence is not None:
        click.echo(sentence, err=True)


def print_json(value: Any) -> None:
    """Print one line of JSON, at once, also into a pipe; a dataclass becomes an object of its fields."""
    click.echo(json.dumps(value, default=asdict))  # echo flushes


def print_result(result: Any, text: str, *, as_json: bool) -> None:
    """Print what a command has done: its result as JSON, or a text."""
    if as_json:
        print_json(result)
    else:
        click.echo(text)


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Exit with 0 on a broken pipe (`… | head`)."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes once more at its end
        sys.exit(0)
