"""Brevo: one event a request; HTTP basic authentication, because Brevo signs nothing.

Followed: https://developers.brevo.com/docs/transactional-webhooks, https://developers.brevo.com/docs/marketing-webhooks
(`list_addition` and `unsubscribe`) and https://developers.brevo.com/docs/username-and-password-authentication. Not
documented: an id of the event. The documentation's examples have events without `ts_epoch`, and some that have it in
seconds.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

SIGNATURE = wire.Signature.IN_HEADERS
BUSY = 429
"""Brevo discards an event after any 5xx, and after any 4xx but this one."""

_TYPES: dict[str, tuple[str, str | None]] = {
    "blocked": ("rejected", "blocked"),
    "click": ("clicked", None),
    "complaint": ("complained", "spam"),
    "deferred": ("deferred", None),
    "delivered": ("delivered", None),
    "error": ("failed", None),
    "hard_bounce": ("bounced", "bounced"),
    "invalid_email": ("rejected", "invalid"),
    "list_addition": ("subscribed", None),
    "opened": ("opened", None),
    "proxy_open": ("opened", None),
    "request": ("queued", None),
    "soft_bounce": ("bounced", "other"),
    "spam": ("complained", "spam"),
    "unique_opened": ("opened", None),
    "unique_proxy_open": ("opened", None),
    "unsubscribe": ("unsubscribed", None),
    "unsubscribed": ("unsubscribed", None),
}
_BOUNCES: dict[str, Bounce] = {"hard_bounce": "hard", "soft_bounce": "soft"}
_PREFIX = re.compile(r"\s*(?:[245]\d\d\s+)?RecipientError:\s*")
"""Stands before some replies (https://github.com/anymail/django-anymail/blob/main/tests/test_brevo_webhooks.py)."""
_FIRST_YEAR = 2012
"""Brevo's first; `ts_epoch` in seconds, read as milliseconds, is a time of January 1970."""


def elements(request: Request) -> list[Any]:
    """Return the request's event, or the batch; inbound mail gives none."""
    body = request.json()
    if isinstance(body, list):
        return body
    return [] if "items" in wire.as_object(body, "the body") else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    payload = wire.as_object(element, "the event")
    type_, reason = _TYPES.get(str(payload.get("event")), ("unknown", None))
    yield wire.event(
        payload,
        type=type_,
        at=_at(payload),
        id=event_id(payload),
        message_id=payload.get("message-id"),
        recipient=payload.get("email"),
        reason=reason,
        bounce=bounce(payload),
        smtp=smtp(payload),
        tags=payload["tags"] if "tags" in payload else payload.get("tag"),
    )


def event_id(payload: Mapping[str, Any]) -> str:
    """Return a digest of an event without the id of the webhook: two of one account report the same event."""
    return wire.digest({name: value for name, value in payload.items() if name != "id"})


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by the event's name."""
    return _BOUNCES.get(str(payload.get("event")))


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied, or another reason in words."""
    reason = payload.get("reason")
    return _PREFIX.sub("", reason, count=1) if isinstance(reason, str) else None


def _at(payload: Mapping[str, Any]) -> dt.datetime | None:
    """Return the time: `ts_epoch`, if it is in milliseconds, or else `ts_event`; `date` is in another zone."""
    told = payload.get("ts_epoch")
    at = wire.epoch(told, per_second=1_000)
    return at if at is not None and at.year >= _FIRST_YEAR else wire.epoch(payload.get("ts_event")) or wire.epoch(told)


verify, usable, sign = wire.basic, wire.credentials, wire.signed_basic


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    kinds = {
        "bounced": "hard_bounce",
        "clicked": "click",
        "complained": "spam",
        "deferred": "deferred",
        "delivered": "delivered",
        "failed": "error",
        "opened": "opened",
        "queued": "request",
        "rejected": "blocked",
        "subscribed": "list_addition",
        "unsubscribed": "unsubscribe",
    }
    common = {"email": recipient, "message-id": message_id, "ts_epoch": int(at.timestamp() * 1_000)}
    return {type_: {"event": kind, **common} for type_, kind in kinds.items()}
