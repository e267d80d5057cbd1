"""Resend: one event a request; signed as Standard Webhooks, by Svix.

Followed: https://resend.com/docs/webhooks/event-types, https://resend.com/docs/webhooks/verify-webhooks-requests and
https://docs.svix.com/receiving/verifying-payloads/how-manual. Not documented: which of several recipients an event is
about; all reasons for a bounce.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, dug

_TYPES = {
    "email.bounced": "bounced",
    "email.clicked": "clicked",
    "email.complained": "complained",
    "email.delivered": "delivered",
    "email.delivery_delayed": "deferred",
    "email.opened": "opened",
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
    yield wire.event(
        payload,
        type=_TYPES.get(str(payload.get("type")), "unknown"),
        at=wire.iso(payload.get("created_at")),
        id=request.headers.get("svix-id") or request.headers.get("webhook-id"),
        message_id=dug(data, "email_id"),
        recipient=recipient(data if isinstance(data, dict) else {}),
        reason=_reason(dug(data, "bounce", "message")),
        tags=_tags(dug(data, "headers")),
    )


def recipient(data: Mapping[str, Any]) -> str | None:
    """Return whom an event is about, given its `data`; None if the message went to several, also as copies."""
    named = [one for header in ("to", "cc", "bcc") for one in _listed(data.get(header))]
    return bare(named[0]) if len(named) == 1 and isinstance(named[0], str) else None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) and value else []


def _reason(message: object) -> str | None:
    """Tell the reason from the words for a person; there is nothing else."""
    if message is None:
        return None
    text = str(message)
    return "blocked" if "suppressed sending" in text else "bounced" if "bounce message" in text else "other"


def _tags(headers: object) -> object:
    """Return the tags of the header `X-Tags`, where Anymail puts them."""
    found: object = ()
    for header in _listed(headers):
        if str(dug(header, "name")).lower() == "x-tags" and isinstance(dug(header, "value"), str):
            try:
                found = wire.from_json(header["value"])
            except ValueError:
                continue
    return found


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature, which is at most five minutes old."""
    wire.svix(request, secret, now)
