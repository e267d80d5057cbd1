"""The first look at the database: whether this is the schema that is meant, before a command does anything there."""

from __future__ import annotations

from contextlib import suppress

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DatabaseUnavailableError
from mailglass_reconcile.rules.humanize import printable
from mailglass_reconcile.store import elsewhere
from mailglass_reconcile.store.database import Connected, with_retries


def look_first(ctx: click.Context) -> None:
    """Let the first connection of the command in *ctx* be used for that look."""
    runtime.look_first(_look)
    ctx.call_on_close(lambda: runtime.look_first(None))


def look_now() -> None:
    """Look at once, for a server; one that starts before its database looks when that is there."""
    with suppress(DatabaseUnavailableError), runtime.database().connect():
        pass


def _look(connected: Connected) -> None:
    """Warn of a second set of tables.

    Raises:
        ConfigurationError: The tables are in another schema.
        DatabaseRefusedError: Mailglass was rolled back.
    """

    def read() -> str | None:
        with connected.reading() as tx:
            return elsewhere.second_set(tx, elsewhere.require_ledger(tx))

    second = with_retries(read)
    if second:
        click.echo(f"mailglass-reconcile: warning: {printable(second)}", err=True)
