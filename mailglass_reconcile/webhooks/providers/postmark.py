"""Postmark: one event a request; HTTP basic authentication, because Postmark signs nothing.

Followed: https://postmarkapp.com/developer/webhooks/webhooks-overview and its pages for each `RecordType`, and
https://postmarkapp.com/developer/api/bounce-api#bounce-types. Not documented: an id of events that are no bounces; what
`Details` may hold, which in practice begins with the server's reply.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, dug

SIGNATURE = wire.Signature.IN_HEADERS

_TYPES = {
    "Bounce": "bounced",
    "Click": "clicked",
    "Delivery": "delivered",
    "Open": "opened",
    "SpamComplaint": "complained",
    "SubscriptionChange": "unsubscribed",
}

_DETAILS: dict[str, tuple[str, str | None]] = {
    "AddressChange": ("autoresponded", None),
    "AutoResponder": ("autoresponded", None),
    "BadEmailAddress": ("rejected", "invalid"),
    "Blocked": ("rejected", "blocked"),
    "ChallengeVerification": ("autoresponded", None),
    "DMARCPolicy": ("rejected", "blocked"),
    "DnsError": ("deferred", None),
    "HardBounce": ("bounced", "bounced"),
    "InboundError": ("unknown", None),
    "ManualSuppression": ("unsubscribed", "unsubscribed"),
    "ManuallyDeactivated": ("rejected", "blocked"),
    "OpenRelayTest": ("deferred", None),
    "SMTPApiError": ("failed", None),
    "SoftBounce": ("bounced", "bounced"),
    "SpamComplaint": ("complained", "spam"),
    "SpamNotification": ("bounced", "spam"),
    "Subscribe": ("subscribed", None),
    "TemplateRenderingFailed": ("failed", None),
    "Transient": ("deferred", None),
    "Unconfirmed": ("rejected", None),
    "Unknown": ("unknown", None),
    "Unsubscribe": ("unsubscribed", "unsubscribed"),
    "VirusNotification": ("bounced", "other"),
}
"""Types of bounces and reasons of suppressions, with ours, and why the message was refused."""

_BOUNCES: dict[str, Bounce] = {
    "HardBounce": "hard",
    "SoftBounce": "soft",
    "SpamNotification": "soft",
    "VirusNotification": "soft",
}
"""Those of type `bounced`: a filter's verdict is about the message, not about the address."""


def elements(request: Request) -> list[Any]:
    """Return the request's only event."""
    return [request.json()]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; inbound mail gives none."""
    payload = wire.as_object(element, "the event")
    record = payload.get("RecordType")
    if record == "Inbound" or (record is None and "FromFull" in payload):
        return
    type_, reason = _type(payload, _TYPES.get(str(record), "unknown"))
    yield wire.event(
        payload,
        type=type_,
        at=wire.iso(next((payload[name] for name in _TIMES if name in payload), None)),
        id=payload.get("ID"),
        message_id=dug(payload, "Metadata", "anymail_id") or payload.get("MessageID"),
        recipient=payload.get("Email", payload.get("Recipient")),
        reason=reason,
        bounce=bounce(payload),
        smtp=smtp(payload),
        tags=payload.get("Tag"),
    )


_TIMES = ("DeliveredAt", "BouncedAt", "ReceivedAt", "ChangedAt")


def _type(payload: dict[str, Any], type_: str) -> tuple[str, str | None]:
    if type_ in ("bounced", "complained"):
        return _DETAILS.get(str(payload.get("Type")), (type_, None))
    if type_ == "unsubscribed":
        if not payload.get("SuppressSending", True):
            return _DETAILS["Subscribe"]
        return _DETAILS.get(str(payload.get("SuppressionReason")), (type_, None))
    return type_, None


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by its type; a suppression has its reason."""
    if payload.get("SuppressSending") is False:
        return None
    return _BOUNCES.get(str(payload.get("Type", payload.get("SuppressionReason"))))


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied."""
    return payload.get("Details")


verify, usable, sign = wire.basic, wire.credentials, wire.signed_basic


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    time, common = at.isoformat(), {"MessageID": message_id, "MessageStream": "outbound"}
    bounce = {"RecordType": "Bounce", "Email": recipient, "BouncedAt": time, **common}
    change = {"RecordType": "SubscriptionChange", "Recipient": recipient, "ChangedAt": time, **common}
    return {
        "autoresponded": {**bounce, "Type": "AutoResponder", "TypeCode": 32},
        "bounced": {**bounce, "Type": "HardBounce", "TypeCode": 1},
        "clicked": {"RecordType": "Click", "Recipient": recipient, "ReceivedAt": time, **common},
        "complained": {"RecordType": "SpamComplaint", "Email": recipient, "BouncedAt": time, **common},
        "deferred": {**bounce, "Type": "Transient", "TypeCode": 2},
        "delivered": {"RecordType": "Delivery", "Recipient": recipient, "DeliveredAt": time, **common},
        "failed": {**bounce, "Type": "SMTPApiError", "TypeCode": 100_006},
        "opened": {"RecordType": "Open", "Recipient": recipient, "ReceivedAt": time, **common},
        "rejected": {**bounce, "Type": "Blocked", "TypeCode": 100_008},
        "subscribed": {**change, "SuppressSending": False, "SuppressionReason": None},
        "unsubscribed": {**change, "SuppressSending": True, "SuppressionReason": "ManualSuppression"},
    }
