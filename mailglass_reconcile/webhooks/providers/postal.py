"""Postal: one event a request; an RSA signature over the body.

Followed: https://docs.postalserver.io/developer/webhooks, and for what a `HardFail` and a `Held` are about
https://github.com/postalserver/postal/blob/main/app/senders/smtp_sender.rb and
https://github.com/postalserver/postal/blob/main/app/lib/message_dequeuer/outgoing_message_processor.rb.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, dug

SIGNATURE = wire.Signature.OVER_BODY

_STATUSES = {"HardFail": "failed", "Held": "queued", "Sent": "delivered", "SoftFail": "deferred"}
_PERMANENT = re.compile(r"\s*5\d\d\b")
_SUPPRESSED = re.compile(r"Recipient .* is on the suppression list(?: \(reason: (.*)\))?", re.DOTALL)


def elements(request: Request) -> list[Any]:
    """Return the request's only event; inbound mail gives none."""
    body = request.object()
    return [] if "rcpt_to" in body else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; one about inbound mail gives none."""
    webhook = wire.as_object(element, "the event")
    wire.as_object(webhook.get("payload", {}), "payload")
    message = _message(webhook)
    if dug(message, "direction") == "incoming":
        return
    type_, reason = _type(webhook)
    to = dug(message, "to")
    at = wire.epoch(webhook.get("timestamp"))
    yield wire.event(
        webhook,
        type=type_,
        at=at and at.replace(microsecond=0),
        id=webhook.get("uuid"),
        message_id=dug(message, "id"),
        recipient=bare(to) if isinstance(to, str) else to,
        reason=reason,
        bounce=bounce(webhook),
        smtp=smtp(webhook),
        smtp_message_id=smtp_message_id(webhook),
        tags=dug(message, "tag"),
    )


def _type(webhook: Mapping[str, Any]) -> tuple[str, str | None]:
    payload = webhook.get("payload")
    status = dug(payload, "status")
    if status is not None:
        held = _SUPPRESSED.match(str(dug(payload, "details"))) if status == "Held" else None
        if held:
            return "suppressed", "bounced" if "fails" in (held[1] or "") else "other"
        return ("bounced", "bounced") if bounce(webhook) else (_STATUSES.get(str(status), "unknown"), None)
    if dug(payload, "bounce") is not None:
        return "bounced", "bounced"
    if dug(payload, "url") is not None:
        return "clicked", None
    return "opened" if webhook.get("event") == "MessageLoaded" else "unknown", None


def bounce(webhook: Mapping[str, Any]) -> Bounce | None:
    """Return `hard` if the recipient's server refused the message for good: other failures are Postal's own."""
    payload = webhook.get("payload")
    return "hard" if dug(payload, "status") == "HardFail" and _PERMANENT.match(str(smtp(webhook))) else None


def smtp(webhook: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied."""
    return dug(webhook, "payload", "output")


def smtp_message_id(webhook: Mapping[str, Any]) -> object:
    """Return the Message-ID header, without angle brackets, which is all that is known of a message sent over SMTP."""
    return dug(_message(webhook), "message_id")


def _message(webhook: Mapping[str, Any]) -> object:
    return dug(webhook, "payload", "message") or dug(webhook, "payload", "original_message")


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature with the installation's public key; a Postal before 3 signs with SHA-1 only."""
    key = wire.rsa_key(secret)
    newer = "x-postal-signature-256" in request.headers
    given = request.header("X-Postal-Signature-256" if newer else "X-Postal-Signature")
    wire.rsa(key, wire.decoded(given), request.body, sha1=not newer)


def usable(secret: str) -> None:
    """Raise `ConfigurationError` unless a secret is a public key of RSA."""
    wire.rsa_key(secret)
