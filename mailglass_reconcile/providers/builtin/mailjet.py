"""Mailjet: batches, or one event if "group events" is off; HTTP basic authentication, because Mailjet signs nothing.

Followed: https://dev.mailjet.com/email/guides/webhooks/. Not documented: an id of the event. Not as documented: `error`
may be empty, with the reason in `error_related_to`
(https://github.com/symfony/symfony/blob/7.2/src/Symfony/Component/Mailer/Bridge/Mailjet/Tests/Webhook/Fixtures).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, epoch_field
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules.provider_rules import MessageIds

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
    # values of `error_related_to`
    "domain": "bounced",
    "mailjet": "blocked",
    "recipient": "bounced",
    "spam": "spam",
}


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the batch, or the only event."""
    body = request.json
    return body if isinstance(body, list) else [wire.require_object(body, "the body")]


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's name, and of a bounce whether it is hard; what was greylisted is tried again."""
    event, hard = str(payload.get("event")), payload.get("hard_bounce", False)
    if payload.get("error") == "greylisted" and not hard:
        return f"{event}/greylisted"
    return f"bounce/{'hard' if hard else 'soft'}" if event == "bounce" and isinstance(hard, bool) else event


def _refine(payload: Mapping[str, Any], kind: EventKind) -> EventKind:
    if "hard_bounce" not in payload:
        kind = kind._replace(bounce=None)
    if "error" not in payload:
        return kind._replace(reason=None)
    return kind._replace(reason=_REASONS.get(str(payload["error"] or payload.get("error_related_to")), "other"))


def _message_id(payload: Mapping[str, Any]) -> object:
    id_ = payload.get("MessageID")
    return str(id_) if isinstance(id_, int) and not isinstance(id_, bool) else id_


def _reply(payload: Mapping[str, Any]) -> object:
    """Return the reply of the recipient's server; for an accepted message, after the word `sent`."""
    return wire.first_reply(str(payload.get("smtp_reply", "")).removeprefix("sent "), payload.get("comment"))


def _numbers(*texts: str | None) -> Iterable[str]:
    """`MessageID`, an integer beyond 2^53, taken as its digits; never the UUID beside it."""
    return (text for text in texts if text is not None and text.isdecimal())


PROVIDER = Provider(
    name="mailjet",
    title="Mailjet",
    message_ids=MessageIds(("metadata/MessageID", "metadata/message_id"), _numbers),
    synthetic_ids=True,
    authentication=signatures.BASIC,
    elements=_elements,
    table=EventTable(
        kind=_kind,
        kinds={
            "sent": EventKind("delivered"),
            "bounce/greylisted": EventKind("deferred", "other", "soft"),
            "bounce/hard": EventKind("bounced", "bounced", "hard"),
            "bounce/soft": EventKind("bounced", "bounced", "soft"),
            "bounce": EventKind("bounced", "bounced"),
            "blocked": EventKind("rejected", "blocked"),
            "blocked/greylisted": EventKind("deferred", "other"),
            "open": EventKind("opened"),
            "click": EventKind("clicked"),
            "spam": EventKind("complained"),
            "unsub": EventKind("unsubscribed"),
        },
        refine=_refine,
        at=epoch_field("time"),
        message_id=_message_id,
        recipient="email",
        reply=_reply,
        smtp_message_id="Message_GUID",  # which Mailjet's SMTP server answers with, and its API as `MessageUUID`
        tags="customcampaign",
    ),
)
