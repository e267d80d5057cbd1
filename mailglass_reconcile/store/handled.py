"""Which types of events have handlers, as the dispatches in the history of runs say, and what is not handed to them."""

from __future__ import annotations

from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction, first_uuid7

LOOKED_AT = 5_000

_MAY_READ = "SELECT coalesce(has_table_privilege(to_regclass(:table), 'SELECT'), false)"

_HANDLED = """
SELECT DISTINCT h.type
  FROM {schema}.mailglass_reconcile_runs AS r
 CROSS JOIN LATERAL unnest(string_to_array(r.handled_types, ',')) AS h (type)
 WHERE r.kind = 'dispatch' AND r.finished_at > now()::timestamp - interval '1 day'
"""

_LEFT_OUT = """
-- since when each type that still has a handler has had one; the prune may have deleted rows that were dispatched
WITH handled AS (
  SELECT h.type, greatest(min(r.started_at), (SELECT max(finished_at) FROM {schema}.mailglass_reconcile_runs
                                               WHERE kind = 'prune')) AS since
    FROM {schema}.mailglass_reconcile_runs AS r
   CROSS JOIN LATERAL unnest(string_to_array(r.handled_types, ',')) AS h (type)
   WHERE r.kind = 'dispatch'
   GROUP BY h.type HAVING max(r.finished_at) > now()::timestamp - interval '1 hour'
-- the newest rows of the last hour
), recent AS MATERIALIZED (
  SELECT id, type, delivery_id, idempotency_key, inserted_at FROM {schema}.mailglass_events
   WHERE id >= CAST(:first AS uuid) AND EXISTS (SELECT FROM handled) ORDER BY id DESC LIMIT :size
-- what our writers attached, and what a `reconciled` event has linked
), attached AS (
  SELECT id, type, inserted_at FROM recent
   WHERE delivery_id IS NOT NULL AND (idempotency_key LIKE 'webhook:%' OR idempotency_key LIKE 'send:%')
   UNION ALL
  SELECT o.id, o.type, r.inserted_at
    FROM recent AS r
    JOIN {schema}.mailglass_events AS o
      ON o.id = {linked}
)
SELECT a.type
  FROM attached AS a
  JOIN handled AS h ON h.type = a.type AND a.inserted_at > h.since
 WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_hook_outbox AS x WHERE x.event_id = a.id)
 GROUP BY a.type ORDER BY count(*) DESC, a.type
""".replace("{linked}", schema.linked_by("r"))


def types(tx: Transaction) -> set[str]:
    """Return the types that have had a handler in some process during the last day, as far as this role may know."""
    return set(tx.execute(_HANDLED).scalars()) if may_read(tx, "mailglass_reconcile_runs") else set()


def may_read(tx: Transaction, table: str) -> bool:
    """Whether this role may read a table of ours."""
    return bool(tx.execute(_MAY_READ, {"table": tx.name_of(table)}).scalar_one())


def left_out(tx: Transaction) -> list[str]:
    """Return the types that have a handler, and of which events of the last hour are not in the outbox.

    Only the newest 5,000 rows of the ledger are looked at.
    """
    first = first_uuid7(3_600)
    return list(tx.execute(_LEFT_OUT, {"first": first, "size": LOOKED_AT}).scalars())
