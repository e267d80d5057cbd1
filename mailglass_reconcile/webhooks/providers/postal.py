"""Postal: one event a request; an RSA signature over the body.

Followed: https://docs.postalserver.io/developer/webhooks. Types are Anymail's, which reports an open (`MessageLoaded`)
as `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, dug

_STATUSES = {"HardFail": "failed", "Held": "queued", "Sent": "delivered", "SoftFail": "deferred"}


def elements(request: Request) -> list[Any]:
    """Return the request's only event; inbound mail gives none."""
    body = request.object()
    return [] if "rcpt_to" in body else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; one about inbound mail gives none."""
    webhook = wire.as_object(element, "the event")
    payload = wire.as_object(webhook.get("payload", {}), "payload")
    message = payload.get("message") or payload.get("original_message")
    if dug(message, "direction") == "incoming":
        return
    type_ = _type(payload)
    to = dug(message, "to")
    at = wire.epoch(webhook.get("timestamp"))
    yield wire.event(
        webhook,
        type=type_,
        at=at and at.replace(microsecond=0),
        id=webhook.get("uuid"),
        message_id=dug(message, "id"),
        recipient=bare(to) if isinstance(to, str) else to,
        reason="bounced" if type_ == "bounced" else None,
        tags=dug(message, "tag"),
    )


def _type(payload: dict[str, Any]) -> str:
    if "status" in payload:
        return _STATUSES.get(str(payload["status"]), "unknown")
    return "bounced" if "bounce" in payload else "clicked" if "url" in payload else "unknown"


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature with the installation's public key; a Postal before 3 signs with SHA-1 only."""
    key = wire.public_key(secret)
    newer = "x-postal-signature-256" in request.headers
    given = request.header("X-Postal-Signature-256" if newer else "X-Postal-Signature")
    wire.rsa(key, wire.decoded(given), request.body, sha1=not newer)
