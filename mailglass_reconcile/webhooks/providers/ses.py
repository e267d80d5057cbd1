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
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.providers import MessageIds
from mailglass_reconcile.webhooks import ses_subtypes, sns, wire
from mailglass_reconcile.webhooks.provider import NO_EVENT, UNKNOWN, Kind, Provider, Table
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

_OBJECTS = {
    "Bounce": ("bounce", "bouncedRecipients"),
    "Click": ("click", None),
    "Complaint": ("complaint", "complainedRecipients"),
    "Delivery": ("delivery", "recipients"),
    "DeliveryDelay": ("deliveryDelay", "delayedRecipients"),
    "Open": ("open", None),
    "Reject": ("mail", None),
    "Rendering Failure": ("mail", None),
    "Send": ("mail", None),
    "Subscription": ("subscription", None),
}
"""The object that says when it happened (three have no other time than the message's), and whom it is about."""

_READY = "Successfully validated SNS topic for Amazon SES event publishing."
_REGION = re.compile(r"arn:[a-z-]+:s[en]s:([a-z0-9-]{1,32}):")


def _ids(mail: str | None, id_: str | None, other: str | None, region: str | None) -> Iterable[str | None]:
    """The inner `mail.messageId`; as an e-mail header it is `<id@….amazonses.com>`, under the region's domain."""
    for text in filter(None, (mail, id_, other)):
        local, _, domain = text.strip("<>").partition("@")
        if domain.endswith("amazonses.com"):
            yield local
        yield text
        if region and not domain:
            yield f"{text}@{'email' if region == 'us-east-1' else region}.amazonses.com"


def _elements(request: Request) -> list[Any]:
    """Return the request's only event, with or without SNS's notification around it.

    Notifications about the subscription itself give none.
    """
    body = request.object()
    if sns.is_message(body):
        return [body] if body["Type"] == "Notification" and body.get("Message") != _READY else []
    if not isinstance(_inner(body).get("mail"), dict):
        raise InvalidWebhookError("the body is neither a notification of SNS nor an event of SES")
    return [body]


def _request_id(request: Request) -> str | None:
    """Return the id of the notification."""
    body = request.object()
    return wire.event_id(body.get("MessageId"), body.get("Message")) if sns.is_message(body) else None


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    """Read one event: one for each of its recipients; inbound mail gives none."""
    outer = wire.as_object(element, "the notification")
    notified = sns.is_message(outer)
    payload = _inner(_message(outer) if notified else outer)
    id_of, reply_to = _event_ids(payload, request_id), _replies(payload)
    named: list[str | None] = [*_recipients(payload)]
    at = wire.iso(dug(payload, _OBJECTS.get(_event(payload), ("",))[0], "timestamp"))
    at = at or wire.iso(outer.get("Timestamp") if notified else None)
    common = {
        "at": at,
        "kept": _region(payload, outer.get("TopicArn")),
        "smtp_message_id": _smtp_message_id(payload),
        "tags": wire.metadata(_tags(payload)).get("tags", ()),
    }
    for recipient in named or [None]:
        more = {"id": id_of(recipient), "recipient": recipient, "reply": reply_to(recipient), **common}
        made = PROVIDER.table.read(payload, None, **more)
        if made is not None:
            yield made


def _inner(body: dict[str, Any]) -> dict[str, Any]:
    """Return the event itself: EventBridge puts it into its own."""
    detail = body.get("detail")
    return detail if "detail-type" in body and isinstance(detail, dict) else body


def _message(notification: Mapping[str, Any]) -> dict[str, Any]:
    text = notification.get("Message")
    if not isinstance(text, str):
        raise InvalidWebhookError("the notification has no message")
    return wire.as_object(wire.from_json(text), "the message")


def _event(payload: Mapping[str, Any]) -> str:
    return str(payload.get("eventType", payload.get("notificationType")))


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's type, with that of a bounce, a complaint or a subscription."""
    event, row = _event(payload), None
    if event == "Bounce":
        row = ses_subtypes.bounce_row(dug(payload, "bounce", "bounceType"), dug(payload, "bounce", "bounceSubType"))
    elif event == "Complaint":
        row = ses_subtypes.suppression_row(dug(payload, "complaint", "complaintSubType"))
        if row is None and dug(payload, "complaint", "complaintFeedbackType") == "not-spam":
            row = "not-spam"
    elif event == "Subscription":
        row = None if _has_left(dug(payload, "subscription")) else "back"
    return f"{event}/{row}" if row else event


def _has_left(subscription: object) -> bool:
    """Whether a person has unsubscribed from all topics, or from one."""
    before, now = dug(subscription, "oldTopicPreferences"), dug(subscription, "newTopicPreferences")
    return dug(now, "unsubscribeAll") is True or bool(_left(now) - _left(before))


def _left(preferences: object) -> set[str]:
    topics = _listed(dug(preferences, "topicSubscriptionStatus"))
    return {str(dug(topic, "topicName")) for topic in topics if dug(topic, "subscriptionStatus") == "OptOut"}


def _replies(payload: Mapping[str, Any]) -> Callable[[str | None], object]:
    """Return a function from a recipient to what its server replied, or that of the only one."""
    event = _event(payload)
    if event == "Delivery":
        return lambda _: dug(payload, "delivery", "smtpResponse")
    told = _listed(dug(payload, *_path(event))) if event in ("Bounce", "DeliveryDelay") else []
    replies: dict[str, object] = {}
    for entry in told:
        replies.setdefault(address(str(dug(entry, "emailAddress"))), _reply(entry))
    if len(told) == 1:
        return lambda _: _reply(told[0])
    return lambda recipient: replies.get(address(recipient)) if recipient else None


