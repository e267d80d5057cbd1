"""Orphans of the ledger that are older than the maximum age, a page at a time: no other table knows them any more."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from mailglass_reconcile.store.database import Transaction

_PLACE = """
SELECT tenant_id, inserted_at::text AS inserted_at, id::text AS event_id
  FROM {schema}.mailglass_events WHERE id = CAST(:event_id AS uuid)
"""

# Tenant by tenant, because the ledger's index of orphans begins with the tenant; the next one is probed for. A row
# that was reconciled is passed over by the caller, so that a page ends after so many rows whatever they are.
_EXPIRED = """
WITH RECURSIVE tenants AS (
  (SELECT tenant_id FROM {schema}.mailglass_events
    WHERE needs_reconciliation = true AND tenant_id >= :from_tenant
      AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id) ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.needs_reconciliation = true AND e.tenant_id > t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL AND CAST(:tenant_id AS text) IS NULL
)
SELECT e.id::text AS event_id, e.tenant_id, e.inserted_at::text AS arrived_at, NULL AS provider, ARRAY[]::text[] AS ids,
       NULL AS recipient, NULL AS rule, false AS recipient_lost, left(e.type, 512) AS type,
       to_json(e.inserted_at) #>> '{}' AS at,
       EXISTS (SELECT FROM {schema}.mailglass_events AS r
                WHERE r.idempotency_key = 'reconciled:' || e.id
                  AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM e.tenant_id) AS settled
  FROM tenants AS t
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_events
          WHERE tenant_id = t.tenant_id AND needs_reconciliation = true AND delivery_id IS NULL
            AND inserted_at >= CASE WHEN t.tenant_id = :from_tenant THEN CAST(:from_time AS timestamp)
                                    ELSE '-infinity' END
            AND (t.tenant_id <> :from_tenant
                 OR (inserted_at, id) > (CAST(:from_time AS timestamp), CAST(:from_event AS uuid)))
            AND inserted_at <= least(CAST(:eligible_after AS timestamp),
                                     now()::timestamp - make_interval(secs => CAST(:older AS float8)))
            AND inserted_at > now()::timestamp - make_interval(secs => coalesce(CAST(:newer AS float8), 3e9))
          ORDER BY inserted_at, id LIMIT :size) AS e
 LIMIT :size
"""


class LedgerPlace(NamedTuple):
    """A place in the order in which expired orphans are listed."""

    tenant_id: str
    inserted_at: str
    event_id: str


FIRST = LedgerPlace("", "-infinity", "00000000-0000-0000-0000-000000000000")


def place_of(tx: Transaction, event_id: str) -> LedgerPlace | None:
    """Return where an event stands in the order of expired orphans, or None if the ledger has no such event."""
    row = tx.execute(_PLACE, {"event_id": event_id}).one_or_none()
    return LedgerPlace(*row) if row else None


def next_ones(
    tx: Transaction,
    after: LedgerPlace,
    size: int,
    *,
    tenant_id: str | None,
    eligible_after: str,
    older: float | None,
    newer: float | None,
) -> list[sa.Row[Any]]:
    """Return the next *size* orphans of the ledger that arrived until *eligible_after*, reconciled ones too."""
    parameters = {
        "from_tenant": after.tenant_id,
        "from_time": after.inserted_at,
        "from_event": after.event_id,
        "size": size,
        "tenant_id": tenant_id,
        "eligible_after": eligible_after,
        "older": older,
        "newer": newer,
    }
    return list(tx.execute(_EXPIRED, parameters).all())
