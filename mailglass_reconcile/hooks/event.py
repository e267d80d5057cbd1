"""What a handler is told."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEvent:
    """An event and the delivery that it belongs to.

    Attributes:
        event_id: The event's id in the ledger, the same at every attempt: an idempotency key for what cannot be rolled
            back. For an event that a sweep linked, it is the orphan's, not the `reconciled` event's.
        type: The event's own type, such as `bounced`.
        occurred_at: When the provider says it happened, in UTC.
        tenant_id: The tenant.
        delivery_id: Its delivery.
        provider: The provider's canonical name, if known.
        message_id: The provider's id of the message, as the delivery has it.
        recipient: The delivery's address, read now and stored nowhere else; None if the delivery is gone.
        reject_reason: Why a message was rejected or bounced, if known.
        attempt: 1 for the first.
    """

    event_id: UUID
    type: str
    occurred_at: dt.datetime
    tenant_id: str
    delivery_id: UUID
    provider: str | None
    message_id: str | None
    recipient: str | None = field(repr=False)
    reject_reason: str | None
    attempt: int
