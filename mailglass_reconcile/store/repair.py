"""The open set brought back to what the ledger says: filled by a migration, mended by the daily prune, in batches."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import in_batches, transaction

_ADD_MISSING = """
WITH page AS (
  SELECT id, tenant_id, inserted_at FROM {schema}.mailglass_events
   WHERE needs_reconciliation = true AND delivery_id IS NULL
     AND inserted_at > now()::timestamp - make_interval(mins => :max_age_minutes)
     AND (CAST(:after_id AS uuid) IS NULL
          OR (tenant_id, inserted_at, id) > (:after_tenant, CAST(:after_time AS timestamp), CAST(:after_id AS uuid)))
   ORDER BY tenant_id, inserted_at, id LIMIT :size
), added AS (
  INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
  SELECT id, tenant_id, inserted_at FROM page AS p
   WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_events AS r WHERE r.idempotency_key = 'reconciled:' || p.id
                       AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM p.tenant_id)
      ON CONFLICT DO NOTHING RETURNING event_id
)
SELECT tenant_id AS after_tenant, inserted_at::text AS after_time, id::text AS after_id,
       (SELECT count(*) FROM added) AS added
  FROM page ORDER BY tenant_id DESC, inserted_at DESC, id DESC LIMIT 1
"""

_REMOVE_SETTLED = """
DELETE FROM {schema}.mailglass_open_orphans AS o
 USING (SELECT event_id FROM {schema}.mailglass_open_orphans AS c
         WHERE EXISTS (SELECT FROM {schema}.mailglass_events AS r WHERE r.idempotency_key = 'reconciled:' || c.event_id
                         AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM c.tenant_id)
            OR NOT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = c.event_id)
         LIMIT :size FOR UPDATE SKIP LOCKED) AS settled
 WHERE o.event_id = settled.event_id
"""

_REMOVE_EXPIRED = """
DELETE FROM {schema}.mailglass_open_orphans AS o
 USING (SELECT event_id FROM {schema}.mailglass_open_orphans
         WHERE arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes)
         LIMIT :size FOR UPDATE SKIP LOCKED) AS expired
 WHERE o.event_id = expired.event_id
"""


_REMOVE_STRAY_IDS = """
DELETE FROM {schema}.mailglass_open_orphan_ids AS k
 USING (SELECT DISTINCT event_id FROM {schema}.mailglass_open_orphan_ids AS c
         WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans AS o WHERE o.event_id = c.event_id)
         LIMIT :size) AS stray
 WHERE k.event_id = stray.event_id
"""


def add_missing(connection: sa.Connection, settings: Settings, size: int) -> int:
    """Add the ledger's open orphans within the maximum age that the open set lacks, and return how many.

    Each *size* rows of the ledger are a transaction of their own; the arrival of an orphan added in this way is
    its `inserted_at`, read as UTC.
    """
    place: dict[str, Any] = {"after_tenant": None, "after_time": None, "after_id": None}
    added = 0
    while True:
        with transaction(connection, settings) as tx:
            page = {**place, "size": size, "max_age_minutes": settings.max_age_minutes}
            last = tx.execute(_ADD_MISSING, page).mappings().one_or_none()
        if last is None:
            return added
        place = dict(last)
        added += place.pop("added")


def remove_settled(connection: sa.Connection, settings: Settings, size: int) -> int:
    """Remove, in batches of *size*, what the ledger holds no open orphan for, and return how many rows."""
    return in_batches(connection, settings, _REMOVE_SETTLED, {"size": size})


def remove_expired(connection: sa.Connection, settings: Settings, size: int) -> int:
    """Remove, in batches of *size*, what is older than the maximum age, and return how many rows."""
    bounds = {"size": size, "max_age_minutes": settings.max_age_minutes}
    return in_batches(connection, settings, _REMOVE_EXPIRED, bounds)


def remove_stray_ids(connection: sa.Connection, settings: Settings, size: int) -> int:
    """Remove, in batches, the ids of orphans that are no longer open, and return how many rows."""
    return in_batches(connection, settings, _REMOVE_STRAY_IDS, {"size": size})
