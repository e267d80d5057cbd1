"""Rows as Mailglass and other writers store them, inserted by plain SQL."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import sqlalchemy as sa

from database_pool import Uncommitted

TENANT = "acme"
RECIPIENT = "Ada@Example.com"
WIDE = 10
"""Of an id that names more deliveries than this, a look-up reads only those that decide for an event."""

_DELIVERY = sa.text("""
INSERT INTO mailglass_deliveries
       (id, tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id,
        last_event_type, last_event_at, terminal, dispatched_at, delivered_at, lock_version, inserted_at, updated_at)
VALUES (CAST(:id AS uuid), :tenant_id, :mailable, 'transactional', :recipient, 'example.com', :provider, :message_id,
        :last_event_type, CAST(:last_event_at AS timestamp), :terminal, CAST(:dispatched_at AS timestamp),
        CAST(:delivered_at AS timestamp), :lock_version,
        (now() AT TIME ZONE 'UTC') - make_interval(secs => CAST(:age_seconds AS float8)),
        (now() AT TIME ZONE 'UTC') - make_interval(secs => CAST(:age_seconds AS float8)))
""")

_EVENT = sa.text("""
INSERT INTO mailglass_events
       (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, normalized_payload, metadata,
        needs_reconciliation, inserted_at)
VALUES (CAST(:id AS uuid), :tenant_id, CAST(:delivery_id AS uuid), :type,
        coalesce(CAST(:occurred_at AS timestamp),
                 (now() AT TIME ZONE 'UTC') - make_interval(secs => CAST(:age_seconds AS float8) + 30)),
        :idempotency_key, :reject_reason, CAST(:normalized_payload AS jsonb), CAST(:metadata AS jsonb),
        :needs_reconciliation, (now() AT TIME ZONE 'UTC') - make_interval(secs => CAST(:age_seconds AS float8)))
""")


def new_id() -> str:
    """Return a new id."""
    return str(uuid.uuid4())


def uuid7(seconds_ago: float) -> str:
    """Return a new UUIDv7 of some time ago, as Mailglass's ledger has them."""
    random = uuid.uuid4().int % 2**76
    ms = time.time_ns() // 10**6 - int(1_000 * seconds_ago)
    return str(uuid.UUID(int=ms << 80 | 7 << 76 | (random & ~(3 << 62)) | 2 << 62))


def delivery_row(message_id: str | None = None, **columns: Any) -> dict[str, Any]:
    """Return a delivery as Mailglass's send path writes it: dispatched, and without a provider."""
    return {
        "id": new_id(),
        "tenant_id": TENANT,
        "mailable": "Welcome",
        "recipient": RECIPIENT,
        "provider": None,
        "message_id": message_id,
        "last_event_type": "dispatched",
        "last_event_at": "2026-01-02 03:04:05",
        "terminal": False,
        "dispatched_at": "2026-01-02 03:04:05",
        "delivered_at": None,
        "lock_version": 1,
        "age_seconds": 240,
        **columns,
    }


def orphan_row(metadata: Any, **columns: Any) -> dict[str, Any]:
    """Return an orphan that arrived five minutes ago, with any JSON value as its metadata."""
    row = {
        "id": uuid7(columns.get("age_seconds", 300)),
        "tenant_id": TENANT,
        "delivery_id": None,
        "type": "delivered",
        "occurred_at": None,
        "age_seconds": 300,
        "idempotency_key": None,
        "reject_reason": None,
        "normalized_payload": {},
        "needs_reconciliation": True,
        **columns,
    }
    return {
        **row,
        "metadata": json.dumps(metadata),
        "normalized_payload": json.dumps(row["normalized_payload"]),
    }


def insert(db: Any, deliveries: Iterable[Mapping[str, Any]] = (), events: Iterable[Mapping[str, Any]] = ()) -> None:
    """Insert rows in one transaction in UTC; if *db* is `tx` or a connection, in its transaction."""
    connection = db.connection if isinstance(db, Uncommitted) else db
    with nullcontext(connection) if isinstance(connection, sa.Connection) else db.engine.begin() as connection:
        for statement, rows in ((_DELIVERY, list(deliveries)), (_EVENT, list(events))):
            if rows:
                connection.execute(statement, rows)


def delivery(db: Any, message_id: str | None = None, **columns: Any) -> str:
    """Insert one delivery, and return its id."""
    row = delivery_row(message_id, **columns)
    insert(db, deliveries=[row])
    return row["id"]


def orphan(db: Any, metadata: Any, **columns: Any) -> str:
    """Insert one orphan, and return its id."""
    row = orphan_row(metadata, **columns)
    insert(db, events=[row])
    return row["id"]


def insert_pairs(db: Any, messages: int | Iterable[str], tenant_id: str = TENANT, **orphan: Any) -> list[str]:
    """Insert a delivery and an orphan of each message in one transaction, and return the message ids.

    Args:
        db: As `insert` takes it.
        messages: Message ids, or how many new ones.
        tenant_id: Of both.
        orphan: Further columns of the orphans.
    """
    ids = [new_id() for _ in range(messages)] if isinstance(messages, int) else list(messages)
    deliveries = [delivery_row(id_, tenant_id=tenant_id) for id_ in ids]
    insert(db, deliveries, [orphan_row(postmark(id_), tenant_id=tenant_id, **orphan) for id_ in ids])
    return ids


def postmark(message_id: object, **more: object) -> dict[str, object]:
    """Return the metadata that Mailglass stores of a Postmark webhook."""
    return {
        "provider": "postmark",
        "provider_event_id": f"Delivery:{message_id}",
        "record_type": "Delivery",
        "message_id": message_id,
        **more,
    }


def sendgrid(sg_message_id: object, **more: object) -> dict[str, object]:
    """Return the metadata that Mailglass stores of a SendGrid webhook."""
    return {
        "provider": "sendgrid",
        "provider_event_id": "ZGVsaXZlcmVk",
        "event": "delivered",
        "sg_message_id": sg_message_id,
        **more,
    }


def reconciled_row(orphan_id: str, delivery_id: str | None, **columns: Any) -> dict[str, Any]:
    """Return a `reconciled` event as another reconciler would append it."""
    return orphan_row(
        {"reconciled_from_event_id": orphan_id},
        type="reconciled",
        delivery_id=delivery_id,
        idempotency_key=f"reconciled:{orphan_id}",
        needs_reconciliation=False,
        age_seconds=0,
        **columns,
    )
