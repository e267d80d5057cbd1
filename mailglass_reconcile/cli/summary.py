"""What a sweep says while it runs and when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mailglass_reconcile.rules.states import MEANINGS, Outcome, Skipped
from mailglass_reconcile.rules.wording import counted, shown, took
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult, remaining

WHY_OPEN: tuple[Outcome | Skipped, ...] = (
    "unmatched",
    "unmatchable",
    "ambiguous",
    "tenant_mismatch",
    "recipient_mismatch",
    "skipped_deadline",
    "skipped_held",
    "failed",
)


def summary(result: SweepResult) -> str:
    """Return what a sweep did, and why the rest stays open, in lines for a person."""
    verb = "would link" if result.dry_run else "linked"
    whose = "" if result.tenant_id is None else f" of tenant '{shown(result.tenant_id)}'"
    scanned = counted(result.scanned, "open orphan")
    lines = [f"{verb} {result.linked:,} of {scanned}{whose} in {took(result.duration_ms)}"]
    lines += [
        f"{getattr(result, state):>10,} {state.replace('_', ' ')}: {MEANINGS[state].sentence}"
        for state in WHY_OPEN
        if getattr(result, state)
    ]
    if result.skipped_limit:
        lines.append(f"{counted(result.skipped_limit, 'more', 'more')} can be linked: sweep again, or without --limit")
    if result.publish_failed:
        messages = counted(result.published + result.publish_failed, "broadcast")
        lines.append(f"{result.publish_failed:,} of {messages} not sent: check MAILGLASS_REDIS_URL")
    if result.status != "ok":
        lines.append(f"this sweep is {result.status}: {remaining(result.remaining)}")
    return "\n".join(lines)


def nothing_to_do(waiting: int, grace_seconds: int, tenant_id: str | None) -> str:
    """Return why a sweep found nothing to look at.

    Args:
        waiting: Open orphans in their grace period.
        grace_seconds: How long that is.
        tenant_id: The tenant that was swept, or None for all.
    """
    whose = "" if tenant_id is None else f" of tenant '{shown(tenant_id)}'"
    if not waiting:
        return f"nothing to do: there are no open orphans{whose}"
    those = counted(waiting, f"orphan{whose} is in its", f"orphans{whose} are in their")
    return f"nothing to do yet: {those} {grace_seconds:,} s grace period"


@contextmanager
def progress(*, wanted: bool) -> Iterator[Callable[[Sweep], None]]:
    """Show a bar on standard error where a person waits, and nothing elsewhere."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda sweep: None
        return
    columns = TextColumn("linking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("sweep", total=None)
        yield lambda sweep: bar.update(task, total=sweep.eligible, completed=sweep.result.linked)
