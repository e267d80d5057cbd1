"""Writing events: one by one, or those of a webhook, each to its delivery or as an orphan.

Everything happens in the caller's transaction and is committed, or not, with it. No address goes into the ledger,
which can never be erased: what an event knows of its recipient is kept with the open orphan and goes with it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.store import candidates, ledger
from mailglass_reconcile.store.database import Transaction, borrowed
from mailglass_reconcile.store.model import Report
from mailglass_reconcile.sweep import keys, match

ADDRESS_KEYS = frozenset({"recipient", "email"})
MAX_PROVIDER_EVENT_ID = 400
"""Characters; with provider and index, the idempotency key stays within Mailglass's 512."""

_NOT_PRINTABLE_ASCII = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """One event of a provider's webhook.

    Attributes:
        type: Anymail's name of it: `delivered`, `bounced`, `opened`, …
        occurred_at: When the provider says it happened, with a time zone.
        provider_event_id: The provider's id of this event, or of the webhook that carried it.
        message_id: The provider's id of the message, as the webhook has it.
        recipient: Whom it is about, if known; tells deliveries of one message apart, and is not put into the ledger.
        reject_reason: `invalid`, `bounced`, `timed_out`, `blocked`, `spam`, `unsubscribed`, `other`, or None.
        metadata: What else to keep, as JSON; `recipient` and `email` are left out.
    """

    type: str
    occurred_at: dt.datetime
    provider_event_id: str
    message_id: str | None
    recipient: str | None = field(default=None, repr=False)
    reject_reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Recorded(NamedTuple):
    """What became of an event: its id and its delivery's; no delivery is an orphan, no id was known already."""

    event_id: UUID | None
    delivery_id: UUID | None


def append(
    connection: sa.Connection,
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
    """Append one event to the ledger, in the caller's transaction; project nothing.

    Args:
        connection: In a transaction.
        tenant_id: The tenant.
        type: The event's type.
        occurred_at: When it happened, with a time zone.
        delivery_id: Its delivery, if known.
        idempotency_key: A key under which it is appended once.
        reject_reason: Why a message was rejected or bounced.
        metadata: What to keep with it, as JSON.
        needs_reconciliation: True for an orphan, whose delivery a sweep is to find.

    Returns:
        The new event's id, or None where the key was in the ledger already.

    Raises:
        InvalidEventError: A time without a time zone.
        DBAPIError: What the database refuses.
    """
    with borrowed(connection, runtime.get_settings()) as tx:
        event_id = ledger.append(
            tx,
            tenant_id=tenant_id,
            delivery_id=None if delivery_id is None else str(delivery_id),
            type=type,
            occurred_at=_as_utc(occurred_at),
            idempotency_key=idempotency_key,
            reject_reason=reject_reason,
            metadata=metadata or {},
            needs_reconciliation=needs_reconciliation,
        )
    return UUID(event_id) if event_id else None


def record_webhook(
    connection: sa.Connection, *, tenant_id: str, provider: str, events: Iterable[WebhookEvent]
) -> list[Recorded]:
    """Record a webhook's events: each goes to its delivery, which is brought up to date, or stays an orphan.

    A delivery is found by the same rule as by a sweep. A webhook that comes twice is recorded once: the
    idempotency key is Mailglass's, `{provider}:{provider_event_id}:{index}`.

    Args:
        connection: In a transaction, which decides whether any of it is kept.
        tenant_id: The tenant that the webhook belongs to.
        provider: The provider's name as it stands, or would stand, in `mailglass_deliveries.provider`.
        events: The webhook's events, in its order.

    Returns:
        What became of each, in the same order.

    Raises:
        InvalidEventError: An event, or the provider's name, cannot be recorded; nothing was written.
        DBAPIError: What the database refuses.
    """
    if not keys.is_usable(provider.strip()):
        raise InvalidEventError("provider must be a text of 1 to 512 characters without control characters")
    prepared = [
        (event, idempotency_key(provider, event.provider_event_id, index), _as_utc(event.occurred_at))
        for index, event in enumerate(events)
    ]
    with borrowed(connection, runtime.get_settings()) as tx:
        return [_record(tx, tenant_id, provider, *each) for each in prepared]


def idempotency_key(provider: str, provider_event_id: str, index: int) -> str:
    """Return Mailglass's key of a webhook's *index*-th event: `{provider}:{provider_event_id}:{index}`.

    As there, characters outside printable ASCII are left out.

    Raises:
        InvalidEventError: *provider_event_id* is empty, or longer than 400 characters.
    """
    event_id = _NOT_PRINTABLE_ASCII.sub("", provider_event_id)
    if not 0 < len(event_id) <= MAX_PROVIDER_EVENT_ID:
        raise InvalidEventError("provider_event_id must have 1 to 400 printable ASCII characters")
    return f"{_NOT_PRINTABLE_ASCII.sub('', provider)[:100]}:{event_id}:{index}"


def _record(
    tx: Transaction, tenant_id: str, provider: str, event: WebhookEvent, key: str, occurred_at: str
) -> Recorded:
    wanted = keys.keys_of_text(provider, event.message_id, event.recipient)
    found = match.decide(tx, tenant_id, wanted)
    kept = {name: value for name, value in event.metadata.items() if name not in ADDRESS_KEYS}
    event_id = ledger.append(
        tx,
        tenant_id=tenant_id,
        delivery_id=found.delivery_id,
        type=event.type,
        occurred_at=occurred_at,
        idempotency_key=key,
        reject_reason=event.reject_reason,
        metadata={
            **kept,
            "provider": provider,
            "provider_event_id": event.provider_event_id,
            "provider_message_id": event.message_id,
        },
        needs_reconciliation=found.delivery_id is None,
    )
    if event_id is None:
        return Recorded(None, None)
    if found.delivery_id is None:
        candidates.remember(tx, tenant_id, {event_id: wanted})
        return Recorded(UUID(event_id), None)
    now = projector.lock(tx, found.delivery_id)
    projector.project(tx, [Report(found.delivery_id, event.type, occurred_at, now)])
    return Recorded(UUID(event_id), UUID(found.delivery_id))


def _as_utc(time: dt.datetime) -> str:
    if time.tzinfo is None:
        raise InvalidEventError("occurred_at must have a time zone")
    return time.astimezone(dt.UTC).replace(tzinfo=None).isoformat()
