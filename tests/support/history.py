"""A live ledger before our tables are made, and writers that go on meanwhile."""

import threading
import uuid

import psycopg
import redis

import mailglass_reconcile
from catalog import Installation
from waiting import PATIENCE

ORPHAN = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at, metadata)
VALUES ('{id}', 'acme', 'delivered', now(), true, (now() AT TIME ZONE 'UTC') - interval '{age}',
        '{{"provider": "postmark", "message_id": "m-1"}}')
"""
RECONCILED = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key)
VALUES (gen_random_uuid(), 'acme', gen_random_uuid(), 'reconciled', now(), 'reconciled:{id}')
"""
DELIVERY = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
VALUES (gen_random_uuid(), 'acme', 'W', 'transactional', 'a@example.com', 'example.com', 'm-1', 'dispatched',
        now(), now(), now())
"""
WEBHOOK = """
INSERT INTO mailglass_webhook_events (id, tenant_id, provider, provider_event_id, event_type_raw, status,
                                      raw_payload, received_at, inserted_at, updated_at)
VALUES (gen_random_uuid(), 'acme', 'postmark', gen_random_uuid(), 'Delivery', 'succeeded', '{}', now(), now(), now())
"""


def new_id() -> str:
    """Return a new id."""
    return str(uuid.uuid4())


def insert_history(database: Installation) -> tuple[str, str, str]:
    """Insert the rows of a live ledger; return an open orphan, a reconciled one and an expired one."""
    still_open, settled, expired = new_id(), new_id(), new_id()
    for id_, age in ((still_open, "1 hour"), (settled, "1 hour"), (expired, "8 days")):
        database.run(ORPHAN.format(id=id_, age=age))
    database.run(RECONCILED.format(id=settled))
    database.run(DELIVERY)
    database.run(WEBHOOK)
    return still_open, settled, expired


def sweep(database: Installation, redis_url: str) -> int:
    """Sweep a schema, and return the number of linked orphans."""
    redis_client = redis.Redis.from_url(redis_url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)
    mailglass_reconcile.configure(engine=database.engine, settings=database.settings, redis=redis_client)
    try:
        return mailglass_reconcile.reconcile().linked
    finally:
        mailglass_reconcile.configure()
        redis_client.close()


def write_until(stop: threading.Event, database: Installation, written: list[int]) -> None:
    """Write events as Mailglass does until told to stop, each in a transaction with a lock timeout of 500 ms."""
    with psycopg.connect(database.settings.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute("SET lock_timeout = '500ms'")
        while not stop.is_set():
            with connection.transaction():
                connection.execute(ORPHAN.format(id=new_id(), age="1 minute"))
                connection.execute(WEBHOOK)
            written.append(1)
