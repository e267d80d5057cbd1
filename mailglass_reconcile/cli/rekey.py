"""The subcommand `rekey`: clear the keys of open events, so that the next sweep computes them again."""

from __future__ import annotations

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import NIL, OpenConnection
from mailglass_reconcile.store.tables import stored_keys


@click.command(epilog="Example: mailglass-reconcile rekey")
def rekey() -> None:
    """Read the message ids of all open events again, after you have corrected a key rule.

    The next sweep does it; its MAILGLASS_IMPORTS must name your rules.
    """
    with runtime.database().connect() as connected:
        with connected.reading() as tx:
            installed.require_migrated(tx)
        count = _clear_all_keys(connected)
    click.echo(f"the next sweep reads the message ids of {pluralize(count, 'open event')} again")


def _clear_all_keys(connected: OpenConnection) -> int:
    count, after, size = 0, NIL, connected.limits.batch_rows
    while True:
        with connected.writing() as tx:
            event_ids = stored_keys.clear(tx, after, size)
        count += len(event_ids)
        if len(event_ids) < size:
            return count
        after = event_ids[-1]
