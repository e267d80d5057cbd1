"""MailerSend: one activity a request; an HMAC over the body.

Followed: https://developers.mailersend.com/api/v1/webhooks.html (events, payloads, the signature, and the ping
`webhook.test`, signed with a secret that is the same for everybody). Not documented: all values of `morph.object`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, dug

TEST_SECRET = "test_Am3L1GuOIc4blLUuHqAPxxwkZaJyEk8G"  # noqa: S105 - public: MailerSend's documentation has it
"""Signs nothing but the ping that MailerSend sends before it saves a webhook."""

_TYPES = {
    "clicked": "clicked",
    "delivered": "delivered",
    "hard_bounced": "bounced",
    "opened": "opened",
    "sent": "sent",
    "soft_bounced": "bounced",
    "spam_complaint": "complained",
    "unsubscribed": "unsubscribed",
}
_REASONS = {"recipient_bounce": "bounced", "recipient_unsubscribe": "unsubscribed", "spam_complaint": "spam"}


def elements(request: Request) -> list[Any]:
    """Return the request's only event; inbound mail and the ping give none."""
    body = request.object()
    return [] if body.get("type") in ("inbound.message", "webhook.test") else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one activity; the request around it is dated at each attempt."""
    payload = wire.as_object(element, "the event")
    data = wire.as_object(payload.get("data", {}), "data")
    yield wire.event(
        data,
        type=_TYPES.get(str(data.get("type")), "unknown"),
        at=wire.iso(data.get("created_at")),
        id=data.get("id"),
        message_id=dug(data, "email", "message", "id"),
        recipient=dug(data, "email", "recipient", "email"),
        reason=_REASONS.get(str(dug(data, "morph", "object"))),
        tags=dug(data, "email", "tags"),
    )


def verify(request: Request, secret: str, now: float) -> None:
    """Check the header `Signature`."""
    wire.hexadecimal(request, "Signature", TEST_SECRET if _is_ping(request) else secret)


def _is_ping(request: Request) -> bool:
    try:
        return bool(dug(request.json(), "type") == "webhook.test")
    except InvalidWebhookError:
        return False
