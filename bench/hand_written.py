"""The baseline of `record_send` and `record_webhook`: the same work, written by hand with SQLAlchemy.

This is what an experienced developer would write for Mailglass's tables without this package: look the delivery up,
insert once, update. Each statement is one constant, so that SQLAlchemy compiles it once; the caller commits.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

DELIVERY = sa.text("""
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
       provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
VALUES (:id, :tenant, 'Mail', 'transactional', :recipient, 'example.com', 'postmark', :message_id, 'dispatched', :at,
        :at, now(), now())
    ON CONFLICT (provider, provider_message_id) WHERE provider_message_id IS NOT NULL DO NOTHING
""")
DELIVERY_OF = sa.text("""
SELECT id FROM mailglass_deliveries
 WHERE tenant_id = :tenant AND provider = 'postmark' AND provider_message_id = :message_id
""")
DELIVERIES_OF = sa.text("""
SELECT provider_message_id, id FROM mailglass_deliveries
 WHERE tenant_id = :tenant AND provider = 'postmark' AND provider_message_id = ANY (:message_ids)
""")
EVENT = sa.text("""
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata,
                              needs_reconciliation, inserted_at)
VALUES (:id, :tenant, :delivery_id, :type, :at, :key, CAST(:metadata AS jsonb), :early, now())
    ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
""")
PROJECTION = sa.text("""
UPDATE mailglass_deliveries
   SET last_event_type = :type, last_event_at = greatest(last_event_at, :at),
       delivered_at = least(delivered_at, :at), terminal = true, lock_version = lock_version + 1, updated_at = now()
 WHERE id = :id
""")


def send(session: Session, tenant: str, message_ids: Sequence[str], recipients: Sequence[str], at: dt.datetime) -> None:
    """Insert a delivery for each recipient."""
    rows = [
        {"id": uuid.uuid4(), "tenant": tenant, "recipient": recipient, "message_id": message_id, "at": _utc(at)}
        for message_id, recipient in zip(message_ids, recipients, strict=True)
    ]
    session.execute(DELIVERY, rows if len(rows) > 1 else rows[0])


def webhook(session: Session, tenant: str, message_id: str, event_id: str, at: dt.datetime) -> None:
    """Look the delivery up, insert the event once, and update the delivery if there is one."""
    delivery_id = session.execute(DELIVERY_OF, {"tenant": tenant, "message_id": message_id}).scalar()
    if session.execute(EVENT, _event(tenant, delivery_id, message_id, event_id, at)).rowcount and delivery_id:
        session.execute(PROJECTION, {"id": delivery_id, "type": "delivered", "at": _utc(at)})


def webhooks(session: Session, tenant: str, message_ids: Sequence[str], tag: str, at: dt.datetime) -> None:
    """Do the same for many events, with one statement of each kind for all."""
    rows = session.execute(DELIVERIES_OF, {"tenant": tenant, "message_ids": list(message_ids)}).all()
    delivery_ids: dict[str, Any] = dict(map(tuple, rows))
    session.execute(EVENT, [_event(tenant, delivery_ids.get(id_), id_, f"{tag}-{id_}", at) for id_ in message_ids])
    if delivery_ids:
        session.execute(PROJECTION, [{"id": id_, "type": "delivered", "at": _utc(at)} for id_ in delivery_ids.values()])


def _event(tenant: str, delivery_id: Any, message_id: str, event_id: str, at: dt.datetime) -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "tenant": tenant,
        "delivery_id": delivery_id,
        "type": "delivered",
        "at": _utc(at),
        "key": f"postmark:{event_id}",
        "metadata": f'{{"provider": "postmark", "message_id": "{message_id}"}}',
        "early": delivery_id is None,
    }


def _utc(at: dt.datetime) -> dt.datetime:
    return at.astimezone(dt.UTC).replace(tzinfo=None)
