"""Mailgun: one event a request, as JSON; an HMAC over time and token, which are in the body.

Followed: https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads,
https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks (the signature, and that it may
arrive late), https://help.mailgun.com/hc/en-us/articles/202236504-Webhooks (it tries again for eight hours),
https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages/tracking-messages (opens by machines) and
https://help.mailgun.com/hc/en-us/articles/14048832145051-Legacy-Webhooks (forms, which are not read: they have been
read-only since April 2023). Not documented: whether a repeated webhook keeps its token, and the values of `reason`:
`suppress-…` are in https://documentation.mailgun.com/en/latest/api-stats.html, `old` in
https://feedback.mailgun.com/forums/914635-general-feedback/suggestions/37219720.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, epoch_field
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.addresses import strip_display_name
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.provider_rules import MessageIds

MAX_EVENT_BYTES = 256 * 1024
"""Greatest size of an event, which is parsed before its signature is verified."""
MAX_AGE_SECONDS = 86_400
"""Greatest age of a signature."""
_REASONS = {"bounce": "bounced"}
_LEGACY = (
    "it is a form, as of Mailgun's legacy webhooks, which are not read: add the webhook again on the page Send,"
    " Webhooks of Mailgun's console"
)


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's only event, with its signature."""
    if not _is_json(request):
        raise InvalidWebhookError(_LEGACY)
    return [request.object()]


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    data = wire.require_object(wire.require_object(element, "the event").get("event-data"), "event-data")
    event = PROVIDER.table.read(data)
    return () if event is None else (event,)


def _is_json(request: WebhookRequest) -> bool:
    kind = request.content_type.lower()
    return "json" in kind or ("form" not in kind and request.body.lstrip()[:1] == b"{")


def _kind(data: Mapping[str, Any]) -> str:
    """Return the event's name, with the reason or the severity of a failure."""
    event, reason = str(data.get("event")), data.get("reason")
    if event != "failed":
        return event
    if isinstance(reason, str) and f"failed/{reason}" in _KINDS:
        return f"failed/{reason}"
    return "failed/temporary" if data.get("severity") == "temporary" else "failed"


def _refine(data: Mapping[str, Any], kind: EventKind) -> EventKind:
    if "reason" not in data or kind is _KINDS.get(f"failed/{data['reason']}"):
        return kind
    return kind._replace(reason=_REASONS.get(str(data["reason"]), "other"))


def _recipient(data: Mapping[str, Any]) -> object:
    """Return the recipient; for a rejected message, the only address of the header `To`, without a display name."""
    if recipient := data.get("recipient"):
        return recipient
    to = get_path(data, "message", "headers", "to") if data.get("event") == "rejected" else None
    return strip_display_name(to) if isinstance(to, str) and "," not in to else None


def _message_id(data: Mapping[str, Any]) -> object:
    id_ = get_path(data, "message", "headers", "message-id")
    return f"<{id_}>" if isinstance(id_, str) and id_ and not id_.startswith("<") else id_


def _id(data: Mapping[str, Any]) -> str | None:
    """Return the event's own id, which is unique within a day, and its time.

    The token of the signature is not used, because it belongs to the request.
    """
    return f"{data['id']}/{data.get('timestamp')}" if data.get("id") else None


def _reply(data: Mapping[str, Any]) -> object:
    """Return the reply of the recipient's server; codes from 600 are Mailgun's own."""
    status = data.get("delivery-status")
    if not isinstance(status, dict):
        return None
    return wire.join_reply(status.get("code"), status.get("enhanced-code") or status.get("message"))


def _metadata(data: Mapping[str, Any]) -> Mapping[str, bool] | None:
    """Return the mark of an open or a click by a machine, or None."""
    return wire.MACHINE if get_path(data, "client-info", "bot") else None


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature of time and token, and its age; nothing signs the event.

    A webhook of a subaccount is also signed with the primary account's key.
    """
    if not _is_json(request):
        raise SignatureError(_LEGACY)
    try:
        parts = wire.require_object(request.object().get("signature"), "signature")
    except InvalidWebhookError:
        raise SignatureError("the webhook has no signature") from None
    time, token = str(parts.get("timestamp")), str(parts.get("token"))
    expected = signatures.hex_hmac(f"{time}{token}".encode("utf-8", "replace"), secret)
    signed = (str(parts.get(name)) for name in ("signature", "parent-signature"))
    signatures.require_match(any(signatures.constant_time_equal(signature, expected) for signature in signed))
    signatures.check_timestamp(time, now, MAX_AGE_SECONDS)


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    """Return a signed request for one event, as Mailgun sends it."""
    time = str(int(at))
    token = hashlib.sha256(time.encode() + body).hexdigest()[:50]
    signature = {"timestamp": time, "token": token, "signature": signatures.hex_hmac(f"{time}{token}".encode(), secret)}
    return signatures.json_request(
        b'{"signature": ' + json.dumps(signature).encode() + b', "event-data": ' + body + b"}"
    )


_KINDS = {
    "accepted": EventKind("queued"),
    "delivered": EventKind("delivered"),
    "failed/temporary": EventKind("deferred"),
    "failed": EventKind("bounced", None, "hard"),
    "failed/old": EventKind("bounced", "timed_out", "soft"),  # after eight hours
    # Mailgun did not send, because the address is on one of its lists
    "failed/suppress-bounce": EventKind("suppressed", "bounced"),
    "failed/suppress-unsubscribe": EventKind("suppressed", "unsubscribed"),
    "failed/suppress-complaint": EventKind("suppressed", "spam"),
    "rejected": EventKind("rejected", "other"),
    "opened": EventKind("opened"),
    "clicked": EventKind("clicked"),
    "complained": EventKind("complained"),
    "unsubscribed": EventKind("unsubscribed"),
}

PROVIDER = Provider(
    name="mailgun",
    title="Mailgun",
    message_ids=MessageIds(
        (
            "metadata/event-data/message/headers/message-id",
            "metadata/message/headers/message-id",
            "metadata/message-id",
            "metadata/Message-Id",
            "metadata/message_id",
        )
    ),
    authentication=Authentication(Signature.IN_BODY, _verify, signatures.validate_key, _sign, MAX_AGE_SECONDS),
    max_bytes=MAX_EVENT_BYTES,
    elements=_elements,
    events=_events,
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        refine=_refine,
        at=epoch_field("timestamp"),
        id=_id,
        message_id=_message_id,
        recipient=_recipient,
        reply=_reply,
        tags="tags",
        metadata=_metadata,
    ),
)
