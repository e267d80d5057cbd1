"""SendGrid: batches; an ECDSA signature over time and body.

Followed: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event and
https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features.
Not documented: whether a repeated webhook gets a new signature, so a signature may be of any age.

Types of bounces and reasons of drops are those of the first page; `expired` is Anymail's and Mailglass's. `smtp-id` is
the Message-ID header: of a message sent over SMTP it is the sender's own, of others SendGrid's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, epoch_field
from mailglass_reconcile.providers.signatures import Authentication, Signature
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules.provider_rules import MessageIds

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_MESSAGE_ID = re.compile(r"<([^<>@]+)@([^<>@]*)>")
_RELAY_SUFFIX = re.compile(r"\.(?:filter|stfilter-|recvd-)")
_RELAY_ONLY = re.compile(r"(?:filter|stfilter-|recvd-)[^.]*\.")
_SEND_ID = re.compile(r"[A-Za-z0-9_-]{22}(?=\.)")


def _ids(sg_message_id: str | None) -> Iterable[str | None]:
    """`sg_message_id`: the send API's `X-Message-Id` and a relay suffix."""
    if sg_message_id is None:
        return ()
    id_ = _without_suffix(sg_message_id)
    return (id_, sg_message_id) if id_ != sg_message_id else () if _RELAY_ONLY.match(id_) else (id_,)


def _without_suffix(sg_message_id: str) -> str:
    """Return the id of the send, without a relay's suffix; legacy ids contain dots themselves."""
    if suffix := _RELAY_SUFFIX.search(sg_message_id):
        return sg_message_id[: suffix.start()]
    current = _SEND_ID.match(sg_message_id)
    return current[0] if current else sg_message_id


def _elements(request: WebhookRequest) -> list[Any]:
    return wire.require_list(request.json, "the body")


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's name, with the type of a bounce, or the reason of a drop."""
    event = payload.get("event")
    if event == "bounce" and "type" in payload:
        row = f"bounce/{str(payload['type']).lower()}"
        return row if row in _KINDS else "bounce/other"
    if event == "dropped":
        row = f"dropped/{str(payload.get('reason')).lower()}"
        return row if row in _KINDS else event
    return event if isinstance(event, str) else ""


def _message_id(payload: Mapping[str, Any]) -> object:
    """Return Anymail's id, or the id of the send: `X-Message-Id`, in most events with a relay's suffix."""
    if payload.get("anymail_id"):
        return payload["anymail_id"]
    id_ = payload.get("sg_message_id")
    if isinstance(id_, str) and id_:
        return _without_suffix(id_) or id_
    header = payload.get("smtp-id")
    match = _MESSAGE_ID.fullmatch(header) if isinstance(header, str) else None
    # SendGrid makes it of the id of the send and the name of one of its hosts.
    return match[1] if match and "ismtpd" in match[2] else header


def _reply(payload: Mapping[str, Any]) -> object:
    """Return the reply of the recipient's server; the reason of a drop is SendGrid's own."""
    if "response" in payload:
        return payload["response"]
    return wire.first_reply(payload.get("reason"), payload.get("status")) if payload.get("event") == "bounce" else None


def _smtp_message_id(payload: Mapping[str, Any]) -> str | None:
    """Return the Message-ID header, unless SendGrid made it."""
    header = payload.get("smtp-id")
    return header if isinstance(header, str) and "ismtpd" not in header else None


def _metadata(payload: Mapping[str, Any]) -> Mapping[str, bool] | None:
    return wire.MACHINE if payload.get("sg_machine_open") is True else None


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature with the verification key, as the dashboard shows it."""
    key = _key(secret)
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra, which the key has needed
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415

    signature = request.header("X-Twilio-Email-Event-Webhook-Signature")
    signed = request.header("X-Twilio-Email-Event-Webhook-Timestamp").encode() + request.body
    try:
        key.verify(signatures.b64decode_or_reject(signature), signed, ECDSA(hashes.SHA256()))
    except InvalidSignature:
        signatures.require_match(False)


def _key(secret: str) -> EllipticCurvePublicKey:
    key = signatures.load_public_key(secret)
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415 - as above

    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigurationError("the secret must be the verification key, as the page of SendGrid shows it")
    return key


_KINDS = {
    "processed": EventKind("queued"),
    "delivered": EventKind("delivered"),
    "deferred": EventKind("deferred"),
    "bounce/bounce": EventKind("bounced", "bounced", "hard"),
    "bounce/blocked": EventKind("bounced", "blocked", "soft"),
    "bounce/expired": EventKind("bounced", "timed_out", "soft"),
    "bounce/other": EventKind("bounced", "other"),
    "bounce": EventKind("bounced", "bounced"),
    "dropped": EventKind("rejected", "other"),
    "dropped/bounced address": EventKind("suppressed", "bounced"),
    "dropped/spam reporting address": EventKind("suppressed", "spam"),
    "dropped/unsubscribed address": EventKind("suppressed", "unsubscribed"),
    "dropped/invalid": EventKind("rejected", "invalid"),
    "dropped/spam content": EventKind("rejected", "spam"),
    "dropped/spam content (if spam checker app is enabled)": EventKind("rejected", "spam"),
    "open": EventKind("opened"),
    "click": EventKind("clicked"),
    "spamreport": EventKind("complained"),
    "unsubscribe": EventKind("unsubscribed"),
    "group_unsubscribe": EventKind("unsubscribed"),
    "group_resubscribe": EventKind("subscribed"),
}

PROVIDER = Provider(
    name="sendgrid",
    title="SendGrid",
    message_ids=MessageIds(("metadata/sg_message_id",), _ids),
    lacks_id=frozenset({"bounced", "rejected", "suppressed"}),  # asynchronous bounces; some drops
    authentication=Authentication(Signature.OVER_BODY, _verify, _key),
    elements=_elements,
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        at=epoch_field("timestamp"),
        id="sg_event_id",
        message_id=_message_id,
        recipient="email",
        reply=_reply,
        smtp_message_id=_smtp_message_id,
        tags="category",
        metadata=_metadata,
    ),
)
