"""The source of `/metrics`: totals of the history of runs, and a cheap snapshot of the current state."""

from __future__ import annotations

from dataclasses import dataclass

from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import CheckContext, Finding
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.store import outbox, runs
from mailglass_reconcile.store.database import Database

TIMEOUT_MS = 2_000


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """A snapshot of what the metrics report.

    Attributes:
        totals: The history of runs, added up by kind and status.
        history: What it says of sweeps.
        triggers: True if the triggers that store new orphans are enabled.
        outbox: The numbers of handler jobs that wait, fail and are dead.
        findings: The findings of the fast checks.
    """

    totals: list[runs.Total]
    history: RunHistory
    triggers: bool
    outbox: outbox.Facts
    findings: list[Finding]


def collect(database: Database) -> MetricsSnapshot:
    """Load the snapshot, by statements whose cost does not depend on the number of open orphans."""
    with database.reading(TIMEOUT_MS) as tx:
        context = CheckContext(tx)
        findings = checks.run_fast(context)
        return MetricsSnapshot(runs.sum_by_status(tx), context.history, context.has_triggers, context.outbox, findings)
