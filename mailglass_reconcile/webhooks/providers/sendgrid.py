"""SendGrid: batches; an ECDSA signature over time and body.

Followed: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event and
https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features.
Not documented: whether a repeated webhook gets a new signature, so a signature may be of any age.

Types of bounces and reasons of drops are those of the first page. `smtp-id` is the Message-ID header: of a message sent
over SMTP it is the sender's own, of others SendGrid's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

SIGNATURE = wire.Signature.OVER_BODY

_TYPES = {
    "bounce": "bounced",
    "click": "clicked",
    "deferred": "deferred",
    "delivered": "delivered",
    "dropped": "rejected",
    "group_resubscribe": "subscribed",
    "group_unsubscribe": "unsubscribed",
    "open": "opened",
    "processed": "queued",
    "spamreport": "complained",
    "unsubscribe": "unsubscribed",
}

_REASONS = {
    "blocked": "blocked",
    "bounce": "bounced",
    "bounced address": "bounced",
    "expired": "timed_out",
    "invalid": "invalid",
    "spam content": "spam",
    "spam content (if spam checker app is enabled)": "spam",
    "spam reporting address": "spam",
    "unsubscribed address": "unsubscribed",
}
"""Types of bounces, and why a message was dropped."""

_SUPPRESSED = ("bounced address", "spam reporting address", "unsubscribed address")
"""Why a message was dropped: the address is on one of SendGrid's lists."""

_BOUNCES: dict[str, Bounce] = {"blocked": "soft", "bounce": "hard", "expired": "soft"}

_MESSAGE_ID = re.compile(r"<([^<>@]+)@([^<>@]*)>")


def elements(request: Request) -> list[Any]:
    return wire.as_list(request.json(), "the body")


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event of the batch."""
    payload = wire.as_object(element, "the event")
    yield wire.event(
        payload,
        type=_type(payload),
        at=wire.epoch(payload.get("timestamp")),
        id=payload.get("sg_event_id"),
        message_id=_message_id(payload),
        recipient=payload.get("email"),
        reason=_reason(payload),
        bounce=bounce(payload),
        smtp=smtp(payload),
        smtp_message_id=smtp_message_id(payload),
        tags=payload.get("category"),
        kept=kept(payload),
    )


def _message_id(payload: Mapping[str, Any]) -> object:
    """Return Anymail's id, or the send's: `X-Message-Id`, which most events have with a relay's suffix."""
    if payload.get("anymail_id"):
        return payload["anymail_id"]
    id_ = payload.get("sg_message_id")
    if isinstance(id_, str) and id_:
        return next(iter(providers.sendgrid(id_)), None) or id_
    header = payload.get("smtp-id")
    found = _MESSAGE_ID.fullmatch(header) if isinstance(header, str) else None
    # SendGrid makes it of the id of the send and the name of one of its hosts.
    return found[1] if found and "ismtpd" in found[2] else header


def _type(payload: Mapping[str, Any]) -> str:
    kind = str(payload.get("event"))
    if kind == "dropped" and str(payload.get("reason")).lower() in _SUPPRESSED:
        return "suppressed"
    return _TYPES.get(kind, "unknown")


def _reason(payload: Mapping[str, Any]) -> str | None:
    kind = payload.get("event")
    if kind not in ("bounce", "dropped"):
        return None
    told = payload.get("type", payload.get("reason", "") if kind == "dropped" else kind)
    return _REASONS.get(str(told).lower(), "other")


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by its type."""
    return _BOUNCES.get(str(payload.get("type"))) if payload.get("event") == "bounce" else None


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied; the reason of a drop is SendGrid's own."""
    if "response" in payload:
        return payload["response"]
    return wire.reply(payload.get("reason"), payload.get("status")) if payload.get("event") == "bounce" else None


def smtp_message_id(payload: Mapping[str, Any]) -> str | None:
    """Return the Message-ID header, unless SendGrid made it."""
    header = payload.get("smtp-id")
    return header if isinstance(header, str) and "ismtpd" not in header else None


def kept(payload: Mapping[str, Any]) -> Mapping[str, bool] | None:
    """Return whether a machine opened the message."""
    return wire.MACHINE if payload.get("sg_machine_open") is True else None


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature with the verification key, as the dashboard shows it."""
    key = _key(secret)
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra, which the key has needed
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415

    given = request.header("X-Twilio-Email-Event-Webhook-Signature")
    signed = request.header("X-Twilio-Email-Event-Webhook-Timestamp").encode() + request.body
    try:
        key.verify(wire.decoded(given), signed, ECDSA(hashes.SHA256()))
    except InvalidSignature:
        wire.require(False)


def usable(secret: str) -> None:
    """Raise `ConfigurationError` unless a secret is the verification key."""
    _key(secret)


def _key(secret: str) -> EllipticCurvePublicKey:
    key = wire.public_key(secret)
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415 - as above

    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigurationError("the secret must be the verification key, as the page of SendGrid shows it")
    return key
