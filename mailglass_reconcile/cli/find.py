"""The subcommand `find`: from an address, a message or an id to deliveries, open events and the next command."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import (
    argument,
    format_as_of,
    ignore_broken_pipe,
    print_json,
    warn_of_unknown_tenant,
    wrap_text,
)
from mailglass_reconcile.errors import format_command
from mailglass_reconcile.ops import search
from mailglass_reconcile.ops.deliveries import DeliverySummary
from mailglass_reconcile.ops.search import SearchResults, SearchTerm
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.times import format_time
from mailglass_reconcile.store.queries.orphan_lists import ListedEvent

EXAMPLES = """\b
Examples:
  mailglass-reconcile find -                      # then type the address
  mailglass-reconcile find m-2 --tenant acme
  mailglass-reconcile find - --json < address.txt | jq -r .id
"""

MAX_LIMIT = 10_000


@click.command(epilog=EXAMPLES)
@click.argument("term_text", metavar="WHAT|-")
@click.option("--tenant", metavar="ID", help="Search this tenant only.")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LIMIT),
    default=20,
    show_default=True,
    metavar="N",
    help="Print at most N deliveries and events.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per delivery or event.")
def find(term_text: str, tenant: str | None, limit: int, as_json: bool) -> None:
    """Find the deliveries and open events of an address, a message or an id, each with its next command.

    WHAT is an address, a message id, or the id of an event or a delivery, in any spelling. With - it is read from
    standard input, because shells and process lists keep arguments. No address is printed. Exits with 1 if nothing is
    found.
    """
    try:
        term = search.parse_term(argument(term_text), tenant)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    database = runtime.database()
    results = search.find(database, term, limit=limit)
    with ignore_broken_pipe():
        if as_json:
            for hit in results.hits:
                print_json(hit.as_dict())
        else:
            click.echo("\n".join(_lines(results)) if results.hits else _format_no_results(term))
    if not results.hits:
        if tenant is not None:
            warn_of_unknown_tenant(database, tenant)
        sys.exit(1)
    if not as_json and any(hit.kind == "event" for hit in results.hits):
        click.echo(wrap_text(format_as_of(results.as_of)), err=True)
    if results.more:
        more = f": --limit {min(10 * limit, MAX_LIMIT)} shows more" if limit < MAX_LIMIT else ""
        click.echo(f"only the newest {len(results.hits):,} are shown{more}", err=True)


def _lines(results: SearchResults) -> Iterator[str]:
    least = "at least " if results.at_least else ""
    deliveries = pluralize(results.deliveries, "delivery", "deliveries")
    yield f"{least}{deliveries} and {pluralize(results.events, 'event')}, newest first"
    for hit in results.hits:
        yield ""
        yield from _delivery(hit.row) if isinstance(hit.row, DeliverySummary) else _event(hit.row)
        yield f"  {format_command(f'mailglass-reconcile explain {hit.id}')}"


def _delivery(delivery: DeliverySummary) -> Iterator[str]:
    yield wrap_text(delivery.summary, "  ", "delivery: ")
    facts = [f"tenant {delivery.tenant_id}", f"provider {delivery.provider or '-'}"]
    facts += [delivery.mailable] if delivery.mailable else []
    yield wrap_text(f"{', '.join(facts)}, stored {format_time(delivery.stored_at)}", "  ")


def _event(orphan: ListedEvent) -> Iterator[str]:
    yield wrap_text(orphan.summary, "  ", "event: ")
    facts = f"tenant {orphan.tenant_id}, provider {orphan.provider or '-'}, arrived {format_time(orphan.arrived_at)}"
    expires = f"; expires {format_time(orphan.expires_at)}" if orphan.expires_at else ""
    yield wrap_text(f"{facts}{expires}", "  ")


def _format_no_results(term: SearchTerm) -> str:
    scope = "" if term.tenant_id is None else " of this tenant"
    if not term.address:
        return f"no delivery and no open event{scope} has this id"
    lines = [
        wrap_text(
            f"no delivery and no open event{scope} has this address. If your application sent the message, its send"
            " was not recorded: see `record_send`. If the provider's log shows the message, look for its message id"
            " there:"
        ),
        f"  {format_command('mailglass-reconcile find MESSAGE_ID')}",
    ]
    return "\n".join(lines)
