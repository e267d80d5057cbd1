"""The open set brought back to what the ledger says: filled by a migration, repaired by the daily prune, in batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Connected, in_schema
from mailglass_reconcile.store.open_orphans import MAX_TENANT_LENGTH

# Rows that the trigger did not see. A UUIDv7's own millisecond is the arrival: `inserted_at` may be the local time of
# its session. If neither says a time that can be, the orphan counts as expired.
_ADD_MISSING = """
WITH page AS (
  SELECT id, tenant_id, inserted_at FROM {schema}.mailglass_events
   WHERE needs_reconciliation = true AND delivery_id IS NULL
     AND inserted_at > now()::timestamp - make_interval(days => 1, mins => :max_age_minutes)
     AND (CAST(:until_time AS timestamp) IS NULL OR inserted_at <= CAST(:until_time AS timestamp))
     AND (CAST(:after_id AS uuid) IS NULL
          OR (tenant_id, inserted_at, id) > (:after_tenant, CAST(:after_time AS timestamp), CAST(:after_id AS uuid)))
   ORDER BY tenant_id, inserted_at, id LIMIT :size
), dated AS (
  SELECT p.id, p.tenant_id,
         CASE WHEN substr(p.id::text, 15, 1) = '7' AND m.made_at <= now()::timestamp + interval '5 minutes'
                   AND (p.inserted_at - interval '1 day' < m.made_at AND m.made_at < p.inserted_at + interval '1 day'
                        OR p.inserted_at >= now()::timestamp + interval '1 day')
              THEN m.made_at
              WHEN p.inserted_at < now()::timestamp + interval '1 day'
              THEN least(p.inserted_at, now()::timestamp) END AS arrived_at
    FROM page AS p,
         LATERAL (SELECT to_timestamp(('x' || left(replace(p.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
                         ::timestamp AS made_at) AS m
), added AS (
  INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
  SELECT id, tenant_id, arrived_at FROM dated AS d
   WHERE arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
     AND length(tenant_id) <= :max_tenant_length
     AND NOT EXISTS (SELECT FROM {schema}.mailglass_events
                      WHERE idempotency_key = 'reconciled:' || d.id AND type = 'reconciled' AND tenant_id = d.tenant_id)
      ON CONFLICT DO NOTHING RETURNING event_id
)
SELECT tenant_id AS after_tenant, inserted_at::text AS after_time, id::text AS after_id,
       (SELECT count(*) FROM added) AS added
  FROM page ORDER BY tenant_id DESC, inserted_at DESC, id DESC LIMIT 1
"""

_NEWEST = """
SELECT max(inserted_at)::text FROM {schema}.mailglass_events WHERE needs_reconciliation = true AND delivery_id IS NULL
"""

_REMOVE_SETTLED = """
DELETE FROM {schema}.mailglass_open_orphans AS o
 USING (SELECT event_id FROM {schema}.mailglass_open_orphans AS c
         WHERE EXISTS (SELECT FROM {schema}.mailglass_events
                        WHERE idempotency_key = 'reconciled:' || c.event_id
                          AND type = 'reconciled' AND tenant_id = c.tenant_id)
            OR NOT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = c.event_id)
         LIMIT :size FOR UPDATE SKIP LOCKED) AS settled
 WHERE o.event_id = settled.event_id
"""

# Mail of other software expires every day, which is normal; an event that names a delivery should have been linked.
_REMOVE_EXPIRED = """
WITH removed AS (
DELETE FROM {schema}.mailglass_open_orphans AS o
 USING (SELECT event_id FROM {schema}.mailglass_open_orphans
         WHERE arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes)
            OR arrived_at > now()::timestamp + interval '1 day'
         LIMIT :size FOR UPDATE SKIP LOCKED) AS expired
 WHERE o.event_id = expired.event_id
RETURNING EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                    JOIN {schema}.mailglass_deliveries AS d
                      ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                   WHERE k.event_id = o.event_id) AS named
)
SELECT count(*) AS orphans, count(*) FILTER (WHERE named) AS named FROM removed
"""


_REMOVE_STRAY_IDS = """
DELETE FROM {schema}.mailglass_open_orphan_ids AS k
 USING (SELECT DISTINCT event_id FROM {schema}.mailglass_open_orphan_ids AS c
         WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans AS o WHERE o.event_id = c.event_id)
         LIMIT :size) AS stray
 WHERE k.event_id = stray.event_id
"""


_START = {"after_tenant": None, "after_time": None, "after_id": None}

_SCRIPT = """
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL TimeZone = 'UTC';
SET LOCAL row_security = off;
{statement};
COMMIT;
"""


def as_script(settings: Settings) -> str:
    """Return `add_missing` as SQL to be run by hand: one transaction, whatever the ledger holds."""
    values = {
        **_START,
        "until_time": None,
        "size": 2**31 - 1,
        "max_age_minutes": settings.max_age_minutes,
        "max_tenant_length": MAX_TENANT_LENGTH,
    }
    binds = [sa.bindparam(name, value, sa.Integer if value else sa.Text) for name, value in values.items()]
    bound = sa.text(in_schema(_ADD_MISSING, settings.database_schema.replace(":", "\\:"))).bindparams(*binds)
    # A style of parameters that does not double a percent sign of the schema's name.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    compiled = bound.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return _SCRIPT.strip().replace("{statement}", str(compiled).strip())


def add_missing(connected: Connected, size: int) -> int:
    """Add the ledger's open orphans within the maximum age that the open set lacks, and return how many.

    Each *size* rows of the ledger are a transaction of their own; the arrival of an orphan added in this way is
    the millisecond of its UUIDv7, or else its `inserted_at` read as UTC.
    """
    with connected.writing() as tx:
        # What is newer is the trigger's: a ledger that is written all the time would have no end.
        until = tx.execute(_NEWEST).scalar_one()
    place: dict[str, Any] = dict(_START)
    added = 0
    while True:
        with connected.writing() as tx:
            page = {
                **place,
                "until_time": until,
                "size": size,
                "max_age_minutes": connected.settings.max_age_minutes,
                "max_tenant_length": MAX_TENANT_LENGTH,
            }
            last = tx.execute(_ADD_MISSING, page).mappings().one_or_none()
        if last is None:
            return added
        place = dict(last)
        added += place.pop("added")


def remove_settled(connected: Connected, size: int) -> int:
    """Remove, in batches of *size*, what the ledger holds no open orphan for, and return how many rows."""
    return connected.in_batches(_REMOVE_SETTLED, {"size": size})


class Expired(NamedTuple):
    """How many orphans expired, and how many of them have an id that a delivery has, of any tenant."""

    orphans: int
    named: int


def remove_expired(connected: Connected, size: int) -> Expired:
    """Remove, in batches of *size*, what is older than the maximum age, and return how many orphans that were."""
    bounds = {"size": size, "max_age_minutes": connected.settings.max_age_minutes}
    total = Expired(0, 0)
    while True:
        with connected.writing() as tx:
            batch = Expired(*tx.execute(_REMOVE_EXPIRED, bounds).one())
        total = Expired(total.orphans + batch.orphans, total.named + batch.named)
        if batch.orphans < size:
            return total


def remove_stray_ids(connected: Connected, size: int) -> int:
    """Remove, in batches, the ids of orphans that are no longer open, and return how many rows."""
    return connected.in_batches(_REMOVE_STRAY_IDS, {"size": size})
