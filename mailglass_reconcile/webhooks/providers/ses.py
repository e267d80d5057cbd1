"""Amazon SES: events and notifications through SNS, one for several recipients; what SNS signs.

Followed: https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html and
https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html. Types and times are Anymail's: the time is that of
SNS, and `DeliveryDelay` and `Subscription` are `unknown`. Not documented: which of several recipients has opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import sns, wire
from mailglass_reconcile.webhooks.sns import Service
from mailglass_reconcile.webhooks.wire import Request, dug

_HOST = r"https://sns\.[a-z]{2}(?:-[a-z]+)+-\d{1,2}\.amazonaws\.com"
"""A region such as `us-gov-west-1`; `sns.s3.amazonaws.com` would be anybody's bucket."""

SERVICE = Service(
    "Amazon SNS",
    re.compile(rf"{_HOST}/[A-Za-z0-9._/-]+\.pem"),
    re.compile(rf"{_HOST}/\S*"),
)

_TYPES: dict[str, tuple[str, str | None]] = {
    "Bounce": ("bounced", "bounced"),
    "Click": ("clicked", None),
    "Complaint": ("complained", "spam"),
    "Delivery": ("delivered", None),
    "Open": ("opened", None),
    "Reject": ("rejected", "blocked"),
    "Rendering Failure": ("failed", None),
    "Send": ("sent", None),
}

_READY = "Successfully validated SNS topic for Amazon SES event publishing."


def elements(request: Request) -> list[Any]:
    """Return the request's only notification; those about the subscription itself give none."""
    body = sns.message(request)
    return [body] if body["Type"] == "Notification" and body.get("Message") != _READY else []


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one notification: an event for each of its recipients; inbound mail gives none."""
    notification = wire.as_object(element, "the notification")
    text = notification.get("Message")
    if not isinstance(text, str):
        raise InvalidWebhookError("the notification has no message")
    payload = wire.as_object(wire.from_json(text), "the message")
    kind = payload.get("eventType", payload.get("notificationType"))
    if kind == "Received":
        return
    type_, reason = _TYPES.get(str(kind), ("unknown", None))
    named = recipients(payload)
    for recipient in named or [None]:
        yield wire.event(
            payload,
            type=type_,
            at=wire.iso(notification.get("Timestamp")),
            id=event_id(wire.event_id(notification.get("MessageId"), payload), named, recipient),
            message_id=dug(payload, "mail", "messageId"),
            recipient=recipient,
            reason=reason,
            tags=_tags(dug(payload, "mail", "headers")),
        )


def event_id(notification_id: str, named: Iterable[Any], recipient: str | None) -> str:
    """Return an event's id: the notification's, and the recipient's place in it, because it may be about several.

    Args:
        notification_id: SNS's id of the notification.
        named: The recipients that the notification names, as `recipients` returns them.
        recipient: The event's own.
    """
    places = [address(one) if isinstance(one, str) else one for one in named]
    wanted = address(recipient or "")
    return f"{notification_id}/{places.index(wanted) if wanted in places else 0}"


def recipients(payload: Mapping[str, Any]) -> list[Any]:
    """Return whom an event is about: those that bounced, complained or got the message, or all that it was sent to.

    If the message went to one address, its bounce is about that, even if a server that forwarded it names another.
    """
    kind = payload.get("eventType", payload.get("notificationType"))
    if kind == "Bounce":
        sent_to = _listed(dug(payload, "mail", "destination"))
        if len(sent_to) == 1:
            return sent_to
        return [dug(one, "emailAddress") for one in _listed(dug(payload, "bounce", "bouncedRecipients"))]
    if kind == "Complaint":
        return [dug(one, "emailAddress") for one in _listed(dug(payload, "complaint", "complainedRecipients"))]
    return _listed(
        dug(payload, "delivery", "recipients") if kind == "Delivery" else dug(payload, "mail", "destination")
    )


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tags(headers: object) -> list[Any]:
    """Return the tags of the header `X-Tag`, where Anymail puts them."""
    return [dug(one, "value") for one in _listed(headers) if str(dug(one, "name")).lower() == "x-tag"]


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature of SNS; *secret* is the topic's ARN."""
    sns.verify(request, secret, SERVICE)


def confirm(request: Request) -> None:
    """Confirm the subscription of a verified request, if it asks for that."""
    sns.confirm(request, SERVICE)
