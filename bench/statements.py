"""The baselines of a sweep: one bare statement, one plain join, and Mailglass's own algorithm."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import psycopg
import redis

from bench.cpu import backend_seconds

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

JOIN = """
SELECT count(*)
  FROM mailglass_open_orphans AS o
  JOIN mailglass_open_orphan_ids AS k ON k.event_id = o.event_id
  JOIN mailglass_deliveries AS d ON d.provider_message_id = k.candidate_id
 WHERE o.arrived_at BETWEEN now()::timestamp - interval '7 days' AND now()::timestamp - interval '60 seconds'
"""
"""Counts the deliveries that eligible orphans name, which a sweep has to look up. The planner chooses the plan."""

LOOK_UP = """
SELECT id FROM mailglass_deliveries
 WHERE provider_message_id = %s AND tenant_id = %s AND (provider = %s OR provider IS NULL)
"""
APPEND = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata)
VALUES (%s, %s, %s, 'reconciled', now(), %s, jsonb_build_object('reconciled_from_event_id', %s::text))
    ON CONFLICT DO NOTHING
"""
UPDATE = """
UPDATE mailglass_deliveries
   SET last_event_type = %(type)s, last_event_at = %(at)s, terminal = terminal OR %(type)s = 'delivered',
       delivered_at = CASE WHEN %(type)s = 'delivered' THEN coalesce(delivered_at, %(at)s) ELSE delivered_at END,
       lock_version = lock_version + 1, updated_at = now()
 WHERE id = %(id)s
"""


def run_bare_statement(url: str) -> tuple[float, float]:
    """Drop our triggers, run the bare statement and its commit, and return seconds and CPU seconds of its backend."""
    with psycopg.connect(url) as connection:
        connection.execute("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
        connection.execute("DROP TRIGGER mailglass_open_orphans_remove ON mailglass_events")
        connection.commit()
        spent, began = backend_seconds(connection.info.backend_pid), time.monotonic()
        connection.execute(BARE_STATEMENT)
        connection.commit()
        seconds = time.monotonic() - began
        return seconds, backend_seconds(connection.info.backend_pid) - spent


def run_join(url: str) -> float:
    """Return the seconds of the plain join."""
    with psycopg.connect(url) as connection:
        connection.execute("SET jit = off")
        began = time.monotonic()
        connection.execute(JOIN)
        return time.monotonic() - began


def run_mailglass_algorithm(url: str, redis_url: str, sample: int) -> float:
    """Link *sample* orphans as Mailglass does, a look-up and a transaction each, and return orphans a second."""
    client = redis.Redis.from_url(redis_url)
    with psycopg.connect(url, autocommit=True) as connection:
        orphans = connection.execute(
            "SELECT id, tenant_id, type, occurred_at, metadata FROM mailglass_events"
            " WHERE needs_reconciliation ORDER BY inserted_at LIMIT %s",
            [sample],
        ).fetchall()
        began = time.monotonic()
        for orphan in orphans:
            _link(connection, client, *orphan)
        return len(orphans) / (time.monotonic() - began)


def _link(
    connection: psycopg.Connection,
    client: redis.Redis,
    orphan: uuid.UUID,
    tenant: str,
    type_: str,
    at: Any,
    metadata: Any,
) -> None:
    message_id = metadata.get("message_id") or metadata["sg_message_id"][:22]
    delivery = connection.execute(LOOK_UP, [message_id, tenant, metadata["provider"]]).fetchone()
    if delivery is None:
        return
    with connection.transaction():
        connection.execute(APPEND, [uuid.uuid4(), tenant, delivery[0], f"reconciled:{orphan}", str(orphan)])
        connection.execute(UPDATE, {"type": type_, "at": at, "id": delivery[0]})
    for channel in (f"mailglass:events:{tenant}", f"mailglass:events:{tenant}:{delivery[0]}"):
        client.publish(channel, json.dumps({"event": "delivery_updated", "delivery_id": str(delivery[0])}))
