"""The subcommand `find`: from an address, a message or an id to deliveries, open orphans and the next command."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import (
    argument,
    as_of,
    hint_at_tenant,
    moment,
    print_json,
    reader_may_leave,
    wrapped,
)
from mailglass_reconcile.errors import format_command
from mailglass_reconcile.ops import search
from mailglass_reconcile.ops.deliveries import Delivery
from mailglass_reconcile.ops.orphans import OpenOrphan
from mailglass_reconcile.ops.search import SearchResults, SearchTerm
from mailglass_reconcile.rules.humanize import pluralize

EXAMPLES = """\b
Examples:
  mailglass-reconcile find -                      # then type or paste the address: no shell keeps it
  mailglass-reconcile find m-2 --tenant acme
  mailglass-reconcile find - --json < address.txt | jq -r .id
"""


@click.command(epilog=EXAMPLES)
@click.argument("what", metavar="WHAT|-")
@click.option("--tenant", metavar="ID", help="Only in this tenant.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help="At most N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per delivery or event.")
def find(what: str, tenant: str | None, limit: int, as_json: bool) -> None:
    """Find the deliveries and open orphans of an address, a message or an id, each with its next command.

    WHAT is an address, a message id, or the id of an event or a delivery. With - it is read from standard input,
    because shells and process lists keep arguments. Nothing that is printed holds an address. The newest come first.

    An address is found in any spelling. Exits with 1 if nothing is found.
    """
    try:
        wanted = search.parse_term(argument(what), tenant)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    database = runtime.database()
    found = search.find(database, wanted, limit=limit)
    with reader_may_leave():
        if as_json:
            for one in found.hits:
                print_json(one.as_dict())
        else:
            click.echo("\n".join(_lines(found)) if found.hits else _nothing(wanted))
    if not found.hits:
        if tenant is not None:
            hint_at_tenant(database, tenant)
        sys.exit(1)
    if not as_json and any(one.kind == "event" for one in found.hits):
        click.echo(wrapped(as_of(found.as_of)), err=True)
    if found.more:
        click.echo(f"only the newest {len(found.hits):,} are shown: --limit {10 * limit:,} shows more", err=True)


def _lines(found: SearchResults) -> Iterator[str]:
    least = "at least " if found.at_least else ""
    deliveries = pluralize(found.deliveries, "delivery", "deliveries")
    yield f"{least}{deliveries} and {pluralize(found.events, 'event')}, newest first"
    for one in found.hits:
        yield ""
        yield from _delivery(one.record) if isinstance(one.record, Delivery) else _event(one.record)
        yield f"  {format_command(f'mailglass-reconcile explain {one.id}')}"


def _delivery(one: Delivery) -> Iterator[str]:
    yield wrapped(one.summary, "  ", "delivery: ")
    facts = [f"tenant {one.tenant_id}", f"provider {one.provider or '-'}"]
    facts += [one.mailable] if one.mailable else []
    yield wrapped(f"{', '.join(facts)}, stored {moment(one.stored_at)}", "  ")


def _event(one: OpenOrphan) -> Iterator[str]:
    yield wrapped(f"{one.type or '-'}, {one.state}", "  ", "event: ")
    expires = f"; too old {moment(one.expires_at)}" if one.expires_at else ""
    yield wrapped(
        f"tenant {one.tenant_id}, provider {one.provider or '-'}, arrived {moment(one.arrived_at)}{expires}", "  "
    )


def _nothing(wanted: SearchTerm) -> str:
    whose = "" if wanted.tenant_id is None else " of this tenant"
    if not wanted.address:
        return f"no delivery and no open orphan{whose} has this id"
    lines = [
        wrapped(
            f"no delivery and no open orphan{whose} has this address. If your application sent the message, its send"
            " was not recorded: see `record_send`. If the provider's log shows the message, look for its message id"
            " there:"
        ),
        f"  {format_command('mailglass-reconcile find MESSAGE_ID')}",
    ]
    return "\n".join(lines)
