"""Resend: one event a request; signed as Standard Webhooks, by Svix.

Followed: https://resend.com/docs/webhooks/event-types, https://resend.com/docs/dashboard/emails/email-bounces (types of
bounces, which are those of Amazon SES), https://resend.com/docs/webhooks/verify-webhooks-requests,
https://docs.svix.com/receiving/verifying-payloads/how-manual, and for the events' fields
https://github.com/resend/resend-node/blob/canary/src/webhooks/interfaces/webhook-event.interface.ts. Not documented:
which of several recipients an event is about.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import ses_subtypes, wire
from mailglass_reconcile.webhooks.wire import Request, dug

SIGNATURE = wire.Signature.OVER_BODY

_TYPES = {
    "email.clicked": "clicked",
    "email.complained": "complained",
    "email.delivered": "delivered",
    "email.delivery_delayed": "deferred",
    "email.failed": "failed",
    "email.opened": "opened",
    "email.scheduled": "queued",
    "email.sent": "sent",
}


def elements(request: Request) -> list[Any]:
    """Return the request's only event; inbound mail gives none."""
    body = request.object()
    return [] if body.get("type") == "email.received" else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; its id is the one that Svix gives to it, the same at each attempt."""
    payload = wire.as_object(element, "the event")
    data = payload.get("data")
    type_, reason, bounce_ = _verdict(payload)
    yield wire.event(
        payload,
        type=type_,
        at=wire.iso(payload.get("created_at")),
        id=request.headers.get("svix-id") or request.headers.get("webhook-id"),
        message_id=dug(data, "email_id"),
        recipient=recipient(data if isinstance(data, dict) else {}),
        reason=reason,
        bounce=bounce_,
        smtp=smtp(payload),
        smtp_message_id=smtp_message_id(payload),
        tags=_tags(data),
    )


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by its type."""
    return _verdict(payload)[2]


def _verdict(payload: Mapping[str, Any]) -> tuple[str, str | None, Bounce | None]:
    """Return an event's type, why it bounced, and whether that is hard or soft."""
    kind, data = str(payload.get("type")), payload.get("data")
    if kind == "email.suppressed":
        listed = dug(data, "suppressed", "type")
        usual = "bounced" if listed == "Suppressed" else "other"  # that list is of addresses that have bounced
        return "suppressed", ses_subtypes.suppression_reason(listed, usual), None
    if kind != "email.bounced":
        return _TYPES.get(kind, "unknown"), None, None
    told = dug(data, "bounce")
    read = ses_subtypes.read_bounce(dug(told, "type"), dug(told, "subType"))
    return read or ("bounced", _in_words(dug(told, "message")), None)


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied: a text, or a list of texts."""
    told = dug(payload, "data", "bounce", "diagnosticCode")
    return wire.reply(*_listed(told))


def smtp_message_id(payload: Mapping[str, Any]) -> object:
    """Return the Message-ID header, which is all that an application knows of a message that it sent over SMTP."""
    return dug(payload, "data", "message_id")


def recipient(data: Mapping[str, Any]) -> str | None:
    """Return whom an event is about, given its `data`; None if the message went to several, also as copies."""
    named = [one for header in ("to", "cc", "bcc") for one in _listed(data.get(header))]
    return bare(named[0]) if len(named) == 1 and isinstance(named[0], str) else None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) and value else []


def _in_words(message: object) -> str | None:
    """Return the reason for a bounce without a type, as in older webhooks, which have only words for a person."""
    if message is None:
        return None
    text = str(message)
    return "blocked" if "suppressed sending" in text else "bounced" if "bounce message" in text else "other"


def _tags(data: object) -> list[Any]:
    """Return the tags: Resend's have names, and Anymail puts its own into the header `X-Tags`."""
    found: list[Any] = []
    for header in _listed(dug(data, "headers")):
        if str(dug(header, "name")).lower() == "x-tags" and isinstance(dug(header, "value"), str):
            try:
                given = wire.from_json(header["value"])
            except ValueError:
                continue
            found = given if isinstance(given, list) else [given]
    return [*found, *wire.named_tags(dug(data, "tags"))]


verify, usable, sign = wire.svix, wire.svix_key, wire.signed_svix


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "bounced": ("email.bounced", {"bounce": {"type": "Permanent", "subType": "General", "message": "rejected"}}),
        "clicked": ("email.clicked", {}),
        "complained": ("email.complained", {}),
        "deferred": ("email.delivery_delayed", {}),
        "delivered": ("email.delivered", {}),
        "failed": ("email.failed", {"failed": {"reason": "reached_daily_quota"}}),
        "opened": ("email.opened", {}),
        "queued": ("email.scheduled", {}),
        "sent": ("email.sent", {}),
        "suppressed": (
            "email.suppressed",
            {"suppressed": {"type": "OnAccountSuppressionList", "message": "suppressed"}},
        ),
    }
    common = {"email_id": message_id, "to": [recipient] if recipient else []}
    return {
        type_: {"type": kind, "created_at": at.isoformat(), "data": {**common, **more}}
        for type_, (kind, more) in kinds.items()
    }
