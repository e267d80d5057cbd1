"""SMTP2GO: one event a request, as JSON or as a form; a password or a bearer token, because SMTP2GO signs nothing.

Followed: https://developers.smtp2go.com/docs/webhooks-1 (fields and events),
https://developers.smtp2go.com/docs/webhooks-overview and
https://support.smtp2go.com/hc/en-gb/articles/223087967 (why a message is rejected). Not documented: an id of the event;
a whole payload; the format of `time` ("UTC timestamp": ISO 8601 and seconds since 1970 are read); whether an event that
is about all recipients has `rcpt`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import ConfigurationError, SignatureError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules.events import WebhookEvent


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's event: a JSON object, or the fields of a form."""
    if "form" in request.content_type.lower():
        return [dict(request.form)]
    return [request.object()]


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's name, with the type of a bounce."""
    event, bounce = str(payload.get("event")), payload.get("bounce")
    return f"bounce/{bounce}" if event == "bounce" and bounce in ("hard", "soft") else event


def _at(payload: Mapping[str, Any]) -> dt.datetime | None:
    time = payload.get("time")
    return wire.parse_epoch(time) or wire.parse_iso(time)


def _recipients(payload: Mapping[str, Any]) -> list[Any]:
    """Return the list of `recipients`, which is a text in a form."""
    value = payload.get("recipients")
    recipients = value if isinstance(value, list) else str(value or "").strip("[]\"' ").split(",")
    return [recipient.strip("\"' ") if isinstance(recipient, str) else recipient for recipient in recipients]


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    """Yield the event of a request, and for a message that is processed an event for each recipient."""
    payload = wire.require_object(element, "the event")
    recipients = [] if payload.get("rcpt") or payload.get("event") != "processed" else _recipients(payload)
    for recipient in recipients if len(recipients) > 1 else [None]:
        event = PROVIDER.table.read({**payload, "rcpt": recipient} if recipient else payload)
        if event is not None:
            yield event


def _recipient(payload: Mapping[str, Any]) -> object:
    """Return the recipient: `rcpt`, or the only one of `recipients`."""
    if rcpt := payload.get("rcpt"):
        return rcpt
    recipients = _recipients(payload)
    return recipients[0] or None if len(recipients) == 1 else None


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify user and password, or the header `Authorization: Bearer`, which a webhook can have instead."""
    _validate_secret(secret)
    if ":" in secret:
        signatures.verify_basic(request, secret, now)
    elif not signatures.has_bearer(request.header("Authorization").encode("utf-8", "replace"), secret):
        raise SignatureError("the bearer token is wrong")


def _validate_secret(secret: str) -> None:
    if ":" in secret:
        signatures.validate_credentials(secret)
    elif len(secret) < signatures.MIN_HEADER_SECRET:
        raise ConfigurationError(
            "the secret is USER:PASSWORD, or a bearer token of at least"
            f" {signatures.MIN_HEADER_SECRET} characters without a colon"
        )


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    if ":" in secret:
        return signatures.sign_basic(body, secret, at, url)
    return signatures.json_request(body, Authorization=f"Bearer {secret}")


PROVIDER = Provider(
    name="smtp2go",
    title="SMTP2GO",
    authentication=Authentication(Signature.IN_HEADERS, _verify, _validate_secret, _sign),
    elements=_elements,
    events=_events,
    table=EventTable(
        kind=_kind,
        kinds={
            "processed": EventKind("queued"),
            "delivered": EventKind("delivered"),
            "bounce/hard": EventKind("bounced", "bounced", "hard"),
            "bounce/soft": EventKind("bounced", "other", "soft"),
            "bounce": EventKind("bounced", "other"),
            "reject": EventKind("suppressed", "other"),  # the recipient has bounced, complained or unsubscribed before
            "open": EventKind("opened"),
            "click": EventKind("clicked"),
            "spam": EventKind("complained"),
            "unsubscribe": EventKind("unsubscribed"),
            "resubscribe": EventKind("subscribed"),
            # the names of callbacks that others have captured; those above are the documentation's
            "opened": EventKind("opened"),
            "clicked": EventKind("clicked"),
            "spam_complaint": EventKind("complained"),
            "unsubscribed": EventKind("unsubscribed"),
        },
        at=_at,
        message_id="email_id",
        recipient=_recipient,
        reply=lambda payload: wire.first_reply(payload.get("message"), payload.get("context")),
        smtp_message_id=("Message-Id", "message-id"),  # a header that can be chosen in the webhook's settings
    ),
)
