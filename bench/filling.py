"""The data of the benchmark: made in the database by a seed, and copied from templates."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

SEED = 20_240_501

DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT md5(%(seed)s || 'd' || i)::uuid, 'tenant-' || i %% 10, 'Mail', 'transactional', 'u' || i || '@example.com',
       'example.com',
       CASE WHEN i %% 2 = 0 THEN md5(%(seed)s || 'm' || i)::uuid::text
            ELSE left(translate(encode(sha256((%(seed)s || 's' || i)::bytea), 'base64'), '+/', '-_'), 22) END,
       'dispatched', now() - interval '1 hour', now() - interval '1 hour', now(), now()
  FROM generate_series(1, %(deliveries)s) AS i
"""

ORPHANS = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation,
                              inserted_at)
SELECT md5(%(seed)s || %(kind)s || i || ':' || k)::uuid, 'tenant-' || i %% 10,
       CASE WHEN k = 0 THEN 'delivered' ELSE 'opened' END,
       now() - interval '50 minutes' + k * interval '1 second', %(kind)s || ':' || i || ':' || k,
       CASE WHEN i %% 2 = 0
            THEN jsonb_build_object('provider', 'postmark', 'provider_event_id', 'x' || i || k,
                                    'record_type', 'Delivery',
                                    'message_id', md5(%(seed)s || %(kind)s || i)::uuid::text)
            ELSE jsonb_build_object('provider', 'sendgrid', 'provider_event_id', 'x' || i || k, 'event', 'delivered',
                   'sg_message_id', left(translate(encode(sha256((%(seed)s
                     || CASE %(kind)s WHEN 'm' THEN 's' ELSE %(kind)s END || i)::bytea), 'base64'), '+/', '-_'), 22)
                     || '.filter0361p1las1-11880-5978131E-23.0') END
         || CASE WHEN %(padding)s = 0 THEN '{}'::jsonb ELSE jsonb_build_object('blob', repeat('x', %(padding)s)) END,
       true, now()::timestamp - interval '40 minutes'
             + i * (interval '1000 seconds' / greatest(%(messages)s, 1)) + k * interval '2 seconds'
  FROM generate_series(1, %(messages)s) AS i, generate_series(0, 1) AS k
"""
"""Two events per message, two seconds apart; of kind `m` they match, of any other they never do."""

CAMPAIGN = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT md5(%(seed)s || 'c' || i)::uuid, 'tenant-1', 'News', 'bulk', 'u' || i || '@example.com', 'example.com',
       '7' || CASE WHEN %(one_id)s THEN 0 ELSE i END, 'dispatched', now() - interval '1 hour',
       now() - interval '1 hour', now(), now()
  FROM generate_series(1, %(deliveries)s) AS i
"""

CAMPAIGN_EVENTS = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT md5(%(seed)s || 'ce' || i)::uuid, 'tenant-1', 'delivered', now() - interval '50 minutes',
       jsonb_build_object('provider', 'sparkpost', 'provider_event_id', 'x' || i,
                          'recipient', 'u' || i || '@example.com',
                          'transmission_id', '7' || CASE WHEN %(one_id)s THEN 0 ELSE i END),
       true, now()::timestamp - interval '40 minutes' + i * interval '1 millisecond'
  FROM generate_series(1, %(orphans)s) AS i
"""

RECONCILED = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, inserted_at)
SELECT gen_random_uuid(), tenant_id, gen_random_uuid(), 'reconciled', now(), 'reconciled:' || id, inserted_at
  FROM mailglass_events WHERE needs_reconciliation
"""


def fill(url: str, *, deliveries: int = 0, messages: int = 0, kind: str = "m", padding: int = 0) -> None:
    """Insert deliveries, and two orphans for each of *messages*, through the triggers; then vacuum.

    Args:
        url: The migrated database.
        deliveries: How many deliveries.
        messages: How many messages have orphans; the first *deliveries* of kind `m` match.
        kind: `m`, or another letter for ids that no delivery has.
        padding: Characters of further metadata in each orphan.
    """
    values: dict[str, Any] = {"seed": str(SEED), "deliveries": deliveries, "messages": messages, "kind": kind}
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute(DELIVERIES, values)
        cursor.execute(ORPHANS, {**values, "padding": padding})
        cursor.execute("VACUUM ANALYZE")


def fill_campaign(url: str, deliveries: int, orphans: int, *, one_id: bool) -> None:
    """Insert deliveries of one tenant, and events of the first of them, under one message id or each its own.

    Args:
        url: The migrated database.
        deliveries: How many deliveries, each to another recipient.
        orphans: For how many of them there is an event, which names its recipient.
        one_id: Whether all of them have the same message id.
    """
    values: dict[str, Any] = {"seed": str(SEED), "deliveries": deliveries, "orphans": orphans, "one_id": one_id}
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute(CAMPAIGN, values)
        cursor.execute(CAMPAIGN_EVENTS, values)
        cursor.execute("VACUUM ANALYZE")


def middle(url: str) -> str:
    """Return the time until which half of the open orphans arrived."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY arrived_at)::text FROM mailglass_open_orphans"
        ).fetchall()[0]
    return str(row[0])


def fill_reconciled(url: str, orphans: int) -> None:
    """Insert orphans that are reconciled already, with the triggers off, because they would cancel each other out."""
    values: dict[str, Any] = {"seed": str(SEED), "messages": orphans // 2, "kind": "r", "padding": 0}
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(ORPHANS, values)
        cursor.execute(RECONCILED)
        cursor.execute("VACUUM ANALYZE")


def database(server: str, name: str, template: str = "template1") -> str:
    """Make a database as a copy of *template*, and return its URL."""
    with psycopg.connect(server, autocommit=True) as connection:
        drop(server, name)
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        connection.execute("CHECKPOINT")
    return server.replace("/postgres?", f"/{name}?")


def drop(server: str, name: str) -> None:
    """Drop a database if it is there."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
