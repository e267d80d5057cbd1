"""Mailjet: batches, or one event if "group events" is off; HTTP basic authentication, because Mailjet signs nothing.

Followed: https://dev.mailjet.com/email/guides/webhooks/. Not documented: an id of the event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

_TYPES = {
    "blocked": "rejected",
    "bounce": "bounced",
    "click": "clicked",
    "open": "opened",
    "sent": "delivered",
    "spam": "complained",
    "unsub": "unsubscribed",
}

_REASONS = {
    "blacklisted": "blocked",
    "content blocked": "blocked",
    "duplicate in campaign": "other",
    "greylisted": "other",
    "invalid domain": "bounced",
    "mailbox inactive": "bounced",
    "no mail host": "bounced",
    "policy issue": "blocked",
    "preblocked": "blocked",
    "quota exceeded": "bounced",
    "relay/access denied": "bounced",
    "sender blocked": "blocked",
    "spam reporter": "spam",
    "typofix": "invalid",
    "user unknown": "bounced",
}


def elements(request: Request) -> list[Any]:
    """Return the batch, or the only event."""
    body = request.json()
    return body if isinstance(body, list) else [wire.as_object(body, "the body")]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event. A greylisted message is tried again, unless the bounce is a hard one."""
    payload = wire.as_object(element, "the event")
    later = payload.get("error") == "greylisted" and not payload.get("hard_bounce", False)
    id_ = payload.get("MessageID")
    yield wire.event(
        payload,
        type="deferred" if later else _TYPES.get(str(payload.get("event")), "unknown"),
        at=wire.epoch(payload.get("time")),
        id=None,
        message_id=str(id_) if isinstance(id_, int) and not isinstance(id_, bool) else id_,
        recipient=payload.get("email"),
        reason=_REASONS.get(str(payload["error"]), "other") if "error" in payload else None,
        tags=payload.get("customcampaign"),
    )


def verify(request: Request, secret: str, now: float) -> None:
    """Check the user name and the password."""
    wire.basic(request, secret)
