"""The subcommand `listen`: the broadcasts as they come."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import INTERRUPTED
from mailglass_reconcile.cli.output import print_json, reader_may_leave
from mailglass_reconcile.pubsub import Missed, Subscription, Update
from mailglass_reconcile.rules.humanize import escape_unprintable

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
    """Print broadcasts as they are published, each event once, until you press Ctrl-C.

    If Redis is lost, a line on standard error says so, and it connects again. What is published meanwhile is missed.
    """
    _on_signal(lambda number: sys.exit(_code(number)))
    ended_by: list[int] = []
    with runtime.subscribe(tenant, delivery) as subscription, reader_may_leave():

        def end(number: int) -> None:
            ended_by.append(number)
            subscription.close()  # the iteration ends after the line that is being printed
            _on_signal(lambda number: sys.exit(_code(number)))  # a second signal does not wait for it

        _on_signal(end)
        if sys.stderr.isatty():
            click.echo("listening; press Ctrl-C to stop", err=True)
        _print(subscription, as_json=as_json)
    sys.exit(_code(ended_by[0]))


def _on_signal(act: Callable[[int], object]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        act(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _code(number: int) -> int:
    return INTERRUPTED if number == signal.SIGINT else 0


def _print(subscription: Subscription, *, as_json: bool) -> None:
    for item in subscription:
        if isinstance(item, Update):
            if as_json:
                print_json(item._asdict())
            else:
                click.echo(_line(item))
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
    return "  ".join(escape_unprintable(str(part)) for part in parts)


def _gap(missed: Missed) -> str:
    return f"-- connected again; broadcasts from {missed.since:%H:%M:%S} to {missed.until:%H:%M:%S} UTC may be missing"
