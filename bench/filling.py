"""The benchmark's data: made in the database from a seed, through the triggers, and copied from templates."""

from __future__ import annotations

import psycopg

SEED = "20240501"

DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT md5(%(seed)s || 'd' || i || '/' || c)::uuid, 'tenant-' || i %% 10, 'Mail', 'transactional',
       'u' || i || CASE WHEN c = 1 THEN '' ELSE '-' || c END || '@example.com', 'example.com',
       CASE WHEN i %% 2 = 0 THEN md5(%(seed)s || 'm' || i)::uuid::text
            ELSE left(translate(encode(sha256((%(seed)s || 's' || i)::bytea), 'base64'), '+/', '-_'), 22) END,
       'dispatched', now() - interval '1 hour', now() - interval '1 hour', now(), now()
  FROM generate_series(1, %(deliveries)s) AS i, generate_series(1, %(copies)s) AS c
"""

ORPHANS = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation,
                              inserted_at)
SELECT md5(%(seed)s || %(kind)s || i || ':' || k)::uuid,
       %(tenants)s || '-' || n %% 10, CASE WHEN k = 0 THEN 'delivered' ELSE 'opened' END,
       now() - interval '50 minutes' + k * interval '1 second', %(kind)s || ':' || i || ':' || k,
       CASE WHEN n %% 2 = 0
            THEN jsonb_build_object('provider', 'postmark', 'provider_event_id', 'x' || i || k,
                                    'record_type', 'Delivery',
                                    'message_id', md5(%(seed)s || %(kind)s || n)::uuid::text)
            ELSE jsonb_build_object('provider', 'sendgrid', 'provider_event_id', 'x' || i || k, 'event', 'delivered',
                   'sg_message_id', left(translate(encode(sha256((%(seed)s
                     || CASE %(kind)s WHEN 'm' THEN 's' ELSE %(kind)s END || n)::bytea), 'base64'), '+/', '-_'), 22)
                     || '.filter0361p1las1-11880-5978131E-23.0') END,
       true, now()::timestamp - interval '40 minutes'
             + i * (interval '1000 seconds' / greatest(%(messages)s, 1)) + k * interval '2 seconds'
  FROM generate_series(1, %(messages)s) AS i, generate_series(0, 1) AS k,
       LATERAL (SELECT CASE WHEN %(ids)s = 0 THEN i ELSE 1 + i %% greatest(%(ids)s, 1) END AS n) AS number
"""
"""Two events for each message; of kind `m` their ids are those of deliveries, of any other they are nobody's."""

NOBODYS = {"kind": "n", "tenants": "tenant"}
"""Orphans that no delivery has the ids of."""
ANOTHER_TENANTS = {"kind": "m", "tenants": "other"}
"""Orphans that only another tenant's deliveries have the ids of; with deliveries in two copies, ambiguous ones are of
kind `m` and their own tenant."""


def fill(
    url: str,
    *,
    deliveries: int = 0,
    copies: int = 1,
    messages: int = 0,
    kind: str = "m",
    tenants: str = "tenant",
    ids: int = 0,
) -> None:
    """Insert deliveries, and two orphans for each of *messages*; then vacuum.

    Args:
        url: The migrated database.
        deliveries: How many message ids have deliveries.
        copies: How many deliveries each of these ids has.
        messages: How many messages have orphans; the first *deliveries* of kind `m` match.
        kind: `m`, or another letter for ids that no delivery has.
        tenants: The orphans' tenants are this name and a digit; deliveries belong to `tenant`.
        ids: If not 0, all orphans are of so many ids.
    """
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute(DELIVERIES, {"seed": SEED, "deliveries": deliveries, "copies": copies})
        orphans = {"messages": messages, "kind": kind, "tenants": tenants, "ids": ids}
        cursor.execute(ORPHANS, {**orphans, "seed": SEED})
        connection.execute("VACUUM ANALYZE")
