"""The subcommand `explain`: one event, and why it is linked or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import ignore_broken_pipe, print_json, wrap_text, wrap_with_commands
from mailglass_reconcile.ops import explanation
from mailglass_reconcile.ops.deliveries import DeliverySummary
from mailglass_reconcile.ops.explanation import CandidateDelivery, Explanation, Fact
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.times import format_time

EXAMPLES = """\b
Examples:
  mailglass-reconcile explain --message-id '<20261125.1@mail.example.com>'
  mailglass-reconcile explain --json 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10 | jq -r '.remedy[]'
"""

NO_EVENT = "no event is linked to it, and no open event has its message id"


@click.command(epilog=EXAMPLES)
@click.argument("id_", metavar="[EVENT_ID | DELIVERY_ID]", type=click.UUID, required=False)
@click.option("--message-id", metavar="ID", help="Explain all events of this message instead (at most 40).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
def explain(id_: UUID | None, message_id: str | None, as_json: bool) -> None:
    """Show why one event is linked or not, and what must change.

    For a delivery or a message, the latest events are explained first, then the open events that name the message.
    """
    if (id_ is None) == (message_id is None):
        raise click.UsageError("pass an EVENT_ID, a DELIVERY_ID or --message-id")
    database = runtime.database()
    if id_:
        events, summary = explanation.explain_id(database, id_)
    else:
        events, summary = explanation.explain_message(database, message_id or "")
        if not events and not summary:
            raise click.ClickException("no open event and no delivery has this message id")
    with ignore_broken_pipe():
        if as_json:
            _print_json(events, summary)
        else:
            click.echo("\n\n".join(_parts(events, summary)))
    sys.exit(1 if [event.state for event in events] == ["unknown"] else 0)


def _print_json(events: Sequence[Explanation], deliveries: Sequence[DeliverySummary]) -> None:
    by_id = {delivery.delivery_id: delivery.as_dict() for delivery in deliveries}
    for delivery in [] if events else deliveries:
        no_event = Explanation("", "unknown", NO_EVENT, delivery.tenant_id, delivery.delivery_id)
        print_json({**asdict(no_event), "event_id": None, "state": None, "delivery": by_id[delivery.delivery_id]})
    for event in events:
        print_json({**asdict(event), "delivery": by_id.get(event.delivery_id or "")})


def _parts(explanations: Sequence[Explanation], deliveries: Sequence[DeliverySummary]) -> Iterator[str]:
    if deliveries:
        yield "\n".join(map(_state, deliveries))
    if not explanations:
        yield NO_EVENT
    for explained in explanations:
        yield "\n".join(_lines(explained))


def _state(delivery: DeliverySummary) -> str:
    since = f"{delivery.type} since {format_time(delivery.since)}" if delivery.type else "no event yet"
    lines = [wrap_text(delivery.summary)]
    lines += [f"  {delivery.command}"] if delivery.command else []
    end = "final" if delivery.final else "not final"
    lines.append(wrap_text(f"delivery {delivery.delivery_id}: {since}, {end}", "  ", ""))
    return "\n".join(lines)


def _lines(event: Explanation) -> Iterator[str]:
    yield f"{event.event_id}: {event.state}"
    yield wrap_text(event.sentence)
    if event.state == "unknown":
        return
    yield ""
    yield from map(_fact, explanation.facts(event))
    yield from _reads(event)
    yield from _ids(event)
    if event.remedy or event.expires_at:
        yield ""
    yield from map(_fact, explanation.outlook(event))


def _fact(fact: Fact) -> str:
    wrap = wrap_with_commands if fact.is_remedy else wrap_text
    return wrap(fact.plain_text, " " * 11, f"{fact.name:<11}")


def _reads(event: Explanation) -> Iterator[str]:
    if not event.rule:
        return
    yield ""
    yield wrap_text(f"fields searched for a message id (rule {event.rule}):")
    for field in event.reads:
        yield wrap_text(f"{field.path}: {field.holds or 'nothing'}", "  ")


def _ids(event: Explanation) -> Iterator[str]:
    if not event.tried:
        return
    yield ""
    yield "ids tried, in this order:"
    for candidate in event.tried:
        source = candidate.read_from or "several fields, or as it was recorded"
        yield wrap_text(candidate.id, "  ")
        yield wrap_text(f"from {source}; {_deliveries(candidate.deliveries)}", "    ")
        for delivery in event.candidates:
            if delivery.candidate_id == candidate.id:
                yield wrap_text(f"delivery {delivery.delivery_id}{_differences(delivery)}", "    ")
                yield wrap_text(_description(delivery), "      ")
                if delivery.command:
                    yield delivery.command


def _deliveries(number: int) -> str:
    return "names no delivery" if not number else f"names {pluralize(number, 'delivery', 'deliveries')}:"


def _differences(delivery: CandidateDelivery) -> str:
    """Return the differences between a delivery and the event; empty if there are none."""
    reasons = [] if delivery.same_tenant else [f"of tenant {delivery.tenant_id}"]
    reasons += [] if delivery.same_provider else [f"of provider {delivery.provider}"]
    reasons += [] if delivery.same_recipient else ["to another recipient"]
    return f", {', '.join(reasons)}" if reasons else ""


def _description(delivery: CandidateDelivery) -> str:
    """Return the fields that distinguish a delivery from the others."""
    facts = (
        delivery.mailable,
        delivery.state,
        f"stored {format_time(delivery.stored_at)}" if delivery.stored_at else None,
    )
    return ", ".join(filter(None, facts))
