"""The subcommand `orphans`: a page of open orphans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.completion import complete_provider, complete_type
from mailglass_reconcile.cli.output import argument, format_as_of, ignore_broken_pipe, print_result, wrap_text
from mailglass_reconcile.ops import orphans as pages
from mailglass_reconcile.ops.orphans import OrphanPage
from mailglass_reconcile.ops.unknown_tenants import describe_unknown
from mailglass_reconcile.rules import event_types, provider_rules
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.rules.humanize import escape_unprintable, format_duration, pluralize
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.rules.states import OPEN_STATES, short_label
from mailglass_reconcile.rules.times import format_time
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries.orphan_lists import EXPIRED, Cause, ListedEvent, ListFilter

EXAMPLES = """\b
Examples:
  mailglass-reconcile orphans --state ambiguous --tenant acme
  mailglass-reconcile orphans --recipient -       # then type the address
  mailglass-reconcile orphans --expired --json | jq -r .event_id
"""

SHOWN_CAUSES = 10
SHOWN_IDS = 3


@click.command(epilog=EXAMPLES)
@click.option("--state", type=click.Choice(OPEN_STATES), help="List events in this state only.")
@click.option("--tenant", "tenant_id", metavar="ID", help="List events of this tenant only.")
@click.option(
    "--provider",
    metavar="NAME",
    shell_complete=complete_provider,
    help="List events of this provider only, in any spelling.",
)
@click.option(
    "--type", metavar="TYPE", shell_complete=complete_type, help="List events of this type only, such as bounced."
)
@click.option("--message-id", metavar="ID", help="List events with this message id only, in any spelling.")
@click.option(
    "--recipient",
    metavar="ADDRESS|-",
    help="List events about this address only. Pass - to read it from standard input.",
)
@click.option(
    "--expired",
    is_flag=True,
    help="List events older than the maximum age, the oldest first, with what matches each one now.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Print at most N events.",
)
@click.option("--after", type=click.UUID, metavar="EVENT_ID", help="Start after this event, to get the next page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
def orphans(expired: bool, limit: int, after: Any, as_json: bool, **filters: Any) -> None:
    """List open events (stored before their delivery), the newest first, with their state at the last sweep.

    Standard error gets a summary: totals by cause, when they were counted, and the command for the next page. No
    recipient is shown.
    """
    if expired and filters["state"] not in (None, EXPIRED):
        raise click.UsageError("--expired and --state cannot be combined")
    selection = pages.make_filter(**{**_validate(filters), "state": EXPIRED if expired else filters["state"]})
    if selection.state == EXPIRED and selection.recipient:
        raise click.UsageError("the recipient of an expired event is no longer known: leave out --recipient")
    begin, database = None if after is None else str(after), runtime.database()
    counting = not (as_json or begin)
    try:
        page = pages.load_page(database, selection, limit=limit, after=begin, with_counts=counting)
    except LookupError as error:
        raise click.BadParameter(f"{error}", param_hint="--after") from None
    for line in _introduce(database, selection, page, as_json=as_json):
        click.echo(line, err=True)
    with ignore_broken_pipe():
        for orphan in page.orphans:
            print_result(orphan.as_dict(), _format_orphan(orphan), as_json=as_json)
        if not (page.orphans or as_json):
            click.echo(f"none among the {page.looked_at:,} checked" if page.after else "none")
    if page.after:
        click.echo(f"{'more' if page.orphans else 'there may be more'}: --after {page.after}", err=True)


def _validate(filters: dict[str, Any]) -> dict[str, Any]:
    """Return the filters with the recipient validated; no message repeats the address."""
    if filters["recipient"] is None:
        return filters
    recipient = argument(filters["recipient"])
    if not contains_address(recipient):
        raise click.UsageError("--recipient needs an e-mail address, such as ada@example.com")
    return {**filters, "recipient": recipient}


def _introduce(database: Database, selection: ListFilter, page: OrphanPage, *, as_json: bool) -> Iterator[str]:
    """Yield the lines before a list: names that may be mistyped, the number of orphans by cause, and as of when."""
    hints = [event_types.suggest_type(selection.type or ""), provider_rules.mistyped(selection.provider or "")]
    if selection.tenant_id is not None and not page.orphans:
        hints.append(describe_unknown(database, selection.tenant_id))
    yield from filter(None, hints)
    if not page.orphans or selection.state == EXPIRED or as_json:
        return
    number = "" if page.total is None else f"{_format_total(page.total, page.at_least)}; "
    yield wrap_text(f"{number}{format_as_of(page.as_of)}")
    for cause in page.causes[:SHOWN_CAUSES]:
        yield wrap_text(_format_cause(cause), "  ")
    if len(page.causes) > SHOWN_CAUSES:
        other_causes = page.causes[SHOWN_CAUSES:]
        yield f"  {sum(cause.number for cause in other_causes):,} of {pluralize(len(other_causes), 'other cause')}"


def _format_total(total: int, at_least: bool) -> str:
    return f"at least {total:,} orphans" if at_least else pluralize(total, "orphan")


def _format_cause(cause: Cause) -> str:
    tenant = cause.tenant_id or "(small tenants)"
    tenants = tenant if cause.other_tenant_id is None else f"{tenant} → {cause.other_tenant_id}"
    provider = f", {cause.provider}" if cause.provider else ""
    return f"{cause.number:,} {cause.state}: {escape_unprintable(tenants)}{provider}"


def _format_orphan(orphan: ListedEvent) -> str:
    state: str = orphan.state
    if orphan.verdict:
        outcome = "link it with sweep --event" if orphan.verdict == MATCHED else short_label(orphan.verdict)
        max_age = format_duration(60 * runtime.get_settings().max_age_minutes)
        state = f"expired (older than {max_age}); now {orphan.verdict}: {outcome}"
    facts = [f"tenant {orphan.tenant_id}", f"provider {orphan.provider or '-'}", f"type {orphan.type or '-'}"]
    facts += [f"to {orphan.delivery_id}"] if orphan.delivery_id else []
    expires = ""
    if orphan.expires_at and orphan.state != EXPIRED:
        expires = f", expires {format_time(orphan.expires_at)}"
    ids = "  ".join(orphan.candidate_ids[:SHOWN_IDS]) or "none"
    more = len(orphan.candidate_ids) - SHOWN_IDS
    lines = [
        wrap_text(state, "  ", f"{orphan.event_id}  "),
        wrap_text(f"arrived {format_time(orphan.arrived_at)}{expires}; {', '.join(facts)}", "  "),
        wrap_text(f"ids: {ids}{f'  and {more} more' if more > 0 else ''}", "  "),
    ]
    return "\n".join(lines)
