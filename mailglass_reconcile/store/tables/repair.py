"""Make the table of open orphans equal the ledger, in batches: a migration fills it, and the daily prune repairs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import NIL, OpenConnection, in_schema

# The newest of each tenant, at a cost that does not depend on the number of its orphans.
_NEWEST = """
SELECT coalesce(max(n.inserted_at), '-infinity')::text
  FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1(CAST('' AS text)) AS t
 CROSS JOIN LATERAL (SELECT e.inserted_at FROM {schema}.mailglass_events AS e
                      WHERE e.needs_reconciliation = true AND e.tenant_id = t.tenant_id
                      ORDER BY e.inserted_at DESC LIMIT 1) AS n
"""

# Rows that the trigger did not see. There is a margin of a day: `inserted_at` may be the local time of its session.
_ADD_MISSING = """
-- The next orphans of each tenant within the maximum age; older rows are not read.
WITH page AS MATERIALIZED (
  SELECT e.id, e.tenant_id, e.inserted_at
    FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1(CAST(:after_tenant AS text)) AS t
   CROSS JOIN LATERAL (
           SELECT l.id, l.tenant_id, l.inserted_at FROM {schema}.mailglass_events AS l
            WHERE l.needs_reconciliation = true AND l.delivery_id IS NULL AND l.tenant_id = t.tenant_id
              AND l.inserted_at >= greatest(now()::timestamp - make_interval(days => 1, mins => :max_age_minutes),
                                            CASE WHEN t.tenant_id = :after_tenant
                                                 THEN CAST(:after_time AS timestamp) END)
              AND l.inserted_at <= CAST(:until_time AS timestamp)
              AND (t.tenant_id > :after_tenant
                   OR (l.inserted_at, l.id) > (CAST(:after_time AS timestamp), CAST(:after_id AS uuid)))
            ORDER BY l.inserted_at, l.id LIMIT :size) AS e
   LIMIT :size
), added AS (
  INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
  SELECT p.id, p.tenant_id, a.arrived_at
    FROM page AS p CROSS JOIN LATERAL {schema}.mailglass_reconcile_arrival_of_v1(p.id, p.inserted_at) AS a
   WHERE NOT {schema}.mailglass_reconcile_is_expired_v1(a.arrived_at, CAST(:max_age_minutes AS integer))
     AND EXISTS (SELECT FROM {schema}.mailglass_reconcile_missing_v1(p.id, p.tenant_id) OFFSET 0)
      ON CONFLICT DO NOTHING RETURNING event_id
)
SELECT tenant_id AS after_tenant, inserted_at::text AS after_time, id::text AS after_id,
       (SELECT count(*) FROM added) AS added
  FROM page ORDER BY tenant_id DESC, inserted_at DESC, id DESC LIMIT 1
"""

_REMOVE_SETTLED = """
WITH page AS MATERIALIZED (
  SELECT event_id, tenant_id FROM {schema}.mailglass_open_orphans
   WHERE event_id > CAST(:after_id AS uuid) ORDER BY event_id LIMIT :size
), closed AS MATERIALIZED (
  SELECT event_id FROM {schema}.mailglass_open_orphans
   WHERE event_id = ANY (ARRAY(
           SELECT p.event_id FROM page AS p
            WHERE EXISTS (SELECT FROM {schema}.mailglass_reconcile_settled_v1(p.event_id, p.tenant_id) OFFSET 0)))
     FOR UPDATE SKIP LOCKED
), removed AS (
  DELETE FROM {schema}.mailglass_open_orphans
   WHERE event_id = ANY (ARRAY(SELECT event_id FROM closed)) RETURNING event_id
)
SELECT event_id::text AS after_id, (SELECT count(*) FROM removed) AS removed
  FROM page ORDER BY event_id DESC LIMIT 1
