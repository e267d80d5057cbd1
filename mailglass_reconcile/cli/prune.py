"""The subcommand `prune`: what is old goes, and the table of open orphans is repaired."""

from __future__ import annotations

import json
import sys

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.rules.humanize import counted

EXAMPLES = """\b
Example:
  mailglass-reconcile prune --json | jq .expired
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(as_json: bool) -> None:
    """Delete what is older than its retention, and repair the table of open orphans from the ledger.

    If a step fails, it is one line on standard error, all other steps run, and the exit code is 1.
    """
    result = pruner.prune_with(runtime.database(), "command")
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        _print(result)
    sys.exit(1 if result.failures else 0)


def _print(result: pruner.PruneResult) -> None:
    click.echo(
        f"deleted raw webhooks: {result.succeeded:,} succeeded, {result.dead:,} dead, {result.failed:,} failed\n"
        f"open orphans: {result.expired:,} expired, {result.settled:,} settled, {result.added:,} added\n"
        f"deleted events of handlers: {result.hooks_dispatched:,} dispatched,"
        f" {result.hooks_dead:,} dead or never handled\n"
        f"deleted from the ledger: {counted(result.events, 'event')};"
        f" {counted(result.deliveries, 'delivery', 'deliveries')}"
    )
