"""The subcommand that runs handlers: `dispatch`; and how another subcommand asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from uuid import UUID

import click
from rich.console import Console
from rich.table import Table

from mailglass_reconcile import runtime
from mailglass_reconcile.hooks import dispatcher
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.wording import counted, took

ALL = "all"
AGAIN_SECONDS = 30.0
"""How often a process that follows asks for a dispatch although it has linked nothing."""
PATIENCE_SECONDS = 5.0
"""How long a process that ends waits for the dispatch that it has started."""

EXAMPLES = """\b
Examples:
  mailglass-reconcile dispatch
  mailglass-reconcile dispatch --dead
  mailglass-reconcile dispatch --retry 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10
"""

program = [sys.executable, "-m", "mailglass_reconcile"]
"""How this command is run in a process of its own; a framework's command puts its own way here."""


def _event_id(context: click.Context, option: click.Parameter, value: str | None) -> UUID | str | None:
    return value if value in (None, ALL) else click.UUID.convert(value, option, context)


@click.command(epilog=EXAMPLES)
@click.option("--dead", "lists", is_flag=True, help="List the events that have failed for the last time.")
@click.option(
    "--retry",
    callback=_event_id,
    is_flag=False,
    flag_value=ALL,
    metavar="[EVENT_ID]",
    help="Let all dead events, or one, be tried again by the next dispatch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dispatch(lists: bool, retry: UUID | str | None, as_json: bool) -> None:
    """Run the handlers of the modules in MAILGLASS_IMPORTS on every event that is due.

    Exits with 0 if no handler failed.
    """
    if lists and retry is not None:
        raise click.UsageError("--dead and --retry exclude each other")
    if lists:
        _list_dead(as_json)
    elif retry is not None:
        _retry(retry, as_json)
    else:
        _dispatch(as_json)


def ask() -> None:
    """Let the handlers hear at once, and wait until they have."""
    asked = _start()
    if asked is not None:
        asked.wait()


def _start() -> subprocess.Popen[bytes] | None:
    """Start a dispatch in a process of its own: whatever a handler does, it does not do it to this one."""
    if not (runtime.get_settings().hook_types and registry.types()):
        return None
    return subprocess.Popen([*program, "dispatch", "--json"], stdout=subprocess.DEVNULL)  # noqa: S603 - all of it is ours


class Beside:
    """Calls the handlers for what a process links, beside it and never waited for."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._running: subprocess.Popen[bytes] | None = None
        self._owing = False
        self._began = time.monotonic()

    def hear(self, *, linked: int) -> None:
        """Start a dispatch if something was *linked*, and now and then, for what must be tried again.

        One that is running already is followed by another.
        """
        self._owing = self._owing or linked > 0 or time.monotonic() - self._began > AGAIN_SECONDS
        if self._owing and (self._running is None or self._running.poll() is not None):
            self._owing, self._began = False, time.monotonic()
            self._running = _start()

    def close(self) -> None:
        """Leave no dispatch behind; an event that it was at is tried again by a later one."""
        if self._running is not None:
            try:
                self._running.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._running.terminate()
                self._running.wait()


def _dispatch(as_json: bool) -> None:
    result = dispatcher.dispatch()
    if not registry.types():
        click.echo("no handler is registered: name the modules that register them in MAILGLASS_IMPORTS", err=True)
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        click.echo(
            f"dispatched {counted(result.dispatched, 'event')} in {took(result.duration_ms)}:"
            f" {counted(result.handled, 'handler')} done, {result.failed:,} failed"
            + (f"; {counted(result.dead, 'event is', 'events are')} dead" if result.dead else "")
        )
    sys.exit(1 if result.failed or result.dead else 0)


def _list_dead(as_json: bool) -> None:
    found = dispatcher.dead_events(runtime.get_engine())
    if as_json:
        click.echo(json.dumps({"dead": found}))
        return
    if not found:
        click.echo("no event is dead")
        return
    table = Table("event", "type", "delivery", "attempts", "error", "done", "dead since (UTC)")
    for row in found:
        cells = (row["event_id"], row["type"], row["delivery_id"], row["attempts"], row["error"])
        table.add_row(*map(str, cells), ", ".join(row["done"]) or "-", row["finished_at"])
    Console().print(table)


def _retry(wanted: UUID | str, as_json: bool) -> None:
    retried = dispatcher.retry(runtime.get_engine(), wanted if isinstance(wanted, UUID) else None)
    click.echo(json.dumps({"retried": retried}) if as_json else f"{counted(retried, 'event')} will be tried again")
    if isinstance(wanted, UUID) and not retried:
        click.echo(f"event {wanted} is not dead: see `mailglass-reconcile dispatch --dead`", err=True)
        sys.exit(1)
