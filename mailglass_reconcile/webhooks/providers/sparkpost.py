"""SparkPost: batches; HTTP basic authentication, because SparkPost signs nothing.

Followed: https://developers.sparkpost.com/api/webhooks/, https://support.sparkpost.com/docs/tech-resources/webhook-event-reference,
https://support.sparkpost.com/docs/deliverability/bounce-classification-codes and
https://support.sparkpost.com/docs/tech-resources/open-pixel-location. Not documented: an id that a sender over SMTP
could know.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, dug

SIGNATURE = wire.Signature.IN_HEADERS

_TYPES = {
    "amp_click": "clicked",
    "amp_initial_open": "opened",
    "amp_open": "opened",
    "bounce": "bounced",
    "click": "clicked",
    "delay": "deferred",
    "delivery": "delivered",
    "generation_failure": "failed",
    "generation_rejection": "rejected",
    "initial_open": "opened",
    "injection": "queued",
    "link_unsubscribe": "unsubscribed",
    "list_unsubscribe": "unsubscribed",
    "open": "opened",
    "out_of_band": "bounced",
    "policy_rejection": "rejected",
    "spam_complaint": "complained",
}
"""The pixel of an `initial_open` is at the top of the message, that of an `open` at its end, which may be cut off."""

_SOFT = ("20", "21", "22", "23", "40", "70")
_BLOCKED = ("50", "51", "52", "53", "54")
_REASONS = {
    **dict.fromkeys(_SOFT, "other"),
    **dict.fromkeys(("25", "50", "54"), "blocked"),
    **dict.fromkeys(("51", "52"), "spam"),
    "10": "invalid",
    "24": "timed_out",
    "30": "bounced",
    "90": "unsubscribed",
}
_BOUNCES: dict[str, Bounce] = {
    **dict.fromkeys((*_SOFT, "24", *_BLOCKED), "soft"),
    **dict.fromkeys(("10", "25", "30"), "hard"),
}
"""The categories Soft and Block, usually temporary; and Hard and Admin, for which SparkPost suppresses an address."""
_TYPES_OF_BOUNCES = {
    "60": "autoresponded",
    "80": "subscribed",
    "90": "unsubscribed",
    "100": "autoresponded",
}
"""Bounces that are something else."""
_SUPPRESSED = re.compile(r"suppressed due to (?:customer|system) policy")
"""The reason of a message that SparkPost did not send, because the address is on its list or yours."""

_INBOUND = ("relay_message", "relay_event")


def elements(request: Request) -> list[Any]:
    return wire.as_list(request.json(), "the body")


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; a ping (an empty one) and inbound mail give none."""
    msys = wire.as_object(wire.as_object(element, "the event").get("msys"), "msys")
    if not msys or any(name in msys for name in _INBOUND):
        return
    if len(msys) > 1:
        raise InvalidWebhookError("msys has several classes of events")
    payload = wire.as_object(next(iter(msys.values())), "the event")
    class_ = str(payload["bounce_class"]) if "bounce_class" in payload else None
    type_, reason = _TYPES.get(str(payload.get("type")), "unknown"), _REASONS.get(class_ or "", "other")
    if _is_suppressed(payload):
        type_, reason = "suppressed", "other"
    yield wire.event(
        element,
        type=_TYPES_OF_BOUNCES.get(class_ or "", type_),
        at=wire.epoch(payload.get("timestamp")),
        id=payload.get("event_id"),
        message_id=payload.get("transmission_id"),
        recipient=payload.get("raw_rcpt_to"),
        reason=reason if class_ is not None or type_ == "suppressed" else None,
        bounce=bounce(wire.as_object(element, "the event")),
        smtp=smtp(wire.as_object(element, "the event")),
        tags=payload.get("campaign_id"),
    )


def _is_suppressed(told: object) -> bool:
    return any(_SUPPRESSED.search(str(dug(told, name))) for name in ("raw_reason", "reason"))


def _told(element: Mapping[str, Any]) -> object:
    """Return what an event says, without the classes around it."""
    classes = dug(element, "msys")
    return next(iter(classes.values()), None) if isinstance(classes, dict) else None


def bounce(element: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by its class."""
    told = _told(element)
    is_bounce = dug(told, "type") in ("bounce", "out_of_band") and not _is_suppressed(told)
    return _BOUNCES.get(str(dug(told, "bounce_class"))) if is_bounce else None


def smtp(element: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied."""
    told = _told(element)
    return wire.reply(dug(told, "raw_reason"), dug(told, "reason"), dug(told, "error_code"))


verify, usable, sign = wire.basic, wire.credentials, wire.signed_basic


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    kinds: dict[str, tuple[str, dict[str, str]]] = {
        "autoresponded": ("message_event", {"type": "bounce", "bounce_class": "60"}),
        "bounced": ("message_event", {"type": "bounce", "bounce_class": "10"}),
        "clicked": ("track_event", {"type": "click"}),
        "complained": ("message_event", {"type": "spam_complaint"}),
        "deferred": ("message_event", {"type": "delay"}),
        "delivered": ("message_event", {"type": "delivery"}),
        "failed": ("gen_event", {"type": "generation_failure"}),
        "opened": ("track_event", {"type": "open"}),
        "queued": ("message_event", {"type": "injection"}),
        "rejected": ("message_event", {"type": "policy_rejection"}),
        "subscribed": ("message_event", {"type": "bounce", "bounce_class": "80"}),
        "unsubscribed": ("unsubscribe_event", {"type": "list_unsubscribe"}),
    }
    common = {"transmission_id": message_id, "raw_rcpt_to": recipient, "timestamp": str(int(at.timestamp()))}
    return {
        type_: [{"msys": {kind: {**told, **common, "event_id": wire.digest([type_, message_id, at])[:20]}}}]
        for type_, (kind, told) in kinds.items()
    }
