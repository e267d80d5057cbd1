"""The subcommand `prune`: delete old rows, and repair the table of open orphans."""

from __future__ import annotations

import sys

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import console, print_json, print_result, table
from mailglass_reconcile.ops import prune_preview, pruner
from mailglass_reconcile.ops.prune_preview import Preview
from mailglass_reconcile.rules.humanize import escape_unprintable, pluralize
from mailglass_reconcile.rules.times import format_time

EXAMPLES = """\b
Examples:
  mailglass-reconcile prune --json | jq .expired
"""

STEPS = {
    "succeeded": "succeeded raw webhooks",
    "dead": "dead raw webhooks",
    "failed": "failed raw webhooks",
    "jobs_done": "jobs of handlers that are done",
    "jobs_dead": "dead jobs of handlers",
    "expired": "expired open events",
    "settled": "open events that are settled",
    "added": "open events to add",
    "events": "events",
    "deliveries": "deliveries",
}
"""The steps of a dry run in words."""


@click.command(epilog=EXAMPLES)
@click.option(
    "--dry-run", is_flag=True, help="Count the rows of each step and show the oldest, without deleting anything."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, or with --dry-run one per step.")
def prune(dry_run: bool, as_json: bool) -> None:
    """Delete what is older than its retention, and repair the table of open events.

    If a step fails, the others still run, and the exit code is 1.
    """
    if dry_run:
        _preview(as_json)
        return
    result = pruner.prune_with(runtime.database(), "command")
    print_result(result.as_dict(), _summary(result), as_json=as_json)
    sys.exit(1 if result.failures else 0)


def _preview(as_json: bool) -> None:
    previews = prune_preview.preview(runtime.database())
    if as_json:
        for preview in previews:
            print_json(preview)
        return
    console().print(table(("step", "rows", "oldest"), map(_row, previews)))
    if any(preview.at_most for preview in previews):
        click.echo("at most: events and deliveries stay as long as something newer needs them")
    for preview in previews:
        if preview.refused:
            click.echo(escape_unprintable(f"prune: step {preview.step} would fail: {preview.refused}"), err=True)


def _row(preview: Preview) -> tuple[str, str, str]:
    rows = "kept" if preview.is_kept else f"{'at most ' if preview.at_most else ''}{preview.rows:,}"
    return STEPS[preview.step], rows, format_time(preview.oldest) if preview.oldest else "-"


def _summary(result: pruner.PruneResult) -> str:
    return (
        f"deleted raw webhooks: {result.succeeded:,} succeeded, {result.dead:,} dead, {result.failed:,} failed\n"
        f"open events: {result.expired:,} expired, {result.settled:,} settled, {result.added:,} added\n"
        f"deleted jobs of handlers: {result.jobs_done:,} done, {result.jobs_dead:,} dead\n"
        f"deleted from the ledger: {pluralize(result.events, 'event')};"
        f" {pluralize(result.deliveries, 'delivery', 'deliveries')}"
    )
