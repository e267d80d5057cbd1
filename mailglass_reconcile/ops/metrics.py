"""The source of `/metrics`: totals of the history of runs, and a cheap snapshot of the current state."""

from __future__ import annotations

from dataclasses import dataclass

from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import CheckContext, Finding
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries.selection import NewerOrphans
from mailglass_reconcile.store.tables import handler_jobs, runs

TIMEOUT_MS = 2_000


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """A snapshot of what the metrics report.

    Attributes:
        totals: The history of runs, added up by kind and status.
        history: What it says of sweeps.
        newer: What has arrived after the window of the full sweep that counted last.
        lag_seconds: Seconds for which the oldest open orphan could have been linked; 0 without one.
        triggers: True if the triggers that store new orphans are enabled.
        outbox: The numbers of handler jobs that wait, fail and are dead.
        findings: The findings of the fast checks.
    """

    totals: list[runs.Total]
    history: RunHistory
    newer: NewerOrphans
    lag_seconds: float
    triggers: bool
    outbox: handler_jobs.Facts
    findings: list[Finding]


def collect(database: Database) -> MetricsSnapshot:
    """Load the snapshot, by statements whose cost does not depend on the number of open orphans."""
    with database.reading(TIMEOUT_MS) as tx:
        context = CheckContext(tx)
        findings = checks.run_fast(context)
        return MetricsSnapshot(
            totals=runs.sum_by_status(tx),
            history=context.history,
            newer=context.newer,
            lag_seconds=context.lag_seconds,
            triggers=context.has_triggers,
            outbox=context.outbox,
            findings=findings,
        )