def _reply(entry: object) -> object:
    return wire.reply(dug(entry, "diagnosticCode"), dug(entry, "status"))


def _smtp_message_id(payload: Mapping[str, Any]) -> str | None:
    """Return the Message-ID header as it was sent, all that an application knows over SMTP; SES replaces it."""
    headers = _listed(dug(payload, "mail", "headers"))
    own = next((dug(entry, "value") for entry in headers if str(dug(entry, "name")).lower() == "message-id"), None)
    id_ = own or dug(payload, "mail", "commonHeaders", "messageId")
    if not isinstance(id_, str) or id_.strip(" <>").endswith("amazonses.com"):
        return None
    return id_.strip() if id_.strip() != dug(payload, "mail", "messageId") else None


def _region(payload: Mapping[str, Any], topic: object) -> dict[str, str]:
    """Return the region, which is in the domain of the id that recipients see: that of the sender or the topic."""
    arns = (dug(payload, "mail", "sourceArn"), topic)
    found = next(filter(None, (_REGION.match(arn) for arn in arns if isinstance(arn, str))), None)
    return {"region": found[1]} if found else {}


def _event_ids(payload: Mapping[str, Any], notification_id: str | None) -> Callable[[str | None], str]:
    """Return a function from a recipient to its event's id, with its place in it, because it may be about several.

    A bounce or complaint has an id of its own, the same in each topic that it comes through. Other events have that of
    SNS's notification, and without one their message, type and time.
    """
    where = _OBJECTS.get(_event(payload), ("",))[0]
    id_ = dug(payload, where, "feedbackId") or notification_id
    message_id, at = dug(payload, "mail", "messageId"), dug(payload, where, "timestamp")
    if not id_ and message_id and at:
        id_ = f"{message_id}/{_event(payload)}/{at}"
    made = wire.event_id(id_, payload)
    places: dict[str, int] = {}
    for place, recipient in enumerate(_recipients(payload)):
        places.setdefault(address(recipient), place)
    return lambda recipient: f"{made}/{places.get(address(recipient or ''), 0)}"


def _recipients(payload: Mapping[str, Any]) -> list[str]:
    """Return whom an event is about: those that bounced, waited, complained or got the message, or all of them.

    If the message went to one address, its bounce is about that, even if a server that forwarded it names another.
    """
    event = _event(payload)
    sent_to = _listed(dug(payload, "mail", "destination"))
    named = _listed(dug(payload, *_path(event))) if event in _OBJECTS and _OBJECTS[event][1] else sent_to
    if event == "Bounce" and len(sent_to) == 1:
        named = sent_to
    each = [dug(entry, "emailAddress") if isinstance(entry, dict) else entry for entry in named]
    return [recipient for recipient in each if isinstance(recipient, str)]


def _path(event: str) -> tuple[str, ...]:
    return tuple(key for key in _OBJECTS[event] if key)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tags(payload: Mapping[str, Any]) -> list[Any]:
    """Return the message's tags but those of SES, and those of the header `X-Tag`, where Anymail puts them."""
    headers = _listed(dug(payload, "mail", "headers"))
    named = wire.named_tags(dug(payload, "mail", "tags"))
    return [
        *(dug(entry, "value") for entry in headers if str(dug(entry, "name")).lower() == "x-tag"),
        *(tag for tag in named if not tag.startswith("ses:")),
    ]


def _verify(request: Request, secret: str, now: float) -> None:
    """Check the signature of SNS; *secret* is the topic's ARN."""
    try:
        is_bare = not sns.is_message(request.object())
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    if is_bare:
        raise SignatureError(
            "the event is not in a notification of SNS, so nothing signs it: turn off raw message delivery; events of "
            "a queue, EventBridge or Firehose are read by parse alone"
        )
    sns.verify(request, secret, SERVICE, now)


_KINDS = {
    "Send": Kind("sent"),
    "Delivery": Kind("delivered"),
    "DeliveryDelay": Kind("deferred"),
    **{f"Bounce/{row}": kind for row, kind in ses_subtypes.BOUNCES.items()},
    "Bounce": Kind("bounced", "bounced"),
    "Reject": Kind("rejected", "blocked"),
    "Rendering Failure": Kind("failed"),
    "Open": Kind("opened"),
    "Click": Kind("clicked"),
    "Complaint": Kind("complained"),
    "Complaint/suppressed": Kind("suppressed", "spam"),
    "Complaint/unsubscribed": Kind("suppressed", "unsubscribed"),
    "Complaint/not-spam": UNKNOWN,
    "Subscription": Kind("unsubscribed"),
    "Subscription/back": Kind("subscribed"),
    "Received": NO_EVENT,
}

PROVIDER = Provider(
    name="ses",
    title="Amazon SES",
    spellings=("amazon_ses", "amazon ses", "amazonses", "SES"),
    message_ids=MessageIds(
        ("metadata/mail/messageId", "metadata/messageId", "metadata/message_id", "metadata/region"), _ids, version=2
    ),
    documentation="https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html",
    recipient_known="opens and clicks name all",
    boxes="all event types, with the original headers",
    retries="3, after 20 seconds each, unless the subscription has another delivery policy",
    authentication=sns.authentication(SERVICE)._replace(verify=_verify),
    max_bytes=sns.MAX_NOTIFICATION_BYTES,
    service=SERVICE,
    confirm=lambda request: sns.confirm(request, SERVICE),
    elements=_elements,
    request_id=_request_id,
    events=_events,
    table=Table(
        kind=_kind,
        kinds=_KINDS,
        message_id="mail/messageId",
    ),
)
