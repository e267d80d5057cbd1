"""The subcommand `erase`: remove a person's address from our tables."""

from __future__ import annotations

from collections.abc import Iterator

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import argument, confirm, print_result, require_terminal, wrap_text
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import erasure
from mailglass_reconcile.record.erasure import Erased

EXAMPLES = """\b
Examples:
  mailglass-reconcile erase - --dry-run                   # then type the address
  mailglass-reconcile erase - --tenant acme --yes --json < address.txt | jq .not_reached
"""


@click.command(epilog=EXAMPLES)
@click.argument("address", metavar="ADDRESS|-")
@click.option("--tenant", metavar="ID", help="Erase it from this tenant's rows only.")
@click.option("--dry-run", is_flag=True, help="Count the rows without erasing anything.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def erase(address: str, tenant: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Erase a person: remove an address, in any spelling, from deliveries, open events and raw webhooks.

    Pass - to read the address from standard input: shells and process lists keep arguments.

    It counts the rows first, and asks. Events in the ledger are kept: they hold no address, unless your application
    stored one there. On tables that Mailglass made, addresses are removed from open events only.
    """
    try:
        target = erasure.validate_erasure(argument(address), tenant)
    except InvalidEventError as error:
        raise click.UsageError(str(error)) from None
    if not (yes or dry_run):
        require_terminal("pass --yes, or --dry-run to count the rows")
    database = runtime.database()
    if not (yes or dry_run):
        preview = erasure.erase_with(database, target, dry_run=True)
        confirm(f"erase the address from {preview.rows}? This cannot be undone")
    erased = erasure.erase_with(database, target, dry_run=dry_run)
    print_result(erased.as_dict(), "\n".join(_lines(erased, dry_run=dry_run)), as_json=as_json)


def _lines(erased: Erased, *, dry_run: bool) -> Iterator[str]:
    yield f"{'would erase' if dry_run else 'erased'} the address from {erased.rows}"
    for reason in erased.not_reached:
        yield wrap_text(reason, "  ", "not reached: ")
