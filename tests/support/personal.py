"""Erasure of a person, and raw webhooks that name her."""

import factories
import raw_webhooks
from mailglass_reconcile import erase

ADA = "ada@bücher.example"


def erase_person(db, recipient=ADA, **more):
    """Erase a person in a transaction of its own."""
    with db.begin() as connection:
        return erase(connection, recipient=recipient, **more)


def raw(db, payload, tenant_id=factories.TENANT, event_id=None):
    """Insert a raw webhook, and return its id."""
    id_ = factories.new_id()
    raw_webhooks.insert(db, payload, id_=id_, tenant_id=tenant_id, event_id=event_id or id_)
    return id_
