"""django-anymail: its tracking events as `WebhookEvent`, its send status as `Sent`.

Two functions for receivers of your own; they need neither Django's settings nor a database. `docs/django.md` has the
table of providers.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

from mailglass_reconcile.record.sends import Sent
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import formats, registry, wire

if TYPE_CHECKING:
    from anymail.message import AnymailRecipientStatus, AnymailStatus
    from anymail.signals import AnymailTrackingEvent
    from django.core.mail import EmailMessage

_REFUSED = ("rejected", "invalid")
_ENDED = (*_REFUSED, "failed")


def webhook_event(event: AnymailTrackingEvent, esp_name: str) -> WebhookEvent:
    """Return a tracking event of Anymail as `record_webhook` takes it; a retry of the webhook gives the same id.

    The provider's own payload is read as `parse` reads it, and if that is not possible, Anymail's values count. The
    message id is always Anymail's, because the send was recorded under it. Of Anymail's further data, only tags are
    kept.

    Args:
        event: The signal's `event`.
        esp_name: The signal's `esp_name`: the provider.
    """
    provider = providers.canonical(esp_name)
    began = dt.datetime.now(dt.UTC)
    made = _as_anymail_reads(event)
    own = _as_parse_reads(event, provider)
    if own is not None:
        made = replace(
            own,
            message_id=own.message_id if made.message_id is None else made.message_id,
            # An event without a time happens now, but Anymail may know when SNS was notified of it.
            occurred_at=made.occurred_at if own.occurred_at >= began else own.occurred_at,
        )
    formats.identify_or_warn(provider, made)
    return made


def _as_anymail_reads(event: AnymailTrackingEvent) -> WebhookEvent:
    payload = event.esp_event or [event.event_type, event.message_id, event.recipient, event.timestamp]
    return wire.build_event(
        payload,
        type=event.event_type,
        at=_aware(event.timestamp),
        id=event.event_id,
        message_id=event.message_id,
        recipient=event.recipient,
        reason=event.reject_reason,
        tags=event.tags,
    )


def _as_parse_reads(event: AnymailTrackingEvent, provider: str) -> WebhookEvent | None:
    """Return what our record makes of the payload for Anymail's recipient, or None if it cannot read it.

    Anymail's id of an event counts where it is that of the webhook: of Svix, or of SNS's notification.
    """
    try:
        record = registry.get_provider(provider)
        read = list(record.read(event.esp_event, event.event_id if record.request_id else None))
    except Exception:  # there is no payload or no reader, or Anymail passes another part of the request on
        return None
    found = [one for one in read if one.message_id is not None or one.recipient is not None]
    if len(found) > 1:  # Anymail makes one event for each recipient, too
        wanted = address(event.recipient or "")
        found = [one for one in found if one.recipient is not None and address(one.recipient) == wanted]
    return found[0] if found else None


def sent(message: EmailMessage, status: AnymailStatus) -> list[Sent]:
    """Return the result of a send for each recipient, as `record_send` takes it.

    A recipient without a message id is left out, unless it was refused or has failed, because no event could name it.

    Args:
        message: The signal's `message`; it is not read.
        status: `message.anymail_status`, or the signal's `status`.
    """
    return [
        Sent(recipient=recipient, message_id=one.message_id, type=_sent_type(one))
        for recipient, one in status.recipients.items()
        if one.message_id is not None or one.status in _ENDED
    ]


def _sent_type(one: AnymailRecipientStatus) -> str:
    if one.status in _REFUSED:
        return "rejected"
    return "failed" if one.status == "failed" else "dispatched"


def _aware(timestamp: dt.datetime | None) -> dt.datetime | None:
    return timestamp.replace(tzinfo=dt.UTC) if timestamp and timestamp.utcoffset() is None else timestamp
