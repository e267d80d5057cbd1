"""Mailjet: batches, or one event if "group events" is off; HTTP basic authentication, because Mailjet signs nothing.

Followed: https://dev.mailjet.com/email/guides/webhooks/. Not documented: an id of the event. Not as documented: `error`
may be empty, with the reason in `error_related_to`
(https://github.com/symfony/symfony/blob/7.2/src/Symfony/Component/Mailer/Bridge/Mailjet/Tests/Webhook/Fixtures).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

SIGNATURE = wire.Signature.IN_HEADERS

_TYPES = {
    "blocked": "rejected",
    "bounce": "bounced",
    "click": "clicked",
    "open": "opened",
    "sent": "delivered",
    "spam": "complained",
    "unsub": "unsubscribed",
}

_REASONS = {
    "blacklisted": "blocked",
    "content blocked": "blocked",
    "duplicate in campaign": "other",
    "greylisted": "other",
    "invalid domain": "bounced",
    "mailbox inactive": "bounced",
    "no mail host": "bounced",
    "policy issue": "blocked",
    "preblocked": "blocked",
    "quota exceeded": "bounced",
    "relay/access denied": "bounced",
    "sender blocked": "blocked",
    "spam reporter": "spam",
    "typofix": "invalid",
    "user unknown": "bounced",
    # what an error is related to
    "domain": "bounced",
    "mailjet": "blocked",
    "recipient": "bounced",
    "spam": "spam",
}


def elements(request: Request) -> list[Any]:
    """Return the batch, or the only event."""
    body = request.json()
    return body if isinstance(body, list) else [wire.as_object(body, "the body")]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    payload = wire.as_object(element, "the event")
    id_ = payload.get("MessageID")
    yield wire.event(
        payload,
        type="deferred" if _is_tried_again(payload) else _TYPES.get(str(payload.get("event")), "unknown"),
        at=wire.epoch(payload.get("time")),
        id=None,
        message_id=str(id_) if isinstance(id_, int) and not isinstance(id_, bool) else id_,
        recipient=payload.get("email"),
        reason=_reason(payload),
        bounce=bounce(payload),
        smtp=smtp(payload),
        smtp_message_id=smtp_message_id(payload),
        tags=payload.get("customcampaign"),
    )


def _is_tried_again(payload: Mapping[str, Any]) -> bool:
    """Whether a message was greylisted, unless the bounce is a hard one."""
    return payload.get("error") == "greylisted" and not payload.get("hard_bounce", False)


def _reason(payload: Mapping[str, Any]) -> str | None:
    if "error" not in payload:
        return None
    return _REASONS.get(str(payload["error"] or payload.get("error_related_to")), "other")


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by `hard_bounce`."""
    if payload.get("event") != "bounce" or not isinstance(payload.get("hard_bounce"), bool):
        return None
    return "hard" if payload["hard_bounce"] else "soft"


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied; of a message that it took, after the word `sent`."""
    return wire.reply(str(payload.get("smtp_reply", "")).removeprefix("sent "), payload.get("comment"))


def smtp_message_id(payload: Mapping[str, Any]) -> object:
    """Return the GUID, which Mailjet's SMTP server answers with, and its API as `MessageUUID`."""
    return payload.get("Message_GUID")


verify, usable, sign = wire.basic, wire.credentials, wire.signed_basic


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "bounced": {"event": "bounce", "hard_bounce": True, "error_related_to": "recipient", "error": "user unknown"},
        "clicked": {"event": "click"},
        "complained": {"event": "spam"},
        "deferred": {"event": "bounce", "hard_bounce": False, "error_related_to": "domain", "error": "greylisted"},
        "delivered": {"event": "sent"},
        "opened": {"event": "open"},
        "rejected": {"event": "blocked", "error_related_to": "mailjet", "error": "preblocked"},
        "unsubscribed": {"event": "unsub"},
    }
    id_ = int(message_id) if message_id.isdecimal() else message_id
    common = {"time": int(at.timestamp()), "MessageID": id_, "email": recipient}
    return {type_: [{**kind, **common}] for type_, kind in kinds.items()}
