"""The subcommand `listen`: the broadcasts as they come."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.texts import print_json, reader_may_leave
from mailglass_reconcile.pubsub import Missed, Subscription, Update
from mailglass_reconcile.rules.wording import printable

EXAMPLES = """\b
Examples:
  mailglass-reconcile listen --tenant acme
  mailglass-reconcile listen --json | jq -r .message.delivery_id
"""


@click.command(epilog=EXAMPLES)
@click.option("--tenant", metavar="ID", help="Of this tenant only.")
@click.option("--delivery", type=click.UUID, metavar="ID", help="Of this delivery only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per broadcast: channel, message.")
def listen(tenant: str | None, delivery: UUID | None, as_json: bool) -> None:
    """Print the broadcasts as they come, each event once, until you press Ctrl-C.

    If Redis goes away, it says so on standard error and connects again; what is published meanwhile is missed.
    """
    signal.signal(signal.SIGTERM, _leave)
    try:
        with runtime.subscribe(tenant, delivery) as subscription, reader_may_leave():
            if sys.stderr.isatty():
                click.echo("listening; press Ctrl-C to stop", err=True)
            _print(subscription, as_json=as_json)
    except KeyboardInterrupt:
        sys.exit(130)


def _print(subscription: Subscription, *, as_json: bool) -> None:
    for item in subscription:
        if isinstance(item, Update):
            print_json(item._asdict()) if as_json else click.echo(_line(item))
        elif not as_json:
            click.echo(_gap(item))


def _line(update: Update) -> str:
    message = update.message
    meta = message.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    parts = (
        meta.get("occurred_at"),
        meta.get("tenant_id"),
        meta.get("type"),
        f"delivery {message.get('delivery_id')}",
        f"({message.get('event_type')} event {meta.get('event_id')})",
    )
    return "  ".join(printable(str(part)) for part in parts)


def _gap(missed: Missed) -> str:
    return f"-- connected again; broadcasts from {missed.since:%H:%M:%S} to {missed.until:%H:%M:%S} UTC may be missing"


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
