"""The baselines of `record_send` and `record_webhook`, written by hand with SQLAlchemy for Mailglass's tables.

`send` and `webhook` do the same work as an experienced developer would write it: both lock the message id, so that
neither misses the other's row before its commit; a send writes its event and looks for early ones. `insert_send` and
`insert_webhook` are what stands in most applications, and leave the race open: without the lock, and a send inserts its
delivery alone. Each statement is one constant, so that SQLAlchemy compiles it once; the caller commits.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

EARLY_EVENTS_INDEX = """
CREATE INDEX early_events ON mailglass_events ((metadata ->> 'message_id')) WHERE needs_reconciliation
"""
"""What the look-up of early events needs."""

LOCKS = sa.text("""
SELECT pg_advisory_xact_lock(key)
  FROM (SELECT hashtextextended(id, 0) AS key FROM unnest(CAST(:message_ids AS text[])) AS m (id) ORDER BY key) AS k
""")
EARLY_EVENTS = sa.text("""
SELECT id FROM mailglass_events
 WHERE needs_reconciliation AND metadata ->> 'message_id' = ANY (:message_ids) AND tenant_id = :tenant
""")
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
    """Insert a delivery and a `dispatched` event for each recipient, and look for early events of the message ids.

    Raises:
        NotImplementedError: There are some; the benchmark measures sends whose webhook comes later.
    """
    _lock(session, message_ids)
    ids = insert_send(session, tenant, message_ids, recipients, at)
    events = [
        _event(tenant, delivery_id, message_id, f"{message_id}-sent", "dispatched", at)
        for delivery_id, message_id in zip(ids, message_ids, strict=True)
    ]
    session.execute(EVENT, events if len(events) > 1 else events[0])
    if session.execute(EARLY_EVENTS, {"tenant": tenant, "message_ids": list(message_ids)}).all():
        raise NotImplementedError


def insert_send(
    session: Session, tenant: str, message_ids: Sequence[str], recipients: Sequence[str], at: dt.datetime
) -> list[uuid.UUID]:
    """Insert a delivery for each recipient, and return the ids of the deliveries."""
    rows = [
        {"id": uuid.uuid4(), "tenant": tenant, "recipient": recipient, "message_id": message_id, "at": _utc(at)}
        for message_id, recipient in zip(message_ids, recipients, strict=True)
    ]
    session.execute(DELIVERY, rows if len(rows) > 1 else rows[0])
    return [row["id"] for row in rows]


def webhook(session: Session, tenant: str, message_id: str, event_id: str, at: dt.datetime) -> None:
    """Lock the message id, look the delivery up, insert the event once, and update the delivery if there is one."""
    _lock(session, [message_id])
    insert_webhook(session, tenant, message_id, event_id, at)


def insert_webhook(session: Session, tenant: str, message_id: str, event_id: str, at: dt.datetime) -> None:
    """Look the delivery up, insert the event once, and update the delivery if there is one."""
    delivery_id = session.execute(DELIVERY_OF, {"tenant": tenant, "message_id": message_id}).scalar()
    event = _event(tenant, delivery_id, message_id, event_id, "delivered", at)
    if session.execute(EVENT, event).rowcount and delivery_id:
        session.execute(PROJECTION, {"id": delivery_id, "type": "delivered", "at": _utc(at)})


def webhooks(session: Session, tenant: str, message_ids: Sequence[str], tag: str, at: dt.datetime) -> None:
    """Do the work of `webhook` for many events, with one statement of each kind for all."""
    _lock(session, message_ids)
    rows = session.execute(DELIVERIES_OF, {"tenant": tenant, "message_ids": list(message_ids)}).all()
    delivery_ids: dict[str, Any] = dict(map(tuple, rows))
    session.execute(
        EVENT, [_event(tenant, delivery_ids.get(id_), id_, f"{tag}-{id_}", "delivered", at) for id_ in message_ids]
    )
    if delivery_ids:
        session.execute(PROJECTION, [{"id": id_, "type": "delivered", "at": _utc(at)} for id_ in delivery_ids.values()])


def _lock(session: Session, message_ids: Sequence[str]) -> None:
    session.execute(LOCKS, {"message_ids": list(message_ids)})


def _event(
    tenant: str, delivery_id: Any, message_id: str, event_id: str, type_: str, at: dt.datetime
) -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "tenant": tenant,
        "delivery_id": delivery_id,
        "type": type_,
        "at": _utc(at),
        "key": f"postmark:{event_id}",
        "metadata": f'{{"provider": "postmark", "message_id": "{message_id}"}}',
        "early": delivery_id is None,
    }


def _utc(at: dt.datetime) -> dt.datetime:
    return at.astimezone(dt.UTC).replace(tzinfo=None)
