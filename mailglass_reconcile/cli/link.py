"""The subcommand `link`: link one event to the delivery that a person chooses."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import dispatch
from mailglass_reconcile.cli.output import confirm, require_terminal, wrap_text
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.handlers import registration
from mailglass_reconcile.ops import deliveries, explanation
from mailglass_reconcile.record import manual_link
from mailglass_reconcile.rules.times import format_time
from mailglass_reconcile.store.database import Database

EXAMPLES = """\b
Examples:
  mailglass-reconcile link 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10 0197a0c4-4f00-7d11-8a6e-2a8f0f1d2c3b \\
    --reason "the second of two mails with this id; ticket 4711"
  mailglass-reconcile link 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10 0197a0c4-4f00-7d11-8a6e-2a8f0f1d2c3b \\
    --reason "ticket 4711" --dry-run
"""


@click.command(epilog=EXAMPLES)
@click.argument("event_id", type=click.UUID)
@click.argument("delivery_id", type=click.UUID)
@click.option(
    "--reason",
    required=True,
    metavar="TEXT",
    help="Why you link it. Stored permanently: do not include an e-mail address.",
)
@click.option("--dry-run", is_flag=True, help="Show the event and the delivery, and whether they can be linked.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def link(event_id: UUID, delivery_id: UUID, reason: str, dry_run: bool, yes: bool) -> None:
    """Link one event to the delivery that you choose; only their tenant must be the same.

    Use it for an event that no sweep links: it is ambiguous, unmatched, unmatchable, expired, or about another
    recipient. It asks first. The ledger keeps your user name and the reason. A link cannot be undone.
    """
    try:
        manual_link_request = manual_link.validate_link(event_id, delivery_id, reason)
    except InvalidEventError as error:
        raise click.UsageError(str(error)) from None
    if not (yes or dry_run):
        require_terminal("pass --yes, or --dry-run to see what would be linked")
    database = runtime.database()
    if not yes or dry_run:
        manual_link.require_linkable(database, manual_link_request)
        for line in _describe(database, event_id, delivery_id):
            click.echo(line, err=not dry_run)
    if dry_run:
        click.echo("they can be linked; nothing was written")
        return
    if not yes:
        confirm("link them? This cannot be undone")
    registration.register_before_sweep(database)
    manual_link.link_with(database, manual_link_request)
    click.echo(wrap_text(f"linked event {event_id} to delivery {delivery_id}"))
    dispatch.run_handlers(1)


def _describe(database: Database, event_id: UUID, delivery_id: UUID) -> Iterator[str]:
    """Yield a line about the event and one about the delivery."""
    event = explanation.explain(database, event_id)
    facts = filter(None, (event.type, event.bounce, event.provider, event.state))
    arrived = format_time(event.arrived_at)
    yield wrap_text(f"{event_id}: {', '.join(facts)}, arrived {arrived}", " " * 10, "event     ")
    with database.reading() as tx:
        (delivery,) = deliveries.load_deliveries(tx, [str(delivery_id)])
    facts = filter(None, (delivery.mailable, delivery.provider, delivery.type))
    stored_at = format_time(delivery.stored_at)
    yield wrap_text(f"{delivery_id}: {', '.join(facts)}, stored {stored_at}", " " * 10, "delivery  ")
    if any(
        candidate.delivery_id == str(delivery_id) and not candidate.same_recipient for candidate in event.candidates
    ):
        yield wrap_text("the event is about another recipient than the delivery's", " " * 10, "note      ")
