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

from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.provider import NO_EVENT, Field, Kind, Provider, Table, computed
from mailglass_reconcile.webhooks.wire import Authentication, Request, Signature, dug

_PERMANENT = re.compile(r"\s*5\d\d\b")
_SUPPRESSED = re.compile(r"Recipient .* is on the suppression list(?: \(reason: (.*)\))?", re.DOTALL)


def _elements(request: Request) -> list[Any]:
    """Return the request's only event; inbound mail gives none."""
    body = request.object()
    return [] if "rcpt_to" in body else [body]


def _message(webhook: Mapping[str, Any]) -> object:
    return dug(webhook, "payload", "message") or dug(webhook, "payload", "original_message")


def _kind(webhook: Mapping[str, Any]) -> str:
    """Return the status, or what the payload tells; of a failure, whether a server has refused the message for good."""
    payload = wire.as_object(webhook.get("payload", {}), "payload")
    if dug(_message(webhook), "direction") == "incoming":
        return "incoming"
    status = payload.get("status")
    if status is None:
        telling = (name for name in ("bounce", "url") if payload.get(name) is not None)
        return next(telling, str(webhook.get("event")))
    if status == "HardFail" and _PERMANENT.match(str(payload.get("output"))):
        return "HardFail/5xx"
    if status == "Held" and (listed := _SUPPRESSED.match(str(payload.get("details")))):
        return "Held/fails" if "fails" in (listed[1] or "") else "Held/suppressed"
    return str(status)


def _recipient(webhook: Mapping[str, Any]) -> object:
    to = dug(_message(webhook), "to")
    return bare(to) if isinstance(to, str) else to


def _at(webhook: Mapping[str, Any]) -> dt.datetime | None:
    at = wire.epoch(webhook.get("timestamp"))
    return at and at.replace(microsecond=0)


def _verify(request: Request, secret: str, now: float) -> None:
    """Check the signature with the installation's public key; a Postal before 3 signs with SHA-1 only."""
    key = wire.rsa_key(secret)
    newer = "x-postal-signature-256" in request.headers
    given = request.header("X-Postal-Signature-256" if newer else "X-Postal-Signature")
    wire.rsa(key, wire.decoded(given), request.body, sha1=not newer)


def _row(event: str, read: Kind, **payload: Any) -> Kind:
    return read._replace(payload={"event": event, "payload": payload})


_LISTED = "Recipient (a@b.example) is on the suppression list"

PROVIDER = Provider(
    name="postal",
    title="Postal",
    documentation="https://docs.postalserver.io/developer/webhooks",
    boxes="all Message events",
    retries="5 in 36 minutes",
    authentication=Authentication(Signature.OVER_BODY, "RSA over the body", _verify, wire.rsa_key),
    elements=_elements,
    table=Table(
        kind=_kind,
        kinds={
            "Sent": _row("MessageSent", Kind("delivered"), status="Sent"),
            "SoftFail": _row("MessageDelayed", Kind("deferred"), status="SoftFail"),
            "HardFail/5xx": _row(
                "MessageDeliveryFailed", Kind("bounced", "bounced", "hard"), status="HardFail", output="550 5.1.1 no"
            ),
            "HardFail": _row("MessageDeliveryFailed", Kind("failed"), status="HardFail", output=""),  # Postal gave up
            "Held": _row("MessageHeld", Kind("queued"), status="Held"),
            "Held/fails": _row(
                "MessageHeld",
                Kind("suppressed", "bounced"),
                status="Held",
                details=f"{_LISTED} (reason: too many hard fails)",
            ),
            "Held/suppressed": _row("MessageHeld", Kind("suppressed", "other"), status="Held", details=_LISTED),
            "bounce": _row("MessageBounced", Kind("bounced", "bounced"), bounce={"direction": "incoming"}),
            "url": _row("MessageLinkClicked", Kind("clicked"), url="https://example.com"),
            "MessageLoaded": _row("MessageLoaded", Kind("opened")),
            "incoming": NO_EVENT,
        },
        at=Field(_at, ("timestamp",), lambda at: at.timestamp()),
        id="uuid",
        message_id=("payload/message/id", "payload/original_message/id"),
        recipient=computed(_recipient, "payload/message/to"),
        reply="payload/output",
        # all that is known of a message sent over SMTP; it has no angle brackets
        smtp_message_id=lambda webhook: dug(_message(webhook), "message_id"),
        tags=lambda webhook: dug(_message(webhook), "tag"),
        sample={"payload": {"message": {"direction": "outgoing"}}},
    ),
)
