"""The subcommand `explain`: one event, and why it is linked or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import moment, print_json, reader_may_leave, with_commands, wrapped
from mailglass_reconcile.ops import explanation
from mailglass_reconcile.ops.deliveries import Delivery
from mailglass_reconcile.ops.explanation import Explanation
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.states import NOT_CHECKED

EXAMPLES = """\b
Examples:
  mailglass-reconcile explain 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10
  mailglass-reconcile explain --message-id '<20261125.1@mail.example.com>'
  mailglass-reconcile explain --json 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10 | jq .remedy
"""


@click.command(epilog=EXAMPLES)
@click.argument("wanted", metavar="[EVENT_ID | DELIVERY_ID]", type=click.UUID, required=False)
@click.option("--message-id", metavar="ID", help="Instead: the events of this message, at most 40.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
def explain(wanted: UUID | None, message_id: str | None, as_json: bool) -> None:
    """Show why one event is linked or not, and what must change.

    It begins with what happened to the event's delivery, and where to look next. For a delivery or a message, the
    latest events come first, and then the open orphans that name the message.
    """
    if (wanted is None) == (message_id is None):
        raise click.UsageError("give an EVENT_ID or a DELIVERY_ID, or --message-id")
    database = runtime.database()
    if wanted:
        events, shown = explanation.of_id(database, wanted)
    else:
        events, shown = explanation.of_message(database, message_id or "")
        if not events and not shown:
            raise click.ClickException("no open orphan and no delivery has this message id")
    with reader_may_leave():
        if as_json:
            _print_json(events, shown)
        else:
            click.echo("\n\n".join(_parts(events, shown)))
    sys.exit(1 if [event.state for event in events] == ["unknown"] else 0)


def _print_json(events: Sequence[Explanation], deliveries: Sequence[Delivery]) -> None:
    by_id = {delivery.delivery_id: delivery.as_dict() for delivery in deliveries}
    for event in events:
        print_json({**event.as_dict(), "delivery": by_id.get(event.delivery_id or "")})


def _parts(found: Sequence[Explanation], deliveries: Sequence[Delivery]) -> Iterator[str]:
    if deliveries:
        yield "\n".join(map(_state, deliveries))
    if not found:
        yield "no event is linked to it, and no open orphan has its message id"
    for one in found:
        yield "\n".join(_lines(one))


def _state(delivery: Delivery) -> str:
    since = f"{delivery.type} since {moment(delivery.since or '-')}" if delivery.type else "no event yet"
    lines = [wrapped(delivery.summary)]
    lines += [f"  {delivery.command}"] if delivery.command else []
    end = "final" if delivery.final else "not final"
    lines.append(wrapped(f"delivery {delivery.delivery_id}: {since}, {end}", "  ", ""))
    return "\n".join(lines)


def _lines(found: Explanation) -> Iterator[str]:
    yield f"{found.event_id}: {found.state}"
    yield wrapped(found.sentence)
    if found.state == "unknown":
        return
    yield ""
    yield _fact("type", found.type or "-")
    if found.bounce:
        yield _fact("bounce", found.bounce)
    if found.reject_reason:
        yield _fact("reason", found.reject_reason)
    if found.smtp_status:
        yield _fact("SMTP", found.smtp_status)
    yield _fact("tenant", found.tenant_id or "-")
    yield _fact("provider", found.provider or "none that can be used")
    if hint := providers.mistyped(found.provider or ""):
        yield _fact("", hint)
    yield _fact("arrived", moment(found.arrived_at or "-"))
    if found.delivery_id:
        yield _fact("delivery", found.delivery_id)
    if found.reconciled_by:
        yield _fact("linked" if found.linked_at else "settled", f"{_when(found)}by the event {found.reconciled_by}")
    if found.recipient_checked is False:
        yield _fact("recipient", NOT_CHECKED)
    if found.linked_by:
        yield _fact("by hand", f"{found.linked_by_actor or 'an unknown user'}: {found.reason or 'no reason'}")
    for run in found.linked_during:
        yield _fact("during", f"a {run['kind']} sweep (origin: {run['origin']}) of {moment(run['started_at'])}")
    yield from _reads(found)
    yield from _ids(found)
    yield from _outlook(found)


def _fact(name: str, text: str) -> str:
    return wrapped(text, " " * 11, f"{name:<11}")


def _when(found: Explanation) -> str:
    return f"{moment(found.linked_at)} " if found.linked_at else ""


def _reads(found: Explanation) -> Iterator[str]:
    if not found.rule:
        return
    yield ""
    yield wrapped(f"places read for an id (rule {found.rule}):")
    for read in found.reads:
        yield wrapped(f"{read['path']}: {read['holds'] or 'nothing'}", "  ")


def _ids(found: Explanation) -> Iterator[str]:
    if not found.tried:
        return
    yield ""
    yield "ids tried, in this order:"
    for one in found.tried:
        place = one["read_from"] or "several places, or as it was recorded"
        yield wrapped(one["id"], "  ")
        yield wrapped(f"from {place}; {_named(one['deliveries'])}", "    ")
        for named in found.named:
            if named["candidate_id"] == one["id"]:
                yield wrapped(f"delivery {named['delivery_id']}{_but(named)}", "    ")
                yield wrapped(_told_by(named), "      ")
                if named["command"]:
                    yield named["command"]


def _named(deliveries: int) -> str:
    return "names no delivery" if not deliveries else f"names {pluralize(deliveries, 'delivery', 'deliveries')}:"


def _but(named: dict[str, object]) -> str:
    """Return what keeps a delivery from being the event's, if anything does."""
    reasons = [] if named["own"] else [f"of tenant {named['tenant_id']}"]
    reasons += [] if named["fitting"] else [f"of provider {named['provider']}"]
    reasons += [] if named["addressed"] else ["to another recipient"]
    return f", {', '.join(reasons)}" if reasons else ""


def _told_by(named: dict[str, Any]) -> str:
    """Return what distinguishes a delivery from the others."""
    facts = (named["mailable"], named["state"], f"stored {moment(named['stored_at'])}" if named["stored_at"] else None)
    return ", ".join(filter(None, facts))


def _outlook(found: Explanation) -> Iterator[str]:
    if found.remedy or found.expires_at:
        yield ""
    if found.state in ("waiting", "expired") and found.verdict:
        yield _fact("verdict", f"a sweep now would find it {found.verdict}")
    if found.remedy:
        yield with_commands(found.remedy, " " * 11, f"{'to link':<11}")
    if found.refused:
        yield _fact(
            "refused", f"{pluralize(found.refused, 'time')} by the database; the sweep's log gives the SQLSTATE"
        )
    if found.state == "waiting":
        yield _fact("next look", f"by the first full sweep after {moment(found.eligible_at or '')}")
    elif found.state == "expired":
        yield _fact("next look", "never")
    elif found.expires_at:
        yield _fact("next look", f"by the next full sweep, and by each one until {moment(found.expires_at)}")
