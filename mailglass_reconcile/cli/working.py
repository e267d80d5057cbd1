"""The subcommands `prune`, `rekey` and `demo`."""

from __future__ import annotations

import json
import sys

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.ops import rekey as rekeying
from mailglass_reconcile.rules.wording import counted

PRUNE_EXAMPLES = """\b
Example:
  mailglass-reconcile prune --json | jq .expired
"""


@click.command(epilog=PRUNE_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(as_json: bool) -> None:
    """Delete old raw webhooks, and repair the table of open orphans from the ledger."""
    result = pruner.prune_with(runtime.get_engine(), runtime.get_settings(), "command")
    if as_json:
        click.echo(json.dumps(result.as_dict()))
        return
    click.echo(
        f"deleted raw webhooks: {result.succeeded:,} succeeded, {result.dead:,} dead, {result.failed:,} failed\n"
        f"open orphans: {result.expired:,} expired, {result.settled:,} settled, {result.added:,} added\n"
        f"deleted events of handlers: {result.hooks_dispatched:,} dispatched,"
        f" {result.hooks_dead:,} dead or never handled"
    )


@click.command(epilog="Example: mailglass-reconcile rekey")
def rekey() -> None:
    """Compute the keys of all open orphans again, after a key rule was corrected.

    Rules of your own are loaded from the modules that MAILGLASS_IMPORTS names.
    """
    click.echo(f"computed the keys of {counted(rekeying.rekey(), 'open orphan')}")


@click.command(epilog="Example: mailglass-reconcile demo")
def demo() -> None:
    """Watch orphans being linked on servers of its own; needs the extra `demo`."""
    from mailglass_reconcile import demo as demonstration  # noqa: PLC0415 - its servers are an extra

    sys.exit(demonstration.main())
