"""The subcommand `rekey`: the keys of open orphans are forgotten, and computed again by the next sweep."""

from __future__ import annotations

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.rules.humanize import counted
from mailglass_reconcile.store import schema, stored_keys

BATCH_ROWS = 5_000


@click.command(epilog="Example: mailglass-reconcile rekey")
def rekey() -> None:
    """Make the next sweep compute the keys of all open orphans again, after a key rule was corrected.

    No recipient is forgotten. The sweep's process loads your rules, which MAILGLASS_IMPORTS names there.
    """
    with runtime.database().connect() as connected:
        with connected.reading() as tx:
            schema.require_migrated(tx)
        forgotten = connected.in_batches(stored_keys.FORGET, {"size": BATCH_ROWS})
    click.echo(f"the next sweep computes the keys of {counted(forgotten, 'open orphan')}")