"""

# Events of other software's mail expire every day, which is normal; one that names a delivery should have been linked.
# In the order of arrival from a cursor on, so that a batch does not walk over the rows that earlier ones have removed.
_REMOVE_EXPIRED = """
WITH page AS MATERIALIZED (
  SELECT event_id, arrived_at FROM {schema}.mailglass_open_orphans
   WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_id AS uuid))
     AND {schema}.mailglass_reconcile_is_expired_v1(arrived_at, CAST(:max_age_minutes AS integer))
   ORDER BY arrived_at, event_id LIMIT :size FOR UPDATE SKIP LOCKED
), removed AS (
  DELETE FROM {schema}.mailglass_open_orphans AS o WHERE event_id = ANY (ARRAY(SELECT event_id FROM page))
  RETURNING o.event_id, o.rank,
            EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                      JOIN {schema}.mailglass_deliveries AS d
                        ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                     WHERE k.event_id = o.event_id OFFSET 0) AS named
)
SELECT arrived_at::text AS after_time, event_id::text AS after_id,
       (SELECT count(*) FROM removed) AS orphans, (SELECT count(*) FROM removed WHERE named) AS named,
       ARRAY(SELECT event_id::text FROM removed WHERE rank IS NULL) AS without_keys
  FROM page ORDER BY arrived_at DESC, event_id DESC LIMIT 1
"""

_REMOVE_STRAY_IDS = """
WITH page AS MATERIALIZED (
  SELECT event_id, position FROM {schema}.mailglass_open_orphan_ids
   WHERE (event_id, position) > (CAST(:after_id AS uuid), CAST(:after_position AS smallint))
   ORDER BY event_id, position LIMIT :size
-- In this order, so that of two prunes one waits for the other.
), removed AS (
  DELETE FROM {schema}.mailglass_open_orphan_ids AS k
   USING page AS p
   WHERE k.event_id = p.event_id AND k.position = p.position
     AND NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans WHERE event_id = p.event_id OFFSET 0)
  RETURNING k.event_id
)
SELECT event_id::text AS after_id, position AS after_position, (SELECT count(*) FROM removed) AS removed
  FROM page ORDER BY event_id DESC, position DESC LIMIT 1
"""

_START = {"after_tenant": "", "after_time": "-infinity", "after_id": NIL}

_SCRIPT = """
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL TimeZone = 'UTC';
SET LOCAL row_security = off;
{statement};
COMMIT;
"""


def format_script(settings: Settings) -> str:
    """Return `add_missing` as an SQL script: one transaction, however large the ledger is."""
    values = {
        **_START,
        "until_time": "infinity",
        "size": 2**31 - 1,
        "max_age_minutes": settings.max_age_minutes,
    }
    binds = [
        sa.bindparam(name, value, sa.Integer if isinstance(value, int) else sa.Text) for name, value in values.items()
    ]
    bound = sa.text(in_schema(_ADD_MISSING, settings.database_schema)).bindparams(*binds)
    dialect = postgresql.dialect()
    compiled = bound.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return _SCRIPT.strip().replace("{statement}", str(compiled).strip())


def add_missing(connected: OpenConnection) -> int:
    """Add the ledger's open orphans within the maximum age that are missing in our table, and return their number.

    A transaction reads a batch of the ledger. The arrival of an orphan added in this way is the millisecond of its
    UUIDv7, or else its `inserted_at` read as UTC. One that was linked meanwhile is added too: call `remove_closed`
    afterwards.
    """
    with connected.writing() as tx:
        # The trigger adds newer rows; without this bound, a busy ledger would have no end.
        until = tx.execute(_NEWEST).scalar_one()
    bounds = {"until_time": until, "max_age_minutes": connected.settings.max_age_minutes}
    return sum(page["added"] for page in connected.in_pages(_ADD_MISSING, _START, bounds))


def remove_closed(connected: OpenConnection) -> int:
    """Remove rows whose orphan is linked or missing in the ledger, batch by batch, and return their number."""
    return sum(page["removed"] for page in connected.in_pages(_REMOVE_SETTLED, {"after_id": NIL}))


class Expired(NamedTuple):
    """Removed orphans.

    Attributes:
        orphans: Their number.
        named: The number of those whose keys name a delivery, of any tenant.
        without_keys: The ids of those that no sweep has checked.
    """

    orphans: int
    named: int
    without_keys: list[str]


def remove_expired(connected: OpenConnection) -> Iterator[Expired]:
    """Remove orphans older than the maximum age, and yield what each transaction has removed, a batch."""
    bounds = {"max_age_minutes": connected.settings.max_age_minutes}
    for page in connected.in_pages(_REMOVE_EXPIRED, {"after_time": "-infinity", "after_id": NIL}, bounds):
        yield Expired(page["orphans"], page["named"], page["without_keys"])


def remove_stray_ids(connected: OpenConnection) -> int:
    """Remove candidate ids without an open orphan, batch by batch, and return their number."""
    cursor = {"after_id": NIL, "after_position": -1}
    return sum(page["removed"] for page in connected.in_pages(_REMOVE_STRAY_IDS, cursor))
