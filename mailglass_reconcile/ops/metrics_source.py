"""The source of `/metrics`: totals of the history of runs, and a cheap snapshot of the current state."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import CheckContext, Finding
from mailglass_reconcile.ops.runs import count_by_state
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.event_types import PROVIDER_TYPES
from mailglass_reconcile.store import outbox, runs
from mailglass_reconcile.store.database import Database, array_literal
from mailglass_reconcile.store.reports import Reports

TIMEOUT_MS = 2_000

OTHER_PROVIDERS, NO_PROVIDER = "other", "none"
"""Labels of providers that no rule knows, and of deliveries without one."""

SAMPLE = 200
"""Deliveries that are sampled: the last ones that are 10 to 70 minutes old."""

# Ids are UUIDv7, whose first 48 bits are the millisecond in UTC; `inserted_at` may be the local time of its session.
_LATELY = """
SELECT (SELECT extract(epoch FROM arrived_at)::float8 FROM {schema}.mailglass_open_orphans
         ORDER BY arrived_at DESC, event_id DESC LIMIT 1) AS last_orphan, s.deliveries, s.reported
  FROM (SELECT count(*) AS deliveries,
               count(*) FILTER (WHERE d.last_event_type = ANY (CAST(:reports AS text[]))) AS reported
          FROM (SELECT last_event_type
                  FROM {schema}.mailglass_deliveries,
                       (SELECT (extract(epoch FROM now()) * 1000)::bigint AS now_ms) AS clock
                 WHERE id >= (lpad(to_hex(now_ms - 4200000), 12, '0') || '00000000000000000000')::uuid
                   AND id < (lpad(to_hex(now_ms - 600000), 12, '0') || '00000000000000000000')::uuid
                 ORDER BY id DESC LIMIT :sample) AS d) AS s
"""

# A tenant's newest deliveries stand together in an index of Mailglass's; a hundred of each are read.
_UNLINKED_TENANTS = """
SELECT count(*)
  FROM unnest(CAST(:tenants AS text[])) AS t (tenant_id)
 WHERE NOT EXISTS (
         SELECT FROM (SELECT last_event_type, last_event_at FROM {schema}.mailglass_deliveries
                       WHERE tenant_id = t.tenant_id ORDER BY last_event_at DESC LIMIT 100) AS d
          WHERE d.last_event_type = ANY (CAST(:reports AS text[]))
            AND d.last_event_at > now()::timestamp - interval '24 hours')
"""


class RecentActivity(NamedTuple):
    """The arrival of the newest open orphan, and the numbers of recent deliveries and of those with a report."""

    last_orphan: float | None
    deliveries: int
    reported: int


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
        lately: The newest arrival, and the number of sampled deliveries with a report.
        without_report: Sampled deliveries without a report, by provider.
        unlinked_tenants: Tenants with open orphans of which no delivery has got a provider's event for 24 hours.
    """

    totals: list[runs.Total]
    last_success: dict[str, float]
    counted_at: float | None
    states: dict[str, int]
    linkable_since: float | None
    triggers: bool
    outbox: outbox.Facts
    findings: list[Finding]
    lately: RecentActivity
    without_report: dict[str, int]
    unlinked_tenants: int


def collect(database: Database) -> MetricsSnapshot:
    """Load the snapshot, by statements whose cost does not depend on the number of open orphans."""
    reports = array_literal(PROVIDER_TYPES)
    with database.reading(TIMEOUT_MS) as tx:
        context = CheckContext(tx)
        past, totals, findings = context.history, runs.sum_by_status(tx), checks.run_fast(context)
        waiting, without_report = context.outbox, count_by_label(context.reports)
        triggers = context.has_triggers
        groups = past.groups or []
        tenants = array_literal(sorted({group["tenant_id"] for group in groups if group["tenant_id"] is not None}))
        lately = RecentActivity(*tx.execute(_LATELY, {"reports": reports, "sample": SAMPLE}).one())
        unlinked = tx.execute(_UNLINKED_TENANTS, {"tenants": tenants, "reports": reports}).scalar_one()
    now = _epoch(past.now)
    last_success = {kind: _epoch(time) for kind, time in past.last_success.items() if kind != "full"}
    if past.success_age is not None:
        last_success["full"] = now - past.success_age
    return MetricsSnapshot(
        totals,
        last_success,
        None if past.counted_at is None else _epoch(past.counted_at),
        dict(count_by_state(groups)),
        now - past.lag_seconds if past.lag_seconds else None,
        triggers,
        waiting,
        findings,
        lately,
        without_report,
        unlinked,
    )


def count_by_label(reports: Sequence[Reports]) -> dict[str, int]:
    """Count deliveries without a report by provider; a provider without a rule is `other`, so that labels are few."""
    counts: Counter[str] = Counter({NO_PROVIDER: 0})
    for provider in reports:
        is_known = provider.provider in providers.rules()
        label = NO_PROVIDER if provider.provider is None else provider.provider if is_known else OTHER_PROVIDERS
        counts[label] += provider.without_report
    return dict(counts)


def _epoch(time: str) -> float:
    """Return a time in seconds since 1970."""
    return dt.datetime.fromisoformat(time).timestamp()
