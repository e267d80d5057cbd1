"""The subcommand `prune`: what is old goes, and the table of open orphans is repaired."""

from __future__ import annotations

import sys

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import console, print_json, table
from mailglass_reconcile.ops import prune_preview, pruner
from mailglass_reconcile.ops.prune_preview import Preview
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.times import format_time

EXAMPLES = """\b
Examples:
  mailglass-reconcile prune --dry-run
  mailglass-reconcile prune --json | jq .expired
"""

STEPS = {
    "succeeded": "succeeded raw webhooks",
    "dead": "dead raw webhooks",
    "failed": "failed raw webhooks",
    "jobs_done": "jobs of handlers that are done",
    "jobs_dead": "dead jobs of handlers",
    "expired": "expired open orphans",
    "settled": "open orphans that are settled",
    "added": "open orphans to add",
    "events": "events",
    "deliveries": "deliveries",
}
"""The steps of a dry run, for a person."""


@click.command(epilog=EXAMPLES)
@click.option("--dry-run", is_flag=True, help="Count the rows of each step, and show the oldest; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --dry-run, one per step.")
def prune(dry_run: bool, as_json: bool) -> None:
    """Delete what is older than its retention, and repair the table of open orphans from the ledger.

    If a step fails, it is one line on standard error, all other steps run, and the exit code is 1.
    """
    if dry_run:
        _preview(as_json)
        return
    result = pruner.prune_with(runtime.database(), "command")
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)
    sys.exit(1 if result.failures else 0)


def _preview(as_json: bool) -> None:
    found = prune_preview.preview(runtime.database())
    if as_json:
        for one in found:
            print_json(one.as_dict())
        return
    console().print(table(("step", "rows", "oldest"), map(_row, found)))
    if any(one.at_most for one in found):
        click.echo("at most: events and deliveries stay as long as something newer needs them")


def _row(one: Preview) -> tuple[str, str, str]:
    kept = one.days is None and one.step not in ("expired", "settled", "added")
    rows = "kept" if kept else f"{'at most ' if one.at_most else ''}{one.rows:,}"
    return STEPS[one.step], rows, format_time(one.oldest) if one.oldest else "-"


def _print(result: pruner.PruneResult) -> None:
    click.echo(
        f"deleted raw webhooks: {result.succeeded:,} succeeded, {result.dead:,} dead, {result.failed:,} failed\n"
        f"open orphans: {result.expired:,} expired, {result.settled:,} settled, {result.added:,} added\n"
        f"deleted jobs of handlers: {result.jobs_done:,} done, {result.jobs_dead:,} dead\n"
        f"deleted from the ledger: {pluralize(result.events, 'event')};"
        f" {pluralize(result.deliveries, 'delivery', 'deliveries')}"
    )
