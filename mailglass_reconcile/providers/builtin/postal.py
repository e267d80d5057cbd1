"""Postal: one event a request; an RSA signature over the body.

Followed: https://docs.postalserver.io/developer/webhooks, and for what a `HardFail` and a `Held` are about
https://github.com/postalserver/postal/blob/main/app/senders/smtp_sender.rb and
https://github.com/postalserver/postal/blob/main/app/lib/message_dequeuer/outgoing_message_processor.rb.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import NO_EVENT, EventKind, EventTable, Provider
from mailglass_reconcile.providers.signatures import Authentication, Signature
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.addresses import strip_display_name

_PERMANENT = re.compile(r"\s*5\d\d\b")
_SUPPRESSED = re.compile(r"Recipient .* is on the suppression list(?: \(reason: (.*)\))?", re.DOTALL)


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's only event; inbound mail gives none."""
    body = request.object()
    return [] if "rcpt_to" in body else [body]


def _message(webhook: Mapping[str, Any]) -> object:
    return get_path(webhook, "payload", "message") or get_path(webhook, "payload", "original_message")


def _kind(webhook: Mapping[str, Any]) -> str:
    """Return the status, with the cause of a hard failure or a hold, or the part that the payload of an event has."""
    payload = wire.require_object(webhook.get("payload", {}), "payload")
    if get_path(_message(webhook), "direction") == "incoming":
        return "incoming"
    status = payload.get("status")
    if status is None:
        parts = (name for name in ("bounce", "url") if payload.get(name) is not None)
        return next(parts, str(webhook.get("event")))
    if status == "HardFail" and _PERMANENT.match(str(payload.get("output"))):
        return "HardFail/5xx"
    if status == "Held" and (match := _SUPPRESSED.match(str(payload.get("details")))):
        return "Held/fails" if "fails" in (match[1] or "") else "Held/suppressed"
    return str(status)


def _recipient(webhook: Mapping[str, Any]) -> object:
    to = get_path(_message(webhook), "to")
    return strip_display_name(to) if isinstance(to, str) else to


def _at(webhook: Mapping[str, Any]) -> dt.datetime | None:
    at = wire.parse_epoch(webhook.get("timestamp"))
    return at and at.replace(microsecond=0)


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature with the installation's public key; a Postal before 3 signs with SHA-1 only."""
    key = signatures.load_rsa_key(secret)
    has_sha256 = "x-postal-signature-256" in request.headers
    signature = request.header("X-Postal-Signature-256" if has_sha256 else "X-Postal-Signature")
    signatures.verify_rsa(key, signatures.b64decode_or_reject(signature), request.body, sha1=not has_sha256)


PROVIDER = Provider(
    name="postal",
    title="Postal",
    authentication=Authentication(Signature.OVER_BODY, _verify, signatures.load_rsa_key),
    elements=_elements,
    table=EventTable(
        kind=_kind,
        kinds={
            "Sent": EventKind("delivered"),
            "SoftFail": EventKind("deferred"),
            "HardFail/5xx": EventKind("bounced", "bounced", "hard"),
            "HardFail": EventKind("failed"),  # Postal gave up
            "Held": EventKind("queued"),
            "Held/fails": EventKind("suppressed", "bounced"),
            "Held/suppressed": EventKind("suppressed", "other"),
            "bounce": EventKind("bounced", "bounced"),
            "url": EventKind("clicked"),
            "MessageLoaded": EventKind("opened"),
            "incoming": NO_EVENT,
        },
        at=_at,
        id="uuid",
        message_id=("payload/message/id", "payload/original_message/id"),
        recipient=_recipient,
        reply="payload/output",
        # all that is known of a message sent over SMTP; it has no angle brackets
        smtp_message_id=lambda webhook: get_path(_message(webhook), "message_id"),
        tags=lambda webhook: get_path(_message(webhook), "tag"),
    ),
)
