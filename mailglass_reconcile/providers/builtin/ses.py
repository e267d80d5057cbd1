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
from mailglass_reconcile.providers import ses_subtypes, sns, wire
from mailglass_reconcile.providers.provider import NO_EVENT, UNKNOWN, EventKind, EventTable, Provider
from mailglass_reconcile.providers.sns import NotificationService
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.provider_rules import MessageIds

_HOST = r"https://sns\.(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d{1,2})\.amazonaws\.(?:com|eu)"
"""A region such as `us-gov-west-1`; `sns.s3.amazonaws.com` would be anybody's bucket.

`eusc-de-east-1.amazonaws.eu` is the European Sovereign Cloud, by the suffix of its partition in botocore.
"""

SERVICE = NotificationService(
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
"""The object of each event that has its time (three have only the message's), and its list of recipients."""

_READY = "Successfully validated SNS topic for Amazon SES event publishing."
_REGION = re.compile(r"arn:[a-z-]+:s[en]s:([a-z0-9-]{1,32}):")


def _ids(mail_id: str | None, id_: str | None, other_id: str | None, region: str | None) -> Iterable[str | None]:
    """The inner `mail.messageId`; as an e-mail header it is `<id@….amazonses.com>`, under the region's domain."""
    for text in filter(None, (mail_id, id_, other_id)):
        local, _, domain = text.strip("<>").partition("@")
        if domain.endswith("amazonses.com"):
            yield local
        yield text
        if region and not domain:
            yield f"{text}@{'email' if region == 'us-east-1' else region}.amazonses.com"


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's only event, with or without SNS's notification around it.

    Notifications about the subscription itself give none.
    """
    body = request.object()
    if sns.is_notification(body):
        return [body] if body["Type"] == "Notification" and body.get("Message") != _READY else []
    if not isinstance(_inner(body).get("mail"), dict):
        raise InvalidWebhookError("the body is neither a notification of SNS nor an event of SES")
    return [body]


def _request_id(request: WebhookRequest) -> str | None:
    """Return the id of the notification."""
    body = request.object()
    return wire.make_event_id(body.get("MessageId"), body.get("Message")) if sns.is_notification(body) else None


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    """Yield one event for each recipient of a payload; inbound mail gives none."""
    outer = wire.require_object(element, "the notification")
    is_notification = sns.is_notification(outer)
    payload = _inner(_message(outer) if is_notification else outer)
    event_id_of, reply_of = _event_ids(payload, request_id), _replies(payload)
    recipients: list[str | None] = [*_recipients(payload)]
    at = wire.parse_iso(get_path(payload, _OBJECTS.get(_event(payload), ("",))[0], "timestamp"))
    at = at or wire.parse_iso(outer.get("Timestamp") if is_notification else None)
    common = {
        "at": at,
        "metadata": _region(payload, outer.get("TopicArn")),
        "smtp_message_id": _smtp_message_id(payload),
        "tags": wire.metadata_of_tags(_tags(payload)).get("tags", ()),
    }
    for recipient in recipients or [None]:
        recipient_fields = {"id": event_id_of(recipient), "recipient": recipient, "reply": reply_of(recipient)}
        event = PROVIDER.table.read(payload, None, **recipient_fields, **common)
        if event is not None:
            yield event


def _inner(body: dict[str, Any]) -> dict[str, Any]:
    """Return the event itself, which EventBridge wraps in an event of its own."""
    detail = body.get("detail")
    return detail if "detail-type" in body and isinstance(detail, dict) else body


def _message(notification: Mapping[str, Any]) -> dict[str, Any]:
    text = notification.get("Message")
    if not isinstance(text, str):
        raise InvalidWebhookError("the notification has no message")
    return wire.require_object(wire.parse_json(text), "the message")


def _event(payload: Mapping[str, Any]) -> str:
    return str(payload.get("eventType", payload.get("notificationType")))


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's type, with that of a bounce, a complaint or a subscription."""
    event, row = _event(payload), None
    if event == "Bounce":
        row = ses_subtypes.bounce_row(
            get_path(payload, "bounce", "bounceType"), get_path(payload, "bounce", "bounceSubType")
        )
    elif event == "Complaint":
        row = ses_subtypes.suppression_row(get_path(payload, "complaint", "complaintSubType"))
        if row is None and get_path(payload, "complaint", "complaintFeedbackType") == "not-spam":
            row = "not-spam"
    elif event == "Subscription":
        row = None if _has_left(get_path(payload, "subscription")) else "back"
    return f"{event}/{row}" if row else event


def _has_left(subscription: object) -> bool:
    """Return True if a contact has unsubscribed from all topics, or from one more."""
    before, now = get_path(subscription, "oldTopicPreferences"), get_path(subscription, "newTopicPreferences")
    return get_path(now, "unsubscribeAll") is True or bool(_opted_out(now) - _opted_out(before))


def _opted_out(preferences: object) -> set[str]:
    topics = _as_list(get_path(preferences, "topicSubscriptionStatus"))
    return {str(get_path(topic, "topicName")) for topic in topics if get_path(topic, "subscriptionStatus") == "OptOut"}


def _replies(payload: Mapping[str, Any]) -> Callable[[str | None], object]:
    """Return a function from a recipient to the reply of its server."""
    event = _event(payload)
    if event == "Delivery":
        return lambda _: get_path(payload, "delivery", "smtpResponse")
    entries = _as_list(get_path(payload, *_path(event))) if event in ("Bounce", "DeliveryDelay") else []
    replies: dict[str, object] = {}
    for entry in entries:
        replies.setdefault(normalize_address(str(get_path(entry, "emailAddress"))), _reply(entry))
    if len(entries) == 1:
        return lambda _: _reply(entries[0])
    return lambda recipient: replies.get(normalize_address(recipient)) if recipient else None


def _reply(entry: object) -> object:
    return wire.first_reply(get_path(entry, "diagnosticCode"), get_path(entry, "status"))


def _smtp_message_id(payload: Mapping[str, Any]) -> str | None:
    """Return the Message-ID header as it was sent, the only id that a sender over SMTP knows; SES replaces it."""
    headers = _as_list(get_path(payload, "mail", "headers"))
    header = next(
        (get_path(entry, "value") for entry in headers if str(get_path(entry, "name")).lower() == "message-id"), None
    )
    id_ = header or get_path(payload, "mail", "commonHeaders", "messageId")
    if not isinstance(id_, str) or id_.strip(" <>").endswith("amazonses.com"):
        return None
    return id_.strip() if id_.strip() != get_path(payload, "mail", "messageId") else None


def _region(payload: Mapping[str, Any], topic: object) -> dict[str, str]:
    """Return the region of the sender or the topic; it is in the domain of the id that recipients see."""
    arns = (get_path(payload, "mail", "sourceArn"), topic)
    match = next(filter(None, (_REGION.match(arn) for arn in arns if isinstance(arn, str))), None)
    return {"region": match[1]} if match else {}


def _event_ids(payload: Mapping[str, Any], notification_id: str | None) -> Callable[[str | None], str]:
    """Return a function from a recipient to its event's id, which ends with the recipient's index in the payload.

    A bounce or complaint has its own id, the same in each topic that it comes through. Other events take the id of
    SNS's notification, and without one their message, type and time.
    """
    part = _OBJECTS.get(_event(payload), ("",))[0]
    id_ = get_path(payload, part, "feedbackId") or notification_id
    message_id, at = get_path(payload, "mail", "messageId"), get_path(payload, part, "timestamp")
    if not id_ and message_id and at:
        id_ = f"{message_id}/{_event(payload)}/{at}"
    event_id = wire.make_event_id(id_, payload)
    indexes: dict[str, int] = {}
    for index, recipient in enumerate(_recipients(payload)):
        indexes.setdefault(normalize_address(recipient), index)
    return lambda recipient: f"{event_id}/{indexes.get(normalize_address(recipient or ''), 0)}"


def _recipients(payload: Mapping[str, Any]) -> list[str]:
    """Return the recipients of an event: its own list, or all recipients of the message.

    If the message went to one address, its bounce is about that, even if a server that forwarded it names another.
    """
    event = _event(payload)
    destinations = _as_list(get_path(payload, "mail", "destination"))
    entries = destinations
    if event in _OBJECTS and _OBJECTS[event][1] and not (event == "Bounce" and len(destinations) == 1):
        entries = _as_list(get_path(payload, *_path(event)))
    addresses = (get_path(entry, "emailAddress") if isinstance(entry, dict) else entry for entry in entries)
    return [recipient for recipient in addresses if isinstance(recipient, str)]


def _path(event: str) -> tuple[str, ...]:
    return tuple(key for key in _OBJECTS[event] if key)


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tags(payload: Mapping[str, Any]) -> list[Any]:
    """Return the tags of the header `X-Tag`, where Anymail puts them, and the message's, without those of SES."""
    headers = _as_list(get_path(payload, "mail", "headers"))
    tags = wire.format_named_tags(get_path(payload, "mail", "tags"))
    return [
        *(get_path(entry, "value") for entry in headers if str(get_path(entry, "name")).lower() == "x-tag"),
        *(tag for tag in tags if not tag.startswith("ses:")),
    ]


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature of SNS; *secret* is the topic's ARN."""
    try:
        is_bare = not sns.is_notification(request.object())
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    if is_bare:
        raise SignatureError(
            "the event is not in a notification of SNS, so nothing signs it: turn off raw message delivery; events of "
            "a queue, EventBridge or Firehose are read by parse alone"
        )
    sns.verify(request, secret, SERVICE, now)


_KINDS = {
    "Send": EventKind("sent"),
    "Delivery": EventKind("delivered"),
    "DeliveryDelay": EventKind("deferred"),
    **{f"Bounce/{row}": kind for row, kind in ses_subtypes.BOUNCES.items()},
    "Bounce": EventKind("bounced", "bounced"),
    "Reject": EventKind("rejected", "blocked"),
    "Rendering Failure": EventKind("failed"),
    "Open": EventKind("opened"),
    "Click": EventKind("clicked"),
    "Complaint": EventKind("complained"),
    "Complaint/suppressed": EventKind("suppressed", "spam"),
    "Complaint/unsubscribed": EventKind("suppressed", "unsubscribed"),
    "Complaint/not-spam": UNKNOWN,
    "Subscription": EventKind("unsubscribed"),
    "Subscription/back": EventKind("subscribed"),
    "Received": NO_EVENT,
}

PROVIDER = Provider(
    name="ses",
    title="Amazon SES",
    spellings=("amazon_ses", "amazon ses", "amazonses", "SES"),
    message_ids=MessageIds(
        ("metadata/mail/messageId", "metadata/messageId", "metadata/message_id", "metadata/region"), _ids, version=2
    ),
    authentication=sns.make_authentication(SERVICE)._replace(verify=_verify),
    max_bytes=sns.MAX_NOTIFICATION_BYTES,
    service=SERVICE,
    confirm=lambda request: sns.confirm(request, SERVICE),
    elements=_elements,
    request_id=_request_id,
    events=_events,
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        message_id="mail/messageId",
    ),
)
