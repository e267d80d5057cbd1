"""Convert django-anymail's tracking events to `WebhookEvent`, and its send status to `Sent`.

Both functions are for your own receivers of signals; they need neither Django's settings nor a database:

    @receiver(post_send)
    def record_sent(message, status, esp_name, **kwargs):
        try:
            with engine.begin() as connection:
                recorded = record_send(connection, provider=esp_name, sent=sent(message, status))
        except MailglassReconcileError:  # the mail has been sent: do not raise
            logging.exception("a send was not recorded")
        else:
            broadcast(recorded)

    @receiver(tracking)
    def record_tracking(event, esp_name, **kwargs):
        with engine.begin() as connection:  # if this raises, Django returns 500 and the provider sends it again
            recorded = record_webhook(connection, provider=esp_name, events=[webhook_event(event, esp_name)])
        broadcast(recorded)

To store more than an event's tags, replace its metadata: `dataclasses.replace(recordable, metadata={…})`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import mailglass_reconcile.receiver  # noqa: F401 - it counts warnings of formats
from mailglass_reconcile.providers import formats, registry, wire
from mailglass_reconcile.record.sends import Sent
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.events import WebhookEvent

if TYPE_CHECKING:
    from anymail.message import AnymailRecipientStatus, AnymailStatus
    from anymail.signals import AnymailTrackingEvent
    from django.core.mail import EmailMessage

_REJECTED_STATUSES = ("rejected", "invalid")
_FINAL_STATUSES = (*_REJECTED_STATUSES, "failed")


def webhook_event(event: AnymailTrackingEvent, esp_name: str) -> WebhookEvent:
    """Convert a tracking event of Anymail for `record_webhook`; a repeated webhook gives the same event id.

    The event is read from the provider's payload, as `parse` does, or from Anymail's values if that is not possible.
    Of Anymail's further data, only tags are kept.

    Args:
        event: The signal's `event`.
        esp_name: The signal's `esp_name`: the provider.
    """
    provider = provider_rules.canonical(esp_name)
    started = dt.datetime.now(dt.UTC)
    converted = _from_anymail(event)
    parsed = _from_payload(event, provider)
    if parsed is not None:
        converted = replace(
            parsed,
            message_id=parsed.message_id if converted.message_id is None else converted.message_id,
            # An event without a time happens now, but Anymail may know the time of SNS's notification.
            occurred_at=converted.occurred_at if parsed.occurred_at >= started else parsed.occurred_at,
        )
    formats.identify_or_warn(provider, converted)
    return converted


def _from_anymail(event: AnymailTrackingEvent) -> WebhookEvent:
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


def _from_payload(event: AnymailTrackingEvent, provider: str) -> WebhookEvent | None:
    """Return the event of Anymail's recipient as our provider's definition reads the payload, or None.

    Anymail's event id is used where it is the webhook's: that of Svix, or of SNS's notification.
    """
    try:
        definition = registry.get_provider(provider)
        events = list(definition.read(event.esp_event, event.event_id if definition.request_id else None))
    except Exception:  # there is no payload or no definition, or Anymail passes another part of the request
        return None
    events = [parsed for parsed in events if parsed.message_id is not None or parsed.recipient is not None]
    if len(events) > 1:  # Anymail makes one event for each recipient too
        recipient = normalize_address(event.recipient or "")
        events = [
            parsed
            for parsed in events
            if parsed.recipient is not None and normalize_address(parsed.recipient) == recipient
        ]
    return events[0] if events else None


def sent(message: EmailMessage, status: AnymailStatus) -> list[Sent]:
    """Convert the status of a send for `record_send`: one `Sent` for each recipient.

    A recipient without a message id is left out, unless it was rejected or failed, because no event could name it.

    Args:
        message: The signal's `message`; it is not read.
        status: `message.anymail_status`, or the signal's `status`.
    """
    return [
        Sent(recipient=recipient, message_id=recipient_status.message_id, type=_sent_type(recipient_status))
        for recipient, recipient_status in status.recipients.items()
        if recipient_status.message_id is not None or recipient_status.status in _FINAL_STATUSES
    ]


def _sent_type(recipient_status: AnymailRecipientStatus) -> Literal["dispatched", "failed", "rejected"]:
    if recipient_status.status in _REJECTED_STATUSES:
        return "rejected"
    return "failed" if recipient_status.status == "failed" else "dispatched"


def _aware(timestamp: dt.datetime | None) -> dt.datetime | None:
    return timestamp.replace(tzinfo=dt.UTC) if timestamp and timestamp.utcoffset() is None else timestamp
