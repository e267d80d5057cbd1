"""The subcommand `orphans`: a page of them."""

from __future__ import annotations

from typing import Any

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.texts import Duration, moment, print_json, reader_may_leave, wrapped
from mailglass_reconcile.ops import orphans as pages
from mailglass_reconcile.ops.orphans import EXPIRED, Filters, Listed
from mailglass_reconcile.rules import event_types, providers
from mailglass_reconcile.rules.humanize import age
from mailglass_reconcile.rules.states import OPEN_STATES

EXAMPLES = """\b
Examples:
  mailglass-reconcile orphans --state ambiguous --tenant acme
  mailglass-reconcile orphans --older 2h --newest-first --limit 10
  mailglass-reconcile orphans --expired --json | jq -r .event_id
"""


@click.command(epilog=EXAMPLES)
@click.option("--state", type=click.Choice(OPEN_STATES), help="Only those in this state.")
@click.option("--tenant", "tenant_id", metavar="ID", help="Only those of this tenant.")
@click.option("--provider", metavar="NAME", help="Only those of this provider, in any spelling.")
@click.option("--type", metavar="TYPE", help="Only those of this type, such as bounced.")
@click.option("--older", type=Duration(), metavar="AGE", help="Only those at least this old: 90s, 5m, 2h, 6d.")
@click.option("--newer", type=Duration(), metavar="AGE", help="Only those at most this old.")
@click.option("--message-id", metavar="ID", help="Only those with this message id, in any spelling.")
@click.option("--expired", is_flag=True, help="Those that are older than the maximum age, from the ledger.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="At most N.")
@click.option("--after", type=click.UUID, metavar="EVENT_ID", help="Those after this event: the next page.")
@click.option("--newest-first", is_flag=True, help="Instead of the oldest first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per orphan.")
def orphans(expired: bool, limit: int, after: Any, newest_first: bool, as_json: bool, **filters: Any) -> None:
    """List open orphans, with the state in which the last sweep that looked at it left each.

    Standard error says when the last full sweep ended and, if there are more, how to get the next page.
    """
    if expired and filters["state"] not in (None, EXPIRED):
        raise click.UsageError("--expired and --state cannot be combined")
    wanted = Filters(**{**filters, "state": EXPIRED if expired else filters["state"]})
    if newest_first and wanted.state == EXPIRED:
        raise click.UsageError("expired orphans come by tenant and time: leave out --newest-first")
    begin = None if after is None else str(after)
    try:
        found = pages.page(runtime.database(), wanted, limit=limit, after=begin, newest_first=newest_first)
    except LookupError as error:
        raise click.BadParameter(f"{error}", param_hint="--after") from None
    for hint in (event_types.mistyped(wanted.type or ""), providers.mistyped(wanted.provider or "")):
        if hint:
            click.echo(hint, err=True)
    with reader_may_leave():
        for one in found.orphans:
            print_json(one.as_dict()) if as_json else click.echo(_lines(one))
        if not (found.orphans or as_json):
            click.echo(f"none among the {found.looked_at:,} looked at" if found.after else "none")
    if found.orphans and wanted.state != EXPIRED and not as_json:
        click.echo(_as_of(found.as_of), err=True)
    if found.after:
        click.echo(f"there may be more: --after {found.after}", err=True)


def _as_of(ended: str | None) -> str:
    if ended is None:
        return "no full sweep has ended yet"
    return f"states as of {moment(ended)}, when the last full sweep ended"


def _lines(one: Listed) -> str:
    state: str = one.state
    if state == EXPIRED:
        state = f"older than {age(60 * runtime.get_settings().max_age_minutes)}, unlikely to reconcile"
    facts = [f"tenant {one.tenant_id}", f"provider {one.provider or '-'}", f"type {one.type or '-'}"]
    facts += [f"to {one.delivery_id}"] if one.delivery_id else []
    lines = [
        f"{one.event_id}  {state}",
        wrapped(f"arrived {moment(one.arrived_at)}; {', '.join(facts)}", "  "),
        wrapped(f"ids: {'  '.join(one.candidate_ids[:3]) or 'none'}{_more(one)}", "  "),
    ]
    return "\n".join(lines)


def _more(one: Listed) -> str:
    left = len(one.candidate_ids) - 3
    return f"  and {left} more" if left > 0 else ""
