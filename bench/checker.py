"""The checker at the end of each run: no event is lost or doubled, and each delivery is the fold of its events."""

from __future__ import annotations

import psycopg

CHECKS = {
    "orphans without exactly one reconciled event": """
SELECT count(*) FROM (
  SELECT e.id FROM mailglass_events AS e
    LEFT JOIN mailglass_events AS r ON r.idempotency_key = 'reconciled:' || e.id
                                   AND r.type = 'reconciled' AND r.tenant_id = e.tenant_id
   WHERE e.needs_reconciliation AND e.delivery_id IS NULL
   GROUP BY e.id HAVING count(r.id) <> 1) AS wrong
""",
    "orphans with two reconciled events under other keys": """
SELECT count(*) FROM (
  SELECT metadata ->> 'reconciled_from_event_id' FROM mailglass_events WHERE type = 'reconciled'
     AND metadata ? 'reconciled_from_event_id' GROUP BY 1 HAVING count(*) > 1) AS twice
""",
    "reconciled events without a delivery of their tenant": """
SELECT count(*) FROM mailglass_events AS r
  LEFT JOIN mailglass_deliveries AS d ON d.id = r.delivery_id AND d.tenant_id = r.tenant_id
 WHERE r.type = 'reconciled' AND d.id IS NULL
""",
    "open orphans left": "SELECT count(*) FROM mailglass_open_orphans",
    "candidate ids without an open orphan": """
SELECT count(*) FROM mailglass_open_orphan_ids AS k
 WHERE NOT EXISTS (SELECT FROM mailglass_open_orphans AS o WHERE o.event_id = k.event_id)
""",
    # Of the types that the benchmark writes; `delivered` and `opened` rank above `dispatched`, and `opened` is later.
    "deliveries that are not the fold of their events": """
SELECT count(*)
  FROM mailglass_deliveries AS d
  LEFT JOIN (
    SELECT delivery_id, min(occurred_at) FILTER (WHERE type = 'delivered') AS delivered_at, max(occurred_at) AS last_at,
           (array_agg(type ORDER BY occurred_at DESC, type DESC))[1] AS last_type
      FROM (SELECT coalesce(o.type, e.type) AS type, coalesce(o.occurred_at, e.occurred_at) AS occurred_at,
                   e.delivery_id
              FROM mailglass_events AS e
              LEFT JOIN mailglass_events AS o ON e.type = 'reconciled'
                                             AND o.id = (e.metadata ->> 'reconciled_from_event_id')::uuid
             WHERE e.delivery_id IS NOT NULL) AS linked
     WHERE type IN ('delivered', 'opened') GROUP BY delivery_id) AS f ON f.delivery_id = d.id
 WHERE (d.delivered_at, d.last_event_type, d.terminal)
       IS DISTINCT FROM (f.delivered_at, coalesce(f.last_type, 'dispatched'), f.delivered_at IS NOT NULL)
    OR f.last_at IS NOT NULL AND d.last_event_at <> f.last_at
""",
}


def check(url: str, label: str) -> None:
    """Check a database in which every orphan has its delivery, after all of them should be linked.

    Raises:
        SystemExit: An event was lost or doubled, or a delivery is wrong.
    """
    with psycopg.connect(url) as connection:
        connection.execute("SET max_parallel_workers_per_gather = 0")
        for name, statement in CHECKS.items():
            row = connection.execute(statement).fetchone()
            if row is None or row[0]:
                raise SystemExit(f"{label}: {name}: {row and row[0]}; the figures of this run are void")
