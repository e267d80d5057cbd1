"""What a sweep says while it runs and when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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


def summary(result: SweepResult) -> str:
    """Return what a sweep did, and why the rest stays open, in lines for a person."""
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
def progress(*, wanted: bool) -> Iterator[Callable[[SweepResult], None] | None]:
    """Show a bar on standard error where a person waits, and nothing elsewhere."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield None
        return
    columns = TextColumn("linking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("sweep", total=None)
        yield lambda result: bar.update(task, total=result.remaining, completed=result.linked)
