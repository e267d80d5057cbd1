"""Deliveries that no provider has reported on: a bounded sample, by indexes that Mailglass's tables have themselves.

Ids of deliveries do not say when they were made (Mailglass 2.x makes UUIDv4), so the sample is taken tenant by tenant,
by `last_event_at`: of a delivery without a report, that is when it was dispatched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.event_types import PROVIDER_TYPES
from mailglass_reconcile.rules.events import STREAMS
from mailglass_reconcile.store.database import Transaction, array_literal, uuid7_bounds

TENANTS = 15
"""The first tenants, and as many of those of the newest events."""
NEWEST_EVENTS = 300
OF_TENANT = 100
"""Deliveries of each tenant that should have a report by now."""
REPORTED = 20
"""The newest terminal deliveries of each tenant and stream that are read to find the last report."""
NEWEST_ORPHANS = 200
NEW_SECONDS = 600
"""A delivery that was dispatched later may get its report still."""
DAYS = 7
"""Deliveries that were dispatched earlier are not read."""

# Mailglass counts opens and clicks itself: they show that the mail came, and not that webhooks come.
_REPORTS = """
-- The first tenants, and some that have events now.
WITH chosen AS MATERIALIZED (
  (SELECT tenant_id FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1('') LIMIT :tenants)
   UNION
  (SELECT DISTINCT e.tenant_id
     FROM (SELECT tenant_id FROM {schema}.mailglass_events
            WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid)
            ORDER BY id DESC LIMIT :newest_events) AS e
    LIMIT :tenants)
-- Of each tenant, what should have a report by now, and where the last reports are.
), seen AS (
  SELECT d.*,
         left(p.provider, 512) AS sent_by,
         d.last_event_type = ANY (CAST(:reports AS text[])) AS reported
    FROM chosen AS t
   CROSS JOIN LATERAL (
          (SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at, complained_at,
                  dispatched_at <= now()::timestamp - make_interval(secs => :seconds) AS due, false AS of_today
             FROM {schema}.mailglass_deliveries
            WHERE tenant_id = t.tenant_id
              AND last_event_at <= now()::timestamp - make_interval(secs => :seconds)
              AND last_event_at > now()::timestamp - make_interval(secs => :seconds, days => :days)
            ORDER BY last_event_at DESC LIMIT :of_tenant)
           UNION ALL
          (SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at, complained_at,
                  false, dispatched_at > now()::timestamp - interval '1 day'
             FROM {schema}.mailglass_deliveries
            WHERE tenant_id = t.tenant_id
              AND last_event_at <= now()::timestamp - make_interval(secs => :new_seconds)
              AND last_event_at > now()::timestamp - interval '1 day'
            ORDER BY last_event_at DESC LIMIT :of_tenant)
           UNION ALL
          (SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at, complained_at,
                  false, false
             FROM {schema}.mailglass_deliveries
            WHERE tenant_id = t.tenant_id ORDER BY last_event_at DESC LIMIT :reported)
           UNION ALL
          SELECT f.*
            FROM unnest(CAST(:streams AS text[])) AS s (stream)
           CROSS JOIN LATERAL (
                   SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at,
                          complained_at, false, false
                     FROM {schema}.mailglass_deliveries
                    WHERE tenant_id = t.tenant_id AND stream = s.stream AND terminal = true
                    ORDER BY last_event_at DESC LIMIT :reported) AS f) AS d
   CROSS JOIN LATERAL {schema}.mailglass_reconcile_provider_of_v1(d.id, d.provider) AS p
)
SELECT sent_by, count(*) FILTER (WHERE due) AS deliveries,
       count(*) FILTER (WHERE due AND NOT reported) AS without_report,
       extract(epoch FROM now()::timestamp - max(dispatched_at) FILTER (WHERE due AND NOT reported))::float8,
       extract(epoch FROM now()::timestamp - max(
         greatest(delivered_at, bounced_at, complained_at,
                  CASE WHEN reported AND last_event_type NOT IN ('opened', 'clicked', 'unsubscribed')
                       THEN last_event_at END)))::float8,
       NULL::float8, count(*) FILTER (WHERE of_today AND NOT reported),
       count(*) FILTER (WHERE of_today AND reported), 0
  FROM seen GROUP BY sent_by
 UNION ALL
