"""django-anymail: its tracking events as `WebhookEvent`, its send status as `Sent`.

Two functions for receivers of your own; they need neither Django's settings nor a database. `docs/django.md` has the
table of providers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mailglass_reconcile.record.sends import Sent
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import formats, registry, wire
from mailglass_reconcile.webhooks.providers import brevo, mailgun, mandrill, resend, ses
from mailglass_reconcile.webhooks.wire import Request

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
    made = _as_anymail_reads(event, provider)
    own = _as_parse_reads(event, provider)
    if own is not None:
        made = replace(
            own,
            provider_event_id=made.provider_event_id,
            message_id=own.message_id if made.message_id is None else made.message_id,
            # An event without a time happens now, but Anymail may know when SNS was notified of it.
            occurred_at=made.occurred_at if own.occurred_at >= began else own.occurred_at,
        )
    formats.names_a_message(provider, made)
    return made


def _as_anymail_reads(event: AnymailTrackingEvent, provider: str) -> WebhookEvent:
    return wire.event(
        event.esp_event,
        type=event.event_type,
        at=_aware(event.timestamp),
        id=_IDS.get(provider, _id)(event),
        message_id=event.message_id,
        recipient=_recipient(event, provider),
        reason=event.reject_reason,
        tags=event.tags,
    )


def _as_parse_reads(event: AnymailTrackingEvent, provider: str) -> WebhookEvent | None:
    """Return what our reader makes of the payload for Anymail's recipient, or None if it cannot read it."""
    try:
        read = list(registry.module(provider).events(event.esp_event, Request(b"", {})))
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


def _id(event: AnymailTrackingEvent) -> str:
    """Return the provider's id of the event, or a digest of what it has sent, which does not change over retries."""
    payload = event.esp_event or [event.event_type, event.message_id, event.recipient, event.timestamp]
    return wire.event_id(event.event_id, payload)


def _mailgun_id(event: AnymailTrackingEvent) -> str:
    """Anymail takes the token of the signature; only the form of legacy webhooks has no other id."""
    return mailgun.event_id((event.esp_event or {}).get("event-data") or {}) or _id(event)


def _ses_id(event: AnymailTrackingEvent) -> str:
    """A notification of SNS has one id for all of its recipients."""
    return ses.event_ids(event.esp_event or {}, _id(event))(event.recipient)


def _recipient(event: AnymailTrackingEvent, provider: str) -> str | None:
    """Anymail takes the first of several recipients of Resend, and the address that bounced behind a forward of SES."""
    payload = event.esp_event or {}
    if provider == "resend" and payload.get("data"):
        return resend.recipient(payload["data"])
    named: list[str] = ses.recipients(payload) if provider == "ses" else []
    return named[0] if len(named) == 1 else event.recipient


_IDS: Mapping[str, Callable[[AnymailTrackingEvent], str]] = {
    "brevo": lambda event: brevo.event_id(event.esp_event) if event.esp_event else _id(event),
    "mailgun": _mailgun_id,
    "mandrill": lambda event: mandrill.event_id(event.esp_event) if event.esp_event else _id(event),
    "ses": _ses_id,
}
