"""The subcommand `status`."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.texts import printable
from mailglass_reconcile.ops import status as open_status


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> None:
    """Count open orphans by state, tenant and provider."""
    found = open_status.status(runtime.get_engine())
    if as_json:
        click.echo(json.dumps(found.as_dict()))
        return
    age = found.oldest_eligible_seconds
    click.echo(f"{found.open} open orphans" + ("" if age is None else f", the oldest eligible one {age} s old"))
    if found.expired:
        click.echo(f"{found.expired} were never linked and are older than the maximum age")
    if not found.triggers:
        click.echo("the triggers of the open set are missing or disabled: run `mailglass-reconcile migrate`")
    if found.groups:
        table = Table("state", "tenant", "provider", "orphans")
        for group in found.groups:
            cells = (group["state"], group["tenant_id"], group["provider"] or "-", str(group["orphans"]))
            table.add_row(*(Text(printable(cell)) for cell in cells))
        Console().print(table)