SELECT provider, 0, 0, NULL, NULL, extract(epoch FROM now()::timestamp - max(arrived_at))::float8, 0, 0,
       count(*) FILTER (WHERE state = 'unmatched' AND arrived_at > now()::timestamp - interval '1 day')
  FROM (SELECT left(provider, 512) AS provider, arrived_at, state FROM {schema}.mailglass_open_orphans
         ORDER BY arrived_at DESC, event_id DESC LIMIT :newest_orphans) AS o
 GROUP BY provider
"""


class Reports(NamedTuple):
    """The reports on one provider's deliveries, or on all deliveries without a provider.

    Attributes:
        provider: The canonical name of the provider; None for deliveries without one.
        deliveries: Sampled deliveries that were dispatched longer ago than the allowed silence.
        without_report: The deliveries among them without a report.
        reported_seconds: Seconds since the last report; None if the sample has none.
        silent_seconds: Seconds for which no report has arrived, if later mail should have one by now; otherwise None.
        unreported_today: Deliveries of the last 24 hours without a report, in the sample.
        reported_today: Deliveries of the last 24 hours with a report, in the sample.
        unmatched_today: Open events of the last 24 hours that match no delivery, in the sample.
    """

    provider: str | None
    deliveries: int
    without_report: int
    reported_seconds: float | None
    silent_seconds: float | None
    unreported_today: int = 0
    reported_today: int = 0
    unmatched_today: int = 0

    @property
    def has_stopped(self) -> bool:
        """Return True if reports arrived earlier, and no longer do."""
        return self.silent_seconds is not None and self.reported_seconds is not None


def load_reports(tx: Transaction) -> list[Reports]:
    """Return the reports of each provider, the one with most deliveries first; none without `MAILGLASS_SILENCE_HOURS`.

    That setting is the longest silence. An orphan counts as a webhook: it is open for other reasons.
    """
    hours = tx.settings.silence_hours
    if hours is None:
        return []
    parameters = {
        "seconds": hours * 3_600,
        "days": DAYS,
        "tenants": TENANTS,
        **uuid7_bounds(hours * 3_600 + DAYS * 86_400),
        "newest_events": NEWEST_EVENTS,
        "of_tenant": OF_TENANT,
        "new_seconds": NEW_SECONDS,
        "reported": REPORTED,
        "streams": array_literal(STREAMS),
        "reports": array_literal(PROVIDER_TYPES),
        "newest_orphans": NEWEST_ORPHANS,
    }
    return _merge(_Row(*row) for row in tx.execute(_REPORTS, parameters).all())


class _Row(NamedTuple):
    provider: str | None
    deliveries: int
    without_report: int
    unreported_seconds: float | None
    reported_seconds: float | None
    arrived_seconds: float | None
    unreported_today: int
    reported_today: int
    unmatched_today: int


def _merge(rows: Iterable[_Row]) -> list[Reports]:
    """Add up the rows of one provider, whose name may be spelled in several ways."""
    by_name: dict[str | None, list[_Row]] = {}
    for row in rows:
        by_name.setdefault(provider_rules.canonical(row.provider) if row.provider else None, []).append(row)
    reports = []
    for name, own_rows in by_name.items():
        # An orphan without keys may be any provider's webhook, and a delivery without a provider may wait for any.
        webhooks = [
            row
            for other_name, rows in by_name.items()
            if None in (name, other_name) or other_name == name
            for row in rows
        ]
        unreported = _minimum(row.unreported_seconds for row in own_rows)
        reported = _minimum(row.reported_seconds for row in own_rows)
        last = min(reported, _minimum(row.arrived_seconds for row in webhooks))
        deliveries = sum(row.deliveries for row in own_rows)
        unreported_today = sum(row.unreported_today for row in own_rows)
        if deliveries or unreported_today or math.isfinite(reported):
            reports.append(
                Reports(
                    name,
                    deliveries,
                    sum(row.without_report for row in own_rows),
                    reported if math.isfinite(reported) else None,
                    last if unreported < last else None,
                    unreported_today,
                    sum(row.reported_today for row in own_rows),
                    sum(row.unmatched_today for row in own_rows),
                )
            )
    return sorted(reports, key=lambda report: -report.deliveries)


def _minimum(durations: Iterable[float | None]) -> float:
    return min((max(0.0, seconds) for seconds in durations if seconds is not None), default=math.inf)
