"""Deliveries that no provider has reported on: a bounded sample, by tenant and provider.

On tables that `migrate` made, an index has the deliveries of each tenant and provider by time, so a small provider is
seen beside a large one. On Mailglass's tables the sample goes by Mailglass's own indexes, over a tenant and the time of
its last events.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.event_types import PROVIDER_TYPES
from mailglass_reconcile.rules.events import STREAMS
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Transaction, array_literal, uuid7_bounds

SENDERS = 100
"""The first pairs of a tenant and a provider, on tables that `migrate` made."""
TENANTS = 15
"""The first tenants on Mailglass's tables; and as many of those of the newest events, on both."""
PROVIDERS = 10
"""The providers of each tenant of the newest events."""
NEWEST_EVENTS = 300
SAMPLE = 100
"""The newest deliveries of each sender, or of each tenant, that should have a report by now; and those of a day."""
BEFORE_EACH_DAY = 5
"""The newest deliveries of each sender that are read before each day of a week, to find the last report."""
REPORTED = 20
"""On Mailglass's tables, the newest deliveries of each tenant that are read for that; of each stream, terminal ones."""
NEWEST_ORPHANS = 200
NEW_SECONDS = 600
"""A delivery that was dispatched later may get its report still."""
DAYS = 7
"""Deliveries that were dispatched earlier are not expected to get a report."""

# On tables that `migrate` made.
_BY_SENDER = """
-- The first senders, and those of some tenants that have events now.
WITH senders AS MATERIALIZED (
  (SELECT tenant_id, provider FROM {schema}.mailglass_reconcile_senders_v1(CAST('' AS text), CAST('' AS text))
    LIMIT :senders)
   UNION
  SELECT s.tenant_id, s.provider
    FROM (SELECT DISTINCT e.tenant_id
            FROM (SELECT tenant_id FROM {schema}.mailglass_events
                   WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid)
                   ORDER BY id DESC LIMIT :newest_events) AS e
           LIMIT :tenants) AS t
   CROSS JOIN LATERAL (SELECT f.* FROM {schema}.mailglass_reconcile_senders_v1(t.tenant_id, CAST('' AS text)) AS f
                        LIMIT :providers) AS s
   WHERE s.tenant_id = t.tenant_id
-- Of each, what should have a report by now; what was sent today; and before each day some that may have one.
), seen AS (
  SELECT s.tenant_id, d.*,
         left(p.provider, 512) AS sent_by,
         d.last_event_type = ANY (CAST(:reports AS text[])) AS reported
    FROM senders AS s
   CROSS JOIN LATERAL (
          (SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at, complained_at,
                  dispatched_at <= now()::timestamp - make_interval(secs => :seconds) AS due, false AS of_today
             FROM {schema}.mailglass_deliveries
            WHERE tenant_id = s.tenant_id AND coalesce(provider, '') = s.provider
              AND inserted_at <= now()::timestamp - make_interval(secs => :seconds)
              AND inserted_at > now()::timestamp - make_interval(secs => :seconds, days => :days)
            ORDER BY inserted_at DESC LIMIT :sample)
           UNION ALL
          (SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at, complained_at,
                  false, dispatched_at > now()::timestamp - interval '1 day'
             FROM {schema}.mailglass_deliveries
            WHERE tenant_id = s.tenant_id AND coalesce(provider, '') = s.provider
              AND inserted_at <= now()::timestamp - make_interval(secs => :new_seconds)
              AND inserted_at > now()::timestamp - interval '1 day'
            ORDER BY inserted_at DESC LIMIT :sample)
           UNION ALL
          SELECT f.*
            FROM generate_series(0, CAST(:days AS integer)) AS a (days)
           CROSS JOIN LATERAL (
                   SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at,
                          complained_at, false, false
                     FROM {schema}.mailglass_deliveries
                    WHERE tenant_id = s.tenant_id AND coalesce(provider, '') = s.provider
                      AND inserted_at <= now()::timestamp - make_interval(secs => :seconds, days => a.days)
                    ORDER BY inserted_at DESC LIMIT :before_each_day) AS f) AS d
   CROSS JOIN LATERAL {schema}.mailglass_reconcile_provider_of_v1(d.id, d.provider) AS p
)
SELECT tenant_id, sent_by AS provider, count(*) FILTER (WHERE due) AS deliveries,
       count(*) FILTER (WHERE due AND NOT reported) AS without_report,
       extract(epoch FROM now()::timestamp - max(dispatched_at) FILTER (WHERE due AND NOT reported))::float8
         AS unreported_seconds,
       -- Mailglass counts opens and clicks itself: they show that the mail came, and not that webhooks come.
       extract(epoch FROM now()::timestamp - max(
         greatest(delivered_at, bounced_at, complained_at,
                  CASE WHEN reported AND last_event_type NOT IN ('opened', 'clicked', 'unsubscribed')
                       THEN last_event_at END)))::float8 AS reported_seconds,
       NULL::float8 AS arrived_seconds, count(*) FILTER (WHERE of_today AND NOT reported) AS unreported_today,
       count(*) FILTER (WHERE of_today AND reported) AS reported_today, 0 AS unmatched_today,
       extract(epoch FROM now()::timestamp - max(dispatched_at) FILTER (WHERE of_today AND NOT reported))::float8
         AS last_unreported_seconds
  FROM seen GROUP BY tenant_id, sent_by
 UNION ALL
SELECT tenant_id, provider, 0, 0, NULL, NULL, extract(epoch FROM now()::timestamp - max(arrived_at))::float8, 0, 0,
       count(*) FILTER (WHERE state = 'unmatched' AND arrived_at > now()::timestamp - interval '1 day'), NULL
  FROM (SELECT tenant_id, left(provider, 512) AS provider, arrived_at, state FROM {schema}.mailglass_open_orphans
         ORDER BY arrived_at DESC, event_id DESC LIMIT :newest_orphans) AS o
 GROUP BY tenant_id, provider
"""

