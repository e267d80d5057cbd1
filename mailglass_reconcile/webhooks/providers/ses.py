"""Amazon SES: events and notifications, one for several recipients, through SNS, which signs them, or without it.

Followed: https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html,
https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html (types of bounces, and that a complaint names all
recipients at the domain that it came from) and
https://docs.aws.amazon.com/ses/latest/dg/monitoring-eventbridge.html (the event is the `detail`). Not documented: which
of several recipients has opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import ses_subtypes, sns, wire
from mailglass_reconcile.webhooks.sns import Service
from mailglass_reconcile.webhooks.wire import Request, dug

_HOST = r"https://sns\.(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d{1,2})\.amazonaws\.(?:com|eu)"
"""A region such as `us-gov-west-1`; `sns.s3.amazonaws.com` would be anybody's bucket.

`eusc-de-east-1.amazonaws.eu` is the European Sovereign Cloud, by the suffix of its partition in botocore.
"""

SERVICE = Service(
    "Amazon SNS",
    re.compile(rf"{_HOST}/SimpleNotificationService-[0-9a-f]{{32}}\.pem"),
    re.compile(rf"{_HOST}/\S*"),
)

SIGNATURE = wire.Signature.IN_BODY

max_bytes = sns.max_bytes

_KINDS: dict[str, tuple[str, str | None, str]] = {
    "Bounce": ("bounced", "bounced", "bounce"),
    "Click": ("clicked", None, "click"),
    "Complaint": ("complained", "spam", "complaint"),
    "Delivery": ("delivered", None, "delivery"),
    "DeliveryDelay": ("deferred", None, "deliveryDelay"),
    "Open": ("opened", None, "open"),
    "Reject": ("rejected", "blocked", "mail"),
    "Rendering Failure": ("failed", None, "mail"),
    "Send": ("sent", None, "mail"),
    "Subscription": ("unsubscribed", None, "subscription"),
}
"""Type, reason, and the object that says when it happened: three have no other than the message's."""

_RECIPIENTS = {
    "Bounce": ("bounce", "bouncedRecipients"),
    "Complaint": ("complaint", "complainedRecipients"),
    "Delivery": ("delivery", "recipients"),
    "DeliveryDelay": ("deliveryDelay", "delayedRecipients"),
}

_READY = "Successfully validated SNS topic for Amazon SES event publishing."


