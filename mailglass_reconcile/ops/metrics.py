"""The source of `/metrics`: totals of the history of runs, and a cheap snapshot of the current state."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import CheckContext, Finding
from mailglass_reconcile.ops.runs import count_by_state
from mailglass_reconcile.store import outbox, runs
from mailglass_reconcile.store.database import Database

TIMEOUT_MS = 2_000


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """A snapshot of what the metrics report; times are seconds since 1970.

    Attributes:
        totals: The history of runs, added up by kind and status.
        last_success: When a run of each kind last ended well; of full sweeps, one over all tenants.
        counted_at: When a full sweep last counted the open orphans, or None.
        states: Eligible open orphans at that time, by state.
        linkable_since: Since when an orphan has been open although its delivery exists, or None.
        triggers: True if the triggers that store new orphans are enabled.
        outbox: The numbers of handler jobs that wait, fail and are dead.
        findings: The findings of the fast checks.
    """

    totals: list[runs.Total]
    last_success: dict[str, float]
    counted_at: float | None
    states: dict[str, int]
    linkable_since: float | None
    triggers: bool
    outbox: outbox.Facts
    findings: list[Finding]


def collect(database: Database) -> MetricsSnapshot:
    """Load the snapshot, by statements whose cost does not depend on the number of open orphans."""
    with database.reading(TIMEOUT_MS) as tx:
        context = CheckContext(tx)
        past, totals, findings = context.history, runs.sum_by_status(tx), checks.run_fast(context)
        waiting, triggers = context.outbox, context.has_triggers
    now = _epoch(past.now)
    last_success = {kind: _epoch(time) for kind, time in past.last_success.items() if kind != "full"}
    if past.success_age is not None:
        last_success["full"] = now - past.success_age
    return MetricsSnapshot(
        totals,
        last_success,
        None if past.counted_at is None else _epoch(past.counted_at),
        dict(count_by_state(past.groups or [])),
        now - past.lag_seconds if past.lag_seconds else None,
        triggers,
        waiting,
        findings,
    )


def _epoch(time: str) -> float:
    """Return a time in seconds since 1970."""
    return dt.datetime.fromisoformat(time).timestamp()
