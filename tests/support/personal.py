"""A person who is erased, and the raw webhooks that name her."""

import json

import sqlalchemy as sa

import factories
from mailglass_reconcile import erase

ADA = "ada@bücher.example"
RAW = sa.text("""
INSERT INTO mailglass_webhook_events
       (id, tenant_id, provider, provider_event_id, event_type_raw, status, raw_payload, received_at, inserted_at,
        updated_at)
VALUES (:id, :tenant_id, 'postmark', :event_id, 'Delivery', 'succeeded', CAST(:payload AS jsonb), now(), now(), now())
""")


def erased(db, recipient=ADA, **more):
    """Erase a person in a transaction of its own."""
    with db.begin() as connection:
        return erase(connection, recipient=recipient, **more)


def raw(db, payload, tenant_id=factories.TENANT, event_id=None):
    """Insert a raw webhook, and return its id."""
    id_ = factories.new_id()
    row = {"id": id_, "tenant_id": tenant_id, "payload": json.dumps(payload), "event_id": event_id or id_}
    with db.begin() as connection:
        connection.execute(RAW, row)
    return id_
