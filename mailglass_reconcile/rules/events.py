"""The two event classes of the public API: `WebhookEvent` for writers and `DeliveryEvent` for handlers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

STREAMS = ("transactional", "operational", "bulk")
"""Kinds of mail; every delivery has one."""

Bounce = Literal["hard", "soft"]
"""`hard` if an address will never accept mail, `soft` if it did not accept this message now."""
BOUNCES: tuple[Bounce, ...] = ("hard", "soft")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """One event of a provider's webhook.

    Attributes:
        type: Anymail's name for it, such as `delivered` or `bounced`; `docs/event-types.md` lists all.
        occurred_at: The provider's time, with a time zone.
        provider_event_id: The provider's id of this event, or of the webhook that carried it.
        message_id: The provider's id of the message.
        recipient: The address, if known. It distinguishes deliveries of one message. The ledger does not store it.
        reject_reason: `invalid`, `bounced`, `timed_out`, `blocked`, `spam`, `unsubscribed`, `other`, or None.
        bounce: `hard` if the address will never accept mail, `soft` if it did not accept this message, None if
            unknown.
        smtp_status: The SMTP reply. Its codes are stored, such as `550 5.1.1`.
        smtp_message_id: The Message-ID header, or another id from the provider's SMTP server. It is tried last.
        metadata: Further data, as JSON of at most 65,536 bytes, without `recipient` and `email`. A `bounce` or
            `smtp_status` in it counts if that field is None.
    """

    type: str
    occurred_at: dt.datetime
    provider_event_id: str | int
    message_id: str | int | None
    recipient: str | None = field(default=None, repr=False)
    reject_reason: str | None = None
    bounce: Bounce | None = None
    smtp_status: str | None = None
    smtp_message_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEvent:
    """An event and the delivery that it belongs to.

    Attributes:
        event_id: The event's id, the same at every attempt: use it as idempotency key. For an event that a sweep
            linked, it is the orphan's id, not that of the `reconciled` event.
        type: The event's own type, such as `bounced`.
        occurred_at: The provider's time, in UTC.
        tenant_id: The tenant.
        delivery_id: Its delivery.
        provider: The provider's canonical name, if known.
        message_id: The provider's id of the message, as in the delivery.
        recipient: The delivery's address, read for this attempt; None if the delivery or the address was erased.
        reject_reason: Why a message was rejected or bounced, if known.
        bounce: `hard` if the address will never accept mail: suppress it. `soft` if it did not accept this message,
            such as with a full mailbox. None if unknown.
        smtp_status: The codes of the SMTP reply, such as `550 5.1.1`, if known.
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
    bounce: Bounce | None = None
    smtp_status: str | None = None
    attempt: int
