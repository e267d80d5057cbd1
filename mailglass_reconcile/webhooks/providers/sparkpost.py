"""SparkPost: batches; HTTP basic authentication, because SparkPost signs nothing.

Followed: https://developers.sparkpost.com/api/webhooks/, https://support.sparkpost.com/docs/tech-resources/webhook-event-reference
and https://support.sparkpost.com/docs/deliverability/bounce-classification-codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

_TYPES = {
    "amp_click": "clicked",
    "amp_open": "opened",
    "bounce": "bounced",
    "click": "clicked",
    "delay": "deferred",
    "delivery": "delivered",
    "generation_failure": "failed",
    "generation_rejection": "rejected",
    "injection": "queued",
    "link_unsubscribe": "unsubscribed",
    "list_unsubscribe": "unsubscribed",
    "open": "opened",
    "out_of_band": "bounced",
    "policy_rejection": "rejected",
    "spam_complaint": "complained",
}
"""The first open of a message comes as `initial_open` and as `open`; only the latter counts."""

_REASONS = {
    **dict.fromkeys(("20", "21", "22", "23", "30", "40", "70"), "bounced"),
    **dict.fromkeys(("25", "50", "54"), "blocked"),
    **dict.fromkeys(("51", "52"), "spam"),
    "10": "invalid",
    "24": "timed_out",
    "90": "unsubscribed",
}
_TYPES_OF_BOUNCES = {
    "60": "autoresponded",
    "80": "subscribed",
    "90": "unsubscribed",
    "100": "autoresponded",
}
"""Bounces that are something else."""


def elements(request: Request) -> list[Any]:
    """Return the batch."""
    return wire.as_list(request.json(), "the body")


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; a ping (an empty one) and inbound mail give none."""
    msys = wire.as_object(wire.as_object(element, "the event").get("msys"), "msys")
    if not msys or "relay_message" in msys:
        return
    if len(msys) > 1:
        raise InvalidWebhookError("msys has several classes of events")
    payload = wire.as_object(next(iter(msys.values())), "the event")
    bounce = str(payload["bounce_class"]) if "bounce_class" in payload else None
    type_ = _TYPES.get(str(payload.get("type")), "unknown")
    yield wire.event(
        element,
        type=_TYPES_OF_BOUNCES.get(bounce or "", type_),
        at=wire.epoch(payload.get("timestamp")),
        id=payload.get("event_id"),
        message_id=payload.get("transmission_id"),
        recipient=payload.get("raw_rcpt_to"),
        reason=_REASONS.get(bounce, "other") if bounce is not None else None,
        tags=payload.get("campaign_id"),
    )


def verify(request: Request, secret: str, now: float) -> None:
    """Check the user name and the password."""
    wire.basic(request, secret)
