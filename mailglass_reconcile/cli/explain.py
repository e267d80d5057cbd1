"""The subcommand `explain`: one event, and why it is linked or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.texts import moment, print_json, reader_may_leave, wrapped
from mailglass_reconcile.ops import explanation, messages
from mailglass_reconcile.ops.explained import Explanation
from mailglass_reconcile.rules.wording import counted, printable

EXAMPLES = """\b
Examples:
  mailglass-reconcile explain 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10
  mailglass-reconcile explain --message-id '<20261125.1@mail.example.com>'
  mailglass-reconcile explain --json 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10 | jq .remedy
"""


@click.command(epilog=EXAMPLES)
@click.argument("event_id", type=click.UUID, required=False)
@click.option("--message-id", metavar="ID", help="Instead: the events of this message, at most 40.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
def explain(event_id: UUID | None, message_id: str | None, as_json: bool) -> None:
    """Say why one event is linked or not, and what would have to be different."""
    if (event_id is None) == (message_id is None):
        raise click.UsageError("give an EVENT_ID, or --message-id")
    engine = runtime.get_engine()
    wanted = [event_id] if event_id else messages.events_of(engine, message_id or "")
    if not wanted:
        raise click.ClickException("no open orphan and no delivery has this message id")
    state = ""
    with reader_may_leave():
        for number, one in enumerate(wanted):
            found = explanation.explain(engine, one)
            state = found.state
            if as_json:
                print_json(found.as_dict())
            else:
                click.echo("\n" * (number > 0) + "\n".join(_lines(found)))
    sys.exit(1 if state == "unknown" else 0)


def _lines(found: Explanation) -> Iterator[str]:
    yield f"{found.event_id}: {found.state}"
    yield wrapped(found.sentence)
    if found.state == "unknown":
        return
    yield ""
    yield _fact("type", printable(found.type or "-"))
    yield _fact("tenant", printable(found.tenant_id or "-"))
    yield _fact("provider", printable(found.provider or "none that can be used"))
    yield _fact("arrived", moment(found.arrived_at or "-"))
    if found.delivery_id:
        yield _fact("delivery", found.delivery_id)
    if found.reconciled_by:
        yield _fact("linked" if found.linked_at else "settled", f"{_when(found)}by the event {found.reconciled_by}")
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
    yield f"places read for an id (rule {printable(found.rule)}):"
    for read in found.reads:
        yield f"  {printable(read['path'] or '')}: {read['holds'] or 'nothing'}"


def _ids(found: Explanation) -> Iterator[str]:
    if not found.tried:
        return
    yield ""
    yield "ids tried, in this order:"
    for one in found.tried:
        place = printable(one["read_from"] or "several places at once, or as its writer knew it")
        yield f"  {printable(one['id'])}"
        yield wrapped(f"from {place}; {_named(one['deliveries'])}", "    ")
        for named in found.named:
            if named["candidate_id"] == one["id"]:
                yield wrapped(f"delivery {named['delivery_id']}{_but(named)}", "    ")


def _named(deliveries: int) -> str:
    return "names no delivery" if not deliveries else f"names {counted(deliveries, 'delivery', 'deliveries')}:"


def _but(named: dict[str, object]) -> str:
    """Return what keeps a delivery from being the event's, if anything does."""
    reasons = [] if named["own"] else [f"of tenant {printable(str(named['tenant_id']))}"]
    reasons += [] if named["fitting"] else [f"of provider {printable(str(named['provider']))}"]
    reasons += [] if named["addressed"] else ["to another recipient"]
    return f", {', '.join(reasons)}" if reasons else ""


def _outlook(found: Explanation) -> Iterator[str]:
    if found.remedy or found.expires_at:
        yield ""
    if found.state in ("waiting", "expired") and found.verdict:
        yield _fact("verdict", f"a sweep that looked at it now would find it {found.verdict}")
    if found.remedy:
        yield _fact("to link", found.remedy)
    if found.refused:
        yield _fact("refused", f"{counted(found.refused, 'time')} by the database; the sweep's log gives the SQLSTATE")
    if found.state == "waiting":
        yield _fact("next look", f"by the first full sweep after {moment(found.eligible_at or '')}")
    elif found.state == "expired":
        yield _fact("next look", "never")
    elif found.expires_at:
        yield _fact("next look", f"by the next full sweep, and by each one until {moment(found.expires_at)}")
