"""The subcommands that do the work: `sweep`, `prune`, `demo`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import handling
from mailglass_reconcile.cli.texts import reader_may_leave
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.ops import rekey as rekeying
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.result import SweepResult

REASONS = {
    "unmatched": "no delivery has any of their ids yet",
    "unmatchable": "no usable id",
    "ambiguous": "several deliveries, and no way to choose",
    "tenant_mismatch": "their id names only another tenant's delivery; perhaps Mailglass lacks resolve_webhook_tenant",
    "recipient_mismatch": "their id names only another recipient's delivery",
    "skipped_limit": "they match, but the limit was reached",
    "skipped_deadline": "the sweep ended before it could look at them or link them",
    "skipped_held": "another session holds them or has settled them",
    "failed": "the database refused to read or link them",
}


SWEEP_EXAMPLES = """\b
Examples:
  mailglass-reconcile sweep --dry-run --verbose
  mailglass-reconcile sweep --tenant acme --limit 10
  mailglass-reconcile sweep --json | jq .remaining
"""

PRUNE_EXAMPLES = """\b
Example:
  mailglass-reconcile prune --json | jq .expired
"""


@click.command(epilog=SWEEP_EXAMPLES)
@click.option("--tenant", metavar="ID", help="Sweep this tenant's orphans only.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Link at most N orphans.")
@click.option("--dry-run", is_flag=True, help="Say what would be linked and why the rest would not; write nothing.")
@click.option("--verbose", is_flag=True, help="With --dry-run: list each event and the delivery it would get.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; with --verbose, a line before it per link."
)
def sweep(tenant: str | None, limit: int | None, dry_run: bool, verbose: bool, as_json: bool) -> None:
    """Link every open orphan whose delivery is there."""
    if verbose and not dry_run:
        raise click.UsageError("--verbose goes with --dry-run")

    def show(pairs: Sequence[tuple[str, str]]) -> None:
        with reader_may_leave():
            for event_id, delivery_id in pairs:
                line = json.dumps({"event_id": event_id, "delivery_id": delivery_id})
                click.echo(line if as_json else f"{event_id} -> {delivery_id}")

    with _progress(wanted=not (as_json or verbose)) as progress:
        would_link = show if verbose else None
        prepared = reconciler.prepare(
            tenant, limit, dry_run=dry_run, progress=progress, would_link=would_link, origin="command"
        )
        result = prepared.run(runtime.get_engine())
    click.echo(json.dumps(result.as_dict()) if as_json else _summary(result))
    if result.linked and not dry_run:
        handling.ask()
    sys.exit(0 if result.status == "ok" else 1)


@click.command(epilog=PRUNE_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(as_json: bool) -> None:
    """Delete old raw webhooks, and repair the table of open orphans from the ledger."""
    result = pruner.prune_with(runtime.get_engine(), runtime.get_settings(), "command")
    if as_json:
        click.echo(json.dumps(result.as_dict()))
        return
    click.echo(
        f"deleted raw webhooks: {result.succeeded} succeeded, {result.dead} dead, {result.failed} failed\n"
        f"open orphans: {result.expired} expired, {result.settled} settled, {result.added} added\n"
        f"deleted events of handlers: {result.hooks_dispatched} dispatched, {result.hooks_dead} dead or never handled"
    )


@click.command()
def rekey() -> None:
    """Compute the keys of all open orphans again, after a key rule was corrected.

    Rules of your own are loaded from the modules that MAILGLASS_IMPORTS names.
    """
    click.echo(f"computed the keys of {rekeying.rekey():,} open orphans")


@click.command()
def demo() -> None:
    """Watch orphans being linked on servers of its own; needs the extra `demo`."""
    from mailglass_reconcile import demo as demonstration  # noqa: PLC0415 - its servers are an extra

    sys.exit(demonstration.main())


def _summary(result: SweepResult) -> str:
    verb = "would link" if result.dry_run else "linked"
    whose = "" if result.tenant_id is None else f" of tenant {result.tenant_id!r}"
    lines = [f"{verb} {result.linked} of {result.scanned} open orphans{whose} in {result.duration_ms} ms"]
    lines += [
        f"{getattr(result, state):>8} {state.replace('_', ' ')}: {reason}"
        for state, reason in REASONS.items()
        if getattr(result, state)
    ]
    if result.publish_failed:
        lines.append(f"{result.publish_failed} of {result.published + result.publish_failed} broadcasts were lost")
    if result.status != "ok":
        lines.append(f"this sweep is {result.status}: {result.remaining} eligible orphans remain")
    return "\n".join(lines)


@contextmanager
def _progress(*, wanted: bool) -> Iterator[Callable[[SweepResult], None] | None]:
    """Show a bar on standard error where a person waits, and nothing elsewhere."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield None
        return
    columns = TextColumn("linking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("sweep", total=None)
        yield lambda result: bar.update(task, total=result.remaining, completed=result.linked)
