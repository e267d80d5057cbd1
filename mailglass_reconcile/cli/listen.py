"""The subcommand `listen`: print broadcasts as they are published."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import INTERRUPTED
from mailglass_reconcile.cli.output import ignore_broken_pipe, print_json
from mailglass_reconcile.pubsub import Missed, Subscription, Update
from mailglass_reconcile.rules.humanize import escape_unprintable

EXAMPLES = """\b
Examples:
  mailglass-reconcile listen --tenant acme
  mailglass-reconcile listen --json | jq -r .message.delivery_id
"""


@click.command(epilog=EXAMPLES)
@click.option("--tenant", metavar="ID", help="Print broadcasts of this tenant only.")
@click.option("--delivery", type=click.UUID, metavar="ID", help="Print broadcasts of this delivery only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per broadcast: channel, message.")
def listen(tenant: str | None, delivery: UUID | None, as_json: bool) -> None:
    """Print broadcasts as they are published, each event once, until you press Ctrl-C.

    If the connection to Redis is lost, it reconnects, and standard error says so. Pub/sub does not replay the
    broadcasts that were published meanwhile.
    """
    _on_signal(lambda number: sys.exit(_exit_code(number)))
    signals: list[int] = []
    with runtime.subscribe(tenant, delivery) as subscription, ignore_broken_pipe():

        def stop(number: int) -> None:
            signals.append(number)
            subscription.close()  # the iteration ends after the line that is being printed
            _on_signal(lambda number: sys.exit(_exit_code(number)))  # a second signal exits at once

        _on_signal(stop)
        if sys.stderr.isatty():
            click.echo("listening; press Ctrl-C to stop", err=True)
        _print(subscription, as_json=as_json)
    sys.exit(_exit_code(signals[0]))


def _on_signal(action: Callable[[int], object]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        action(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _exit_code(number: int) -> int:
    return INTERRUPTED if number == signal.SIGINT else 0


def _print(subscription: Subscription, *, as_json: bool) -> None:
    for item in subscription:
        if isinstance(item, Update):
            if as_json:
                print_json(item._asdict())
            else:
                click.echo(_format_update(item))
        elif not as_json:
            click.echo(_format_gap(item))


def _format_update(update: Update) -> str:
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


def _format_gap(missed: Missed) -> str:
    return f"-- connected again; broadcasts from {missed.since:%H:%M:%S} to {missed.until:%H:%M:%S} UTC may be missing"