def elements(request: Request) -> list[Any]:
    """Return the request's only event, with or without SNS's notification around it.

    Notifications about the subscription itself give none.
    """
    body = request.object()
    if sns.is_message(body):
        return [body] if body["Type"] == "Notification" and body.get("Message") != _READY else []
    if not isinstance(_inner(body).get("mail"), dict):
        raise InvalidWebhookError("the body is neither a notification of SNS nor an event of SES")
    return [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event: one for each of its recipients; inbound mail gives none."""
    outer = wire.as_object(element, "the notification")
    notified = sns.is_message(outer)
    payload = _inner(_message(outer) if notified else outer)
    if _kind(payload) == "Received":
        return
    type_, reason, where = _read(payload)
    at = wire.iso(dug(payload, where, "timestamp")) or wire.iso(outer.get("Timestamp") if notified else None)
    notification_id = wire.event_id(outer.get("MessageId"), payload) if notified else None
    named: list[str | None] = [*recipients(payload)]
    id_of, reply_to = event_ids(payload, notification_id), _replies(payload)
    common = {
        "type": type_,
        "at": at,
        "message_id": dug(payload, "mail", "messageId"),
        "reason": reason,
        "bounce": bounce(payload),
        "smtp_message_id": smtp_message_id(payload),
        "tags": wire.metadata(_tags(payload)).get("tags", ()),
        "kept": kept(payload, outer.get("TopicArn")),
    }
    for recipient in named or [None]:
        yield wire.event(payload, id=id_of(recipient), recipient=recipient, smtp=reply_to(recipient), **common)


def _inner(body: dict[str, Any]) -> dict[str, Any]:
    """Return the event itself: EventBridge puts it into its own."""
    detail = body.get("detail")
    return detail if "detail-type" in body and isinstance(detail, dict) else body


def _message(notification: Mapping[str, Any]) -> dict[str, Any]:
    text = notification.get("Message")
    if not isinstance(text, str):
        raise InvalidWebhookError("the notification has no message")
    return wire.as_object(wire.from_json(text), "the message")


def _kind(payload: Mapping[str, Any]) -> str:
    return str(payload.get("eventType", payload.get("notificationType")))


def _read(payload: Mapping[str, Any]) -> tuple[str, str | None, str]:
    """Return the type, the reason, and the object that says when it happened."""
    kind = _kind(payload)
    type_, reason, where = _KINDS.get(kind, ("unknown", None, ""))
    complaint = dug(payload, "complaint", "complaintSubType")
    if kind == "Bounce":
        type_, reason, _ = _read_bounce(payload)
    elif kind == "Complaint" and ses_subtypes.is_suppressed(complaint):
        type_, reason = "suppressed", ses_subtypes.suppression_reason(complaint, "spam")
    elif kind == "Complaint" and dug(payload, "complaint", "complaintFeedbackType") == "not-spam":
        type_, reason = "unknown", None
    elif kind == "Subscription" and not _has_left(dug(payload, "subscription")):
        type_ = "subscribed"
    return type_, reason, where


def _read_bounce(payload: Mapping[str, Any]) -> tuple[str, str | None, Bounce | None]:
    type_, subtype = dug(payload, "bounce", "bounceType"), dug(payload, "bounce", "bounceSubType")
    return ses_subtypes.read_bounce(type_, subtype) or ("bounced", "bounced", None)


def _has_left(subscription: object) -> bool:
    """Whether a person has unsubscribed from all topics, or from one."""
    before, now = dug(subscription, "oldTopicPreferences"), dug(subscription, "newTopicPreferences")
    return dug(now, "unsubscribeAll") is True or bool(_left(now) - _left(before))


def _left(preferences: object) -> set[str]:
    topics = _listed(dug(preferences, "topicSubscriptionStatus"))
    return {str(dug(one, "topicName")) for one in topics if dug(one, "subscriptionStatus") == "OptOut"}


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by its type; what SES did not send is none."""
    return _read_bounce(payload)[2] if _kind(payload) == "Bounce" else None


def _replies(payload: Mapping[str, Any]) -> Callable[[str | None], object]:
    """Return a function from a recipient to what its server replied, or that of the only one."""
    kind = _kind(payload)
    if kind == "Delivery":
        return lambda _: dug(payload, "delivery", "smtpResponse")
    told = _listed(dug(payload, *_RECIPIENTS[kind])) if kind in ("Bounce", "DeliveryDelay") else []
    replies: dict[str, object] = {}
    for one in told:
        replies.setdefault(address(str(dug(one, "emailAddress"))), _reply(one))
    if len(told) == 1:
        return lambda _: _reply(told[0])
    return lambda recipient: replies.get(address(recipient)) if recipient else None


def _reply(told: object) -> object:
    return wire.reply(dug(told, "diagnosticCode"), dug(told, "status"))


def smtp_message_id(payload: Mapping[str, Any]) -> str | None:
    """Return the Message-ID header as it was sent, all that an application knows over SMTP; SES replaces it."""
    headers = _listed(dug(payload, "mail", "headers"))
    own = next((dug(one, "value") for one in headers if str(dug(one, "name")).lower() == "message-id"), None)
    id_ = own or dug(payload, "mail", "commonHeaders", "messageId")
    if not isinstance(id_, str) or id_.strip(" <>").endswith("amazonses.com"):
        return None
    return id_.strip() if id_.strip() != dug(payload, "mail", "messageId") else None


def kept(payload: Mapping[str, Any], topic: object = None) -> dict[str, str]:
    """Return the region, which is in the domain of the id that recipients see: that of the sender or the topic."""
    arns = (dug(payload, "mail", "sourceArn"), topic)
    found = next(filter(None, (_REGION.match(arn) for arn in arns if isinstance(arn, str))), None)
    return {"region": found[1]} if found else {}


_REGION = re.compile(r"arn:[a-z-]+:s[en]s:([a-z0-9-]{1,32}):")


def event_ids(payload: Mapping[str, Any], notification_id: str | None) -> Callable[[str | None], str]:
    """Return a function from a recipient to its event's id, with its place in it, because it may be about several.

    A bounce or complaint has an id of its own, the same in each topic that it comes through. Other events have that of
    SNS's notification, and without one their message, type and time.
    """
    where = _KINDS.get(_kind(payload), ("", None, ""))[2]
    id_ = dug(payload, where, "feedbackId") or notification_id
    message_id, at = dug(payload, "mail", "messageId"), dug(payload, where, "timestamp")
    if not id_ and message_id and at:
        id_ = f"{message_id}/{_kind(payload)}/{at}"
    made = wire.event_id(id_, payload)
    places: dict[str, int] = {}
    for place, one in enumerate(recipients(payload)):
        places.setdefault(address(one), place)
    return lambda recipient: f"{made}/{places.get(address(recipient or ''), 0)}"


def recipients(payload: Mapping[str, Any]) -> list[str]:
    """Return whom an event is about: those that bounced, waited, complained or got the message, or all of them.

    If the message went to one address, its bounce is about that, even if a server that forwarded it names another.
    """
    kind = _kind(payload)
    sent_to = _listed(dug(payload, "mail", "destination"))
    named = _listed(dug(payload, *_RECIPIENTS[kind])) if kind in _RECIPIENTS else sent_to
    if kind == "Bounce" and len(sent_to) == 1:
        named = sent_to
    each = [dug(one, "emailAddress") if isinstance(one, dict) else one for one in named]
    return [one for one in each if isinstance(one, str)]


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tags(payload: Mapping[str, Any]) -> list[Any]:
    """Return the message's tags but those of SES, and those of the header `X-Tag`, where Anymail puts them."""
    headers = _listed(dug(payload, "mail", "headers"))
    named = wire.named_tags(dug(payload, "mail", "tags"))
    return [
        *(dug(one, "value") for one in headers if str(dug(one, "name")).lower() == "x-tag"),
        *(tag for tag in named if not tag.startswith("ses:")),
    ]


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature of SNS; *secret* is the topic's ARN."""
    try:
        bare = not sns.is_message(request.object())
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    if bare:
        raise SignatureError(
            "the event is not in a notification of SNS, so nothing signs it: turn off raw message delivery; events of "
            "a queue, EventBridge or Firehose are read by parse alone"
        )
    sns.verify(request, secret, SERVICE, now)


def confirm(request: Request) -> None:
    """Confirm the subscription of a verified request, if it asks for that."""
    sns.confirm(request, SERVICE)
