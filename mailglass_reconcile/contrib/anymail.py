"""django-anymail: its tracking events as `WebhookEvent`, its send status as `Sent`.

Two functions for receivers of your own; they need neither Django's settings nor a database. `docs/anymail.md` has the
table of providers.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mailglass_reconcile.record import storing
from mailglass_reconcile.record.sent import Sent
from mailglass_reconcile.rules import addresses, event_types, providers
from mailglass_reconcile.rules.events import WebhookEvent

if TYPE_CHECKING:
    from anymail.message import AnymailRecipientStatus, AnymailStatus
    from anymail.signals import AnymailTrackingEvent
    from django.core.mail import EmailMessage

_ACCEPTED = ("sent", "queued")
_REFUSED = ("rejected", "invalid")


def webhook_event(event: AnymailTrackingEvent, esp_name: str) -> WebhookEvent:
    """Return a tracking event of Anymail as `record_webhook` takes it; a retry of the webhook gives the same id.

    Of the rest that Anymail knows, only tags are kept, because the ledger can never be erased: not its metadata,
    description, MTA response, user agent or click URL.

    Args:
        event: What the `tracking` signal hands over.
        esp_name: The provider, as the signal names it.
    """
    provider = providers.canonical(esp_name)
    return WebhookEvent(
        type=event.event_type if event.event_type in event_types.TYPES else "unknown",
        occurred_at=_aware(event.timestamp),
        provider_event_id=_IDS.get(provider, _id)(event),
        message_id=event.message_id,
        recipient=_resend_recipient(event) if provider == "resend" else event.recipient,
        reject_reason=_reason(event.reject_reason),
        metadata=_tags(event.tags),
    )


def sent(message: EmailMessage, status: AnymailStatus) -> list[Sent]:
    """Return what a provider has answered to a send, for each recipient, as `record_send` takes it.

    A recipient that was accepted without a message id is left out, because no event could ever name it.

    Args:
        message: What the `post_send` signal hands over; it is not read.
        status: `message.anymail_status`, or what the signal hands over.
    """
    return [
        Sent(recipient=recipient, message_id=one.message_id, type=_sent_type(one))
        for recipient, one in status.recipients.items()
        if one.message_id is not None or one.status not in _ACCEPTED
    ]


def _sent_type(one: AnymailRecipientStatus) -> str:
    if one.status in _REFUSED:
        return "rejected"
    return "failed" if one.status == "failed" or one.message_id is None else "dispatched"


def _aware(timestamp: dt.datetime | None) -> dt.datetime:
    if timestamp is None:
        return dt.datetime.now(dt.UTC)
    return timestamp if timestamp.utcoffset() is not None else timestamp.replace(tzinfo=dt.UTC)


def _reason(reason: str | None) -> str | None:
    return reason if reason is None or reason in event_types.REJECT_REASONS else "other"


def _tags(tags: str | Sequence[str | None] | None) -> dict[str, Any]:
    listed = [tags] if isinstance(tags, str) else tags or ()
    kept = storing.without_addresses([tag for tag in listed if isinstance(tag, str) and tag])
    return {"tags": kept} if kept else {}


def _id(event: AnymailTrackingEvent) -> str:
    """Return the provider's id of the event, or a digest of what it has sent, which does not change over retries."""
    return str(event.event_id) if event.event_id else _digest(event)


def _digest(event: AnymailTrackingEvent) -> str:
    told = event.esp_event or [event.event_type, event.message_id, event.recipient, event.timestamp]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _mailgun_id(event: AnymailTrackingEvent) -> str:
    """Anymail takes the token of the signature, which is the request's; the event's own id is unique within a day."""
    data = (event.esp_event or {}).get("event-data") or {}
    return f"{data['id']}/{data.get('timestamp')}" if data.get("id") else _id(event)


def _ses_id(event: AnymailTrackingEvent) -> str:
    """A notification of SNS has one id for all of its recipients: the place in its list tells them apart."""
    named = [addresses.address(one) for one in _ses_recipients(event.esp_event or {})]
    wanted = addresses.address(event.recipient or "")
    return f"{_id(event)}/{named.index(wanted) if wanted in named else 0}"


def _ses_recipients(esp_event: Mapping[str, Any]) -> list[str]:
    bounced = esp_event.get("bounce", {}).get("bouncedRecipients", ())
    complained = esp_event.get("complaint", {}).get("complainedRecipients", ())
    named = [one["emailAddress"] for one in (*bounced, *complained)]
    return named or esp_event.get("delivery", {}).get("recipients") or esp_event.get("mail", {}).get("destination", [])


def _resend_recipient(event: AnymailTrackingEvent) -> str | None:
    """Anymail always takes the first; if there are several, Resend does not say whom its event is about."""
    data = (event.esp_event or {}).get("data") or {}
    named = [one for header in ("to", "cc", "bcc") for one in data.get(header) or ()]
    return None if len(named) > 1 else event.recipient


_IDS: Mapping[str, Callable[[AnymailTrackingEvent], str]] = {"mailgun": _mailgun_id, "ses": _ses_id}
