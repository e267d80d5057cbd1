"""The subcommand `link`: one event goes to the delivery that a person chooses."""

from __future__ import annotations

from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import dispatch
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import by_hand

EXAMPLES = """\b
Example:
  mailglass-reconcile link 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10 0197a0c4-4f00-7d11-8a6e-2a8f0f1d2c3b \\
    --reason "the second of two mails with this id; ticket 4711"
"""


@click.command(epilog=EXAMPLES)
@click.argument("event_id", type=click.UUID)
@click.argument("delivery_id", type=click.UUID)
@click.option("--reason", required=True, metavar="TEXT", help="Why; the ledger keeps it, so without an address.")
def link(event_id: UUID, delivery_id: UUID, reason: str) -> None:
    """Link one event to the delivery that you choose; only their tenant must be the same.

    For an event that no sweep links: one that is ambiguous, unmatched, unmatchable, expired, or another recipient's.
    The ledger keeps your user name and the reason. A link cannot be undone.
    """
    try:
        wanted = by_hand.request(event_id, delivery_id, reason)
    except InvalidEventError as error:
        raise click.UsageError(str(error)) from None
    by_hand.link_with(runtime.database(), wanted)
    click.echo(f"linked event {event_id} to delivery {delivery_id}")
    dispatch.run_for(1)
