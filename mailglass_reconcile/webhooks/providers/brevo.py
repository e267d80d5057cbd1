"""Brevo: one event a request; HTTP basic authentication, because Brevo signs nothing.

Followed: https://developers.brevo.com/docs/transactional-webhooks and
https://developers.brevo.com/docs/username-and-password-authentication. Not documented: an id of the event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

_TYPES: dict[str, tuple[str, str | None]] = {
    "blocked": ("rejected", "blocked"),
    "click": ("clicked", None),
    "complaint": ("complained", "spam"),
    "deferred": ("deferred", None),
    "delivered": ("delivered", None),
    "error": ("failed", None),
    "hard_bounce": ("bounced", "bounced"),
    "invalid_email": ("bounced", "invalid"),
    "list_addition": ("subscribed", None),
    "opened": ("opened", None),
    "proxy_open": ("opened", None),
    "request": ("queued", None),
    "soft_bounce": ("bounced", "bounced"),
    "spam": ("complained", "spam"),
    "unique_opened": ("opened", None),
    "unique_proxy_open": ("opened", None),
    "unsubscribe": ("unsubscribed", None),
}


def elements(request: Request) -> list[Any]:
    """Return the request's event, or the batch; inbound mail gives none."""
    body = request.json()
    if isinstance(body, list):
        return body
    return [] if "items" in wire.as_object(body, "the body") else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; of its times, only `ts_epoch`, in milliseconds, is in UTC."""
    payload = wire.as_object(element, "the event")
    type_, reason = _TYPES.get(str(payload.get("event")), ("unknown", None))
    yield wire.event(
        payload,
        type=type_,
        at=wire.epoch(payload.get("ts_epoch"), per_second=1_000),
        id=None,
        message_id=payload.get("message-id"),
        recipient=payload.get("email"),
        reason=reason,
        tags=payload["tags"] if "tags" in payload else payload.get("tag"),
    )


def verify(request: Request, secret: str, now: float) -> None:
    """Check the user name and the password."""
    wire.basic(request, secret)