# On Mailglass's tables, whose ids do not say when a delivery was made: by `last_event_at`, which is when a delivery
# without a report was dispatched.
_BY_TENANT = """
-- The first tenants, and some that have events now.
WITH chosen AS MATERIALIZED (
  (SELECT tenant_id FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1(CAST('' AS text)) LIMIT :tenants)
   UNION
  (SELECT DISTINCT e.tenant_id
     FROM (SELECT tenant_id FROM {schema}.mailglass_events
            WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid)
            ORDER BY id DESC LIMIT :newest_events) AS e
    LIMIT :tenants)
-- Of each tenant, what should have a report by now, and where the last reports are.
), seen AS (
  SELECT t.tenant_id, d.*,
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
            ORDER BY last_event_at DESC LIMIT :sample)
           UNION ALL
          (SELECT id, provider, last_event_type, last_event_at, dispatched_at, delivered_at, bounced_at, complained_at,
                  false, dispatched_at > now()::timestamp - interval '1 day'
             FROM {schema}.mailglass_deliveries
            WHERE tenant_id = t.tenant_id
              AND last_event_at <= now()::timestamp - make_interval(secs => :new_seconds)
              AND last_event_at > now()::timestamp - interval '1 day'
            ORDER BY last_event_at DESC LIMIT :sample)
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
SELECT tenant_id, sent_by AS provider, count(*) FILTER (WHERE due) AS deliveries,
       count(*) FILTER (WHERE due AND NOT reported) AS without_report,
       extract(epoch FROM now()::timestamp - max(dispatched_at) FILTER (WHERE due AND NOT reported))::float8
         AS unreported_seconds,
       -- Mailglass counts opens and clicks itself: they show that the mail came, and not that webhooks come.
       extract(epoch FROM now()::timestamp - max(
         greatest(delivered_at, bounced_at, complained_at,
                  CASE WHEN reported AND last_event_type NOT IN ('opened', 'clicked', 'unsubscribed')
                       THEN last_event_at END)))::float8 AS reported_seconds,
       NULL::float8 AS arrived_seconds, count(*) FILTER (WHERE of_today AND NOT reported) AS unreported_today,
       count(*) FILTER (WHERE of_today AND reported) AS reported_today, 0 AS unmatched_today,
       extract(epoch FROM now()::timestamp - max(dispatched_at) FILTER (WHERE of_today AND NOT reported))::float8
         AS last_unreported_seconds
  FROM seen GROUP BY tenant_id, sent_by
 UNION ALL
SELECT tenant_id, provider, 0, 0, NULL, NULL, extract(epoch FROM now()::timestamp - max(arrived_at))::float8, 0, 0,
       count(*) FILTER (WHERE state = 'unmatched' AND arrived_at > now()::timestamp - interval '1 day'), NULL
  FROM (SELECT tenant_id, left(provider, 512) AS provider, arrived_at, state FROM {schema}.mailglass_open_orphans
         ORDER BY arrived_at DESC, event_id DESC LIMIT :newest_orphans) AS o
 GROUP BY tenant_id, provider
"""


