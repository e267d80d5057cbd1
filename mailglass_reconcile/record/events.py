"""Writing one event into the ledger."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import uuid7
from mailglass_reconcile.store.tables import ledger
from mailglass_reconcile.store.tables.ledger import Entry

RESERVED_KEYS = ("reconciled:", "webhook:", "send:")
"""Prefixes of the keys that this package makes itself."""


def append(
    connection: sa.Connection | Session,
    *,
    tenant_id: str,
    type: str,  # noqa: A002 - the ledger's own name for it
    occurred_at: dt.datetime,
    delivery_id: UUID | None = None,
    idempotency_key: str | None = None,
    reject_reason: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    needs_reconciliation: bool = False,
) -> UUID | None:
    """Append one event to the ledger in your transaction. No delivery changes, and nothing is broadcast.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        tenant_id: The tenant.
        type: A type, as in `WebhookEvent`.
        occurred_at: When it happened, with a time zone.
        delivery_id: The event's delivery, if known, of the same tenant.
        idempotency_key: 1 to 512 characters, not beginning with `reconciled:`, `webhook:` or `send:`. An event whose
            key the ledger has is not appended. It is stored unchanged, so it must not be an address.
        reject_reason: The reason, as in `WebhookEvent`.
        metadata: Further data, as JSON. Addresses in it are stored; long strings are shortened, as for a webhook.
        needs_reconciliation: True to let sweeps search for its delivery.

    Returns:
        The new event's id, or None if the ledger has the key already.

    Raises:
        InvalidEventError: The event cannot be recorded; nothing was written.
        MailglassReconcileError: The database refused; nothing was written. Your transaction can continue, except after
            an error that concerns all of it, such as a lost connection or a serialization failure.
        TypeError: *connection* is something else.
    """
    entry = Entry(
        id=uuid7(),
        tenant_id=validation.name("tenant_id", tenant_id),
        delivery_id=None if delivery_id is None else validation.uuid("delivery_id", delivery_id),
        type=validation.event_type("type", type),
        occurred_at=validation.utc("occurred_at", occurred_at),
        idempotency_key=_validate_key(idempotency_key),
        reject_reason=validation.reject_reason("reject_reason", reject_reason),
        metadata=validation.metadata("metadata", metadata or {}),
        needs_reconciliation=needs_reconciliation,
    )
    with failures.count_failure("an event"), use_caller_transaction(connection, runtime.get_settings()) as tx:
        try:
            is_new = ledger.append_event(tx, entry)
        except LookupError as error:
            raise InvalidEventError(str(error)) from None
    return UUID(entry.id) if is_new else None


def _validate_key(key: object) -> str | None:
    if key is None:
        return None
    text = validation.name("idempotency_key", key)
    if text.startswith(RESERVED_KEYS):
        raise InvalidEventError(f"idempotency_key must not begin with {', '.join(RESERVED_KEYS)}")
    return text
