"""MailerSend: one activity a request; an HMAC over the body.

Followed: https://developers.mailersend.com/api/v1/account/webhooks.html (events, the payloads of version 2, the
signature, and the ping `webhook.test`, signed with a secret that is the same for everybody) and
https://developers.mailersend.com/api/v1/webhooks.html (version 1). In webhooks of version 2, the documentation has the
recipient in `data.email`; captured ones have it in `data.recipient`
(https://github.com/anymail/django-anymail/blob/main/tests/test_mailersend_webhooks.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, iso_field
from mailglass_reconcile.providers.wire import WebhookRequest, get_path

TEST_SECRET = "test_Am3L1GuOIc4blLUuHqAPxxwkZaJyEk8G"  # noqa: S105 - public: MailerSend's documentation has it
"""Signs nothing but the ping that MailerSend sends before it saves a webhook."""
MAX_PING = 10_000

_LISTS = {"bounce": "bounced", "spam": "spam", "unsubscribe": "unsubscribed", "block": "blocked"}
"""Words of MailerSend's suppression lists (blocklist, hard bounces, spam complaints, unsubscribes, on hold)."""


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's only event, or none if it is no activity of a message, such as the ping."""
    body = request.object()
    return [body] if str(body.get("type")).startswith("activity.") else []


def _refine(payload: Mapping[str, Any], kind: EventKind) -> EventKind:
    wire.require_object(payload.get("data", {}), "data")
    if kind.type != "suppressed":
        return kind
    lists = str(get_path(payload, "data", "meta", "suppression_reason"))
    return kind._replace(reason=next((reason for word, reason in _LISTS.items() if word in lists), "other"))


def _recipient(payload: Mapping[str, Any]) -> object:
    """Return the recipient of version 1, of version 2 as captured, or as documented."""
    data = payload.get("data", {})
    email = data.get("email")
    text = email if isinstance(email, str) else None
    return get_path(email, "recipient", "email") or data.get("recipient", text)


def _tags(payload: Mapping[str, Any]) -> object:
    data = payload.get("data", {})
    return data.get("tags", get_path(data, "email", "tags"))


def _reply(payload: Mapping[str, Any]) -> object:
    """Return the code of the server's reply and its text; version 1 has words only."""
    meta = get_path(payload, "data", "meta")
    return wire.join_reply(get_path(meta, "bounce_code"), get_path(meta, "bounce_reason"))


_HMAC = signatures.hex_hmac_authentication("Signature")


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    try:
        _HMAC.verify(request, secret, now)
    except SignatureError:
        if not _is_ping(request):
            raise


def _is_ping(request: WebhookRequest) -> bool:
    """Return True if a request is the ping, whose secret is public; a longer body is not parsed."""
    if len(request.body) > MAX_PING:
        return False
    try:
        signatures.verify_hex_hmac(request, "Signature", TEST_SECRET)
        return bool(get_path(request.json, "type") == "webhook.test")
    except (InvalidWebhookError, SignatureError):
        return False


PROVIDER = Provider(
    name="mailersend",
    title="MailerSend",
    authentication=_HMAC._replace(verify=_verify),
    elements=_elements,
    table=EventTable(
        kind="type",  # in version 2, that of `data` may be another, such as `opened` of `opened_unique`
        kinds={
            "activity.sent": EventKind("sent"),
            "activity.delivered": EventKind("delivered"),
            "activity.deferred": EventKind("deferred"),
            "activity.hard_bounced": EventKind("bounced", "bounced", "hard"),
            "activity.soft_bounced": EventKind("bounced", "other", "soft"),
            "activity.suppressed": EventKind("suppressed", "other"),
            "activity.opened": EventKind("opened"),
            "activity.opened_unique": EventKind("opened"),
            "activity.clicked": EventKind("clicked"),
            "activity.clicked_unique": EventKind("clicked"),
            "activity.spam_complaint": EventKind("complained"),
            "activity.unsubscribed": EventKind("unsubscribed", "unsubscribed"),
        },
        refine=_refine,
        # Version 1 dates the request around the activity at each attempt.
        at=iso_field("data/created_at", "created_at"),
        id="data/id",
        digest_source=lambda payload: payload.get("data", {}),
        message_id=("data/email/message/id", "data/message_id"),
        recipient=_recipient,
        reply=_reply,
        tags=_tags,
    ),
)