class ProviderReports(NamedTuple):
    """The reports on the sampled deliveries of one provider, or on all that have no provider.

    Attributes:
        provider: The canonical name of the provider; None for deliveries without one.
        deliveries: Sampled deliveries that were dispatched longer ago than the allowed silence.
        without_report: The deliveries among them without a report.
        reported_seconds: Seconds since the last report; None if the sample has none.
        silent_seconds: Seconds for which no report has arrived, if later mail should have one by now; otherwise None.
            Infinite if the sample has none.
        unreported_today: Deliveries of the last 24 hours without a report, in the sample.
        reported_today: Deliveries of the last 24 hours with a report, in the sample.
        unmatched_today: Open events of the last 24 hours that match no delivery, in the sample.
        last_unreported_seconds: Seconds since the last delivery of the last 24 hours without a report was sent, which
            is more than ten minutes; None if the sample has none.
        by_tenant: The same for each tenant's deliveries.
    """

    provider: str | None
    deliveries: int
    without_report: int
    reported_seconds: float | None
    silent_seconds: float | None
    unreported_today: int = 0
    reported_today: int = 0
    unmatched_today: int = 0
    last_unreported_seconds: float | None = None
    by_tenant: Mapping[str, ProviderReports] = MappingProxyType({})

    @property
    def has_stopped(self) -> bool:
        """Return True if reports arrived earlier, and no longer do."""
        return self.silent_seconds is not None and self.reported_seconds is not None

    @property
    def has_never_begun(self) -> bool:
        """Return True if no report has ever arrived, although some should have."""
        return self.silent_seconds is not None and self.reported_seconds is None


def load_reports(tx: Transaction) -> list[ProviderReports]:
    """Return the reports of each provider, the one with most deliveries first; none without `MAILGLASS_SILENCE_HOURS`.

    That setting is the longest silence. An orphan counts as a webhook: it is open for other reasons.
    """
    hours = tx.settings.silence_hours
    if hours is None:
        return []
    parameters = {
        "seconds": hours * 3_600,
        "days": DAYS,
        "senders": SENDERS,
        "tenants": TENANTS,
        "providers": PROVIDERS,
        **uuid7_bounds(hours * 3_600 + DAYS * 86_400),
        "newest_events": NEWEST_EVENTS,
        "sample": SAMPLE,
        "new_seconds": NEW_SECONDS,
        "before_each_day": BEFORE_EACH_DAY,
        "reported": REPORTED,
        "streams": array_literal(STREAMS),
        "reports": array_literal(PROVIDER_TYPES),
        "newest_orphans": NEWEST_ORPHANS,
    }
    statement = _BY_TENANT if installed.is_made_by_mailglass(tx) else _BY_SENDER
    return _merge(_Row(*row) for row in tx.execute(statement, parameters).all())


class _Row(NamedTuple):
    tenant_id: str | None
    provider: str | None
    deliveries: int
    without_report: int
    unreported_seconds: float | None
    reported_seconds: float | None
    arrived_seconds: float | None
    unreported_today: int
    reported_today: int
    unmatched_today: int
    last_unreported_seconds: float | None


def _merge(rows: Iterable[_Row]) -> list[ProviderReports]:
    """Add up the rows of one provider, whose name may be spelled in several ways."""
    by_name: dict[str | None, list[_Row]] = defaultdict(list)
    for row in rows:
        by_name[provider_rules.canonical(row.provider) if row.provider else None].append(row)
    reports = []
    for name, own_rows in by_name.items():
        # An orphan without keys may be any provider's webhook, and a delivery without a provider may wait for any.
        webhooks = [
            row for other in by_name for row in by_name[other] if name is None or other is None or other == name
        ]
        tenants = {row.tenant_id for row in own_rows if row.tenant_id is not None}
        by_tenant = {
            tenant: _add_up(name, _of_tenant(own_rows, tenant), _of_tenant(webhooks, tenant)) for tenant in tenants
        }
        report = _add_up(name, own_rows, webhooks)._replace(by_tenant=by_tenant)
        if report.deliveries or report.unreported_today or report.reported_seconds is not None:
            reports.append(report)
    return sorted(reports, key=lambda report: -report.deliveries)


def _of_tenant(rows: Iterable[_Row], tenant_id: str) -> list[_Row]:
    return [row for row in rows if row.tenant_id == tenant_id]


def _add_up(name: str | None, rows: Iterable[_Row], webhooks: Iterable[_Row]) -> ProviderReports:
    """Add up the rows of one provider; *webhooks* are all rows whose orphans may be its webhooks."""
    rows = list(rows)
    unreported = _minimum(row.unreported_seconds for row in rows)
    reported = _minimum(row.reported_seconds for row in rows)
    last = min(reported, _minimum(row.arrived_seconds for row in webhooks))
    return ProviderReports(
        name,
        sum(row.deliveries for row in rows),
        sum(row.without_report for row in rows),
        _finite(reported),
        last if unreported < last else None,
        sum(row.unreported_today for row in rows),
        sum(row.reported_today for row in rows),
        sum(row.unmatched_today for row in rows),
        _finite(_minimum(row.last_unreported_seconds for row in rows)),
    )


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _minimum(durations: Iterable[float | None]) -> float:
    return min((max(0.0, seconds) for seconds in durations if seconds is not None), default=math.inf)
