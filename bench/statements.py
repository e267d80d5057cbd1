"""The baselines of a sweep: one bare statement, the same in committed batches, and one plain join."""

from __future__ import annotations

import time

import psycopg

BARE_STATEMENT = """
WITH matched AS MATERIALIZED (
  SELECT e.id, e.tenant_id, e.type, e.occurred_at, d.id AS delivery_id, e.metadata
    FROM mailglass_events AS e
   CROSS JOIN LATERAL (
           SELECT CASE e.metadata ->> 'provider' WHEN 'postmark' THEN e.metadata ->> 'message_id'
                       ELSE substr(e.metadata ->> 'sg_message_id', 1, 22) END AS message_id) AS k
    JOIN mailglass_deliveries AS d ON d.provider_message_id = k.message_id AND d.tenant_id = e.tenant_id
   WHERE e.needs_reconciliation
), appended AS (
  INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata)
  SELECT gen_random_uuid(), tenant_id, delivery_id, 'reconciled', now(), 'reconciled:' || id,
         jsonb_build_object('reconciled_from_event_id', id, 'reconciled_provider', metadata -> 'provider',
                            'reconciled_provider_event_id', metadata -> 'provider_event_id')
    FROM matched ON CONFLICT DO NOTHING RETURNING idempotency_key
), folded AS (
  SELECT m.delivery_id, min(occurred_at) FILTER (WHERE m.type = 'delivered') AS delivered_at,
         max(occurred_at) AS last_event_at, (array_agg(m.type ORDER BY occurred_at DESC))[1] AS last_event_type,
         bool_or(m.type = 'delivered') AS terminal
    FROM appended AS a JOIN matched AS m ON a.idempotency_key = 'reconciled:' || m.id GROUP BY m.delivery_id
)
UPDATE mailglass_deliveries AS d
   SET delivered_at = least(d.delivered_at, f.delivered_at), last_event_at = f.last_event_at,
       last_event_type = f.last_event_type, terminal = d.terminal OR f.terminal,
       lock_version = lock_version + 1, updated_at = now()
  FROM folded AS f WHERE f.delivery_id = d.id
"""
"""Matches, appends and projects as a sweep does, without batches, checks or concurrent sessions."""

BATCH_STATEMENT = BARE_STATEMENT.replace("WHERE e.needs_reconciliation", "WHERE e.id = ANY (CAST(%s AS uuid[]))")
BATCH_SIZE = 2_000
"""As many as a sweep links in one transaction."""
ORPHANS = "SELECT id::text FROM mailglass_events WHERE needs_reconciliation ORDER BY inserted_at"

JOIN = """
SELECT count(*)
  FROM mailglass_open_orphans AS o
  JOIN mailglass_open_orphan_ids AS k ON k.event_id = o.event_id
  JOIN mailglass_deliveries AS d ON d.provider_message_id = k.candidate_id
 WHERE o.arrived_at BETWEEN now()::timestamp - interval '7 days' AND now()::timestamp - interval '60 seconds'
"""
"""Counts the deliveries that eligible orphans name, which a sweep has to look up. The planner chooses the plan."""


def run_bare_statement(url: str) -> float:
    """Drop our triggers, run the bare statement and its commit, and return the seconds."""
    with psycopg.connect(url) as connection:
        _drop_triggers(connection)
        began = time.monotonic()
        connection.execute(BARE_STATEMENT)
        connection.commit()
        return time.monotonic() - began


def run_batches(url: str) -> float:
    """Drop our triggers, run the statement on batch after batch, each with its commit, and return the seconds."""
    # A prepared statement's plan would not know how many ids there are, and join every pair of two lists.
    with psycopg.connect(url, prepare_threshold=None) as connection:
        _drop_triggers(connection)
        began = time.monotonic()
        ids = [id_ for (id_,) in connection.execute(ORPHANS)]
        for start in range(0, len(ids), BATCH_SIZE):
            connection.execute(BATCH_STATEMENT, [f"{{{','.join(ids[start : start + BATCH_SIZE])}}}"])
            connection.commit()
        return time.monotonic() - began


def run_join(url: str) -> float:
    """Return the seconds of the plain join."""
    with psycopg.connect(url) as connection:
        connection.execute("SET jit = off")
        began = time.monotonic()
        connection.execute(JOIN)
        return time.monotonic() - began


def _drop_triggers(connection: psycopg.Connection) -> None:
    connection.execute("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    connection.execute("DROP TRIGGER mailglass_open_orphans_remove ON mailglass_events")
    connection.commit()
