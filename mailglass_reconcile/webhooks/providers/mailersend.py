"""MailerSend: one activity a request; an HMAC over the body.

Followed: https://developers.mailersend.com/api/v1/account/webhooks.html (events, the payloads of version 2, the
signature, and the ping `webhook.test`, signed with a secret that is the same for everybody) and
https://developers.mailersend.com/api/v1/webhooks.html (version 1). In webhooks of version 2, the documentation has the
recipient in `data.email`; captured ones have it in `data.recipient`
(https://github.com/anymail/django-anymail/blob/main/tests/test_mailersend_webhooks.py).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, Signed, dug

SIGNATURE = wire.Signature.OVER_BODY

TEST_SECRET = "test_Am3L1GuOIc4blLUuHqAPxxwkZaJyEk8G"  # noqa: S105 - public: MailerSend's documentation has it
"""Signs nothing but the ping that MailerSend sends before it saves a webhook."""
MAX_PING = 10_000

_TYPES = {
    "activity.clicked": "clicked",
    "activity.clicked_unique": "clicked",
    "activity.deferred": "deferred",
    "activity.delivered": "delivered",
    "activity.hard_bounced": "bounced",
    "activity.opened": "opened",
    "activity.opened_unique": "opened",
    "activity.sent": "sent",
    "activity.soft_bounced": "bounced",
    "activity.spam_complaint": "complained",
    "activity.suppressed": "suppressed",
    "activity.unsubscribed": "unsubscribed",
}
"""By the type of the request: in version 2, that of its `data` may be another, such as `opened` of `opened_unique`."""

_REASONS = {
    "activity.hard_bounced": "bounced",
    "activity.soft_bounced": "other",
    "activity.spam_complaint": "spam",
    "activity.unsubscribed": "unsubscribed",
}
_SUPPRESSED = {"bounce": "bounced", "spam": "spam", "unsubscribe": "unsubscribed", "block": "blocked"}
"""Words of MailerSend's suppression lists (blocklist, hard bounces, spam complaints, unsubscribes, on hold)."""

_BOUNCES: dict[str, Bounce] = {"activity.hard_bounced": "hard", "activity.soft_bounced": "soft"}


def elements(request: Request) -> list[Any]:
    """Return the request's only event; what is no activity of a message gives none, such as the ping."""
    body = request.object()
    return [body] if str(body.get("type")).startswith("activity.") else []


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one activity of version 1, which has objects within its data, or of version 2, whose data is flat."""
    payload = wire.as_object(element, "the event")
    data = wire.as_object(payload.get("data", {}), "data")
    email = data.get("email")
    kind = str(payload.get("type"))
    yield wire.event(
        data,
        type=_TYPES.get(kind, "unknown"),
        # Version 1 dates the request around the activity at each attempt.
        at=wire.iso(data.get("created_at", payload.get("created_at"))),
        id=data.get("id"),
        message_id=dug(email, "message", "id") or data.get("message_id"),
        recipient=dug(email, "recipient", "email") or data.get("recipient", _text(email)),
        reason=_suppressed(data) if kind == "activity.suppressed" else _REASONS.get(kind),
        bounce=bounce(payload),
        smtp=smtp(payload),
        tags=data.get("tags", dug(email, "tags")),
    )


def _suppressed(data: dict[str, Any]) -> str:
    named = str(dug(data, "meta", "suppression_reason"))
    return next((reason for word, reason in _SUPPRESSED.items() if word in named), "other")


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by the event's type."""
    return _BOUNCES.get(str(payload.get("type")))


def smtp(payload: Mapping[str, Any]) -> object:
    """Return the code of the server's reply and its text; version 1 has words only."""
    meta = dug(payload, "data", "meta")
    return wire.with_code(dug(meta, "bounce_code"), dug(meta, "bounce_reason"))


def _text(email: object) -> str | None:
    return email if isinstance(email, str) else None


def verify(request: Request, secret: str, now: float) -> None:
    """Check the header `Signature`."""
    try:
        wire.hexadecimal(request, "Signature", secret)
    except SignatureError:
        if not _is_ping(request):
            raise


def _is_ping(request: Request) -> bool:
    """Whether this is the ping, whose secret is known to everybody: a longer one than that is not parsed."""
    if len(request.body) > MAX_PING:
        return False
    try:
        wire.hexadecimal(request, "Signature", TEST_SECRET)
        return bool(dug(request.json(), "type") == "webhook.test")
    except (InvalidWebhookError, SignatureError):
        return False


def sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    return wire.as_json(body, Signature=wire.hex_hmac(body, secret))


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    """Return for each type a body as MailerSend writes it, in version 2."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "bounced": ("hard_bounced", {"bounce_code": 550, "bounce_type": "hard"}),
        "clicked": ("clicked", {}),
        "complained": ("spam_complaint", {}),
        "deferred": ("deferred", {}),
        "delivered": ("delivered", {}),
        "opened": ("opened", {}),
        "sent": ("sent", {}),
        "suppressed": ("suppressed", {"suppression_reason": "on_hold"}),
        "unsubscribed": ("unsubscribed", {}),
    }
    common = {"message_id": message_id, "recipient": recipient}
    return {
        type_: {
            "type": f"activity.{kind}",
            "created_at": at.isoformat(),
            "data": {"id": wire.digest([type_, message_id, at])[:24], "type": kind, "meta": meta, **common},
        }
        for type_, (kind, meta) in kinds.items()
    }
