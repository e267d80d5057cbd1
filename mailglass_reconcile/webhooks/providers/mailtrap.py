"""Mailtrap: batches, as JSON or as lines of JSON; an HMAC over the body.

Followed: https://docs.mailtrap.io/email-api-smtp/webhooks (payloads, both formats, the signature),
https://docs.mailtrap.io/email-api-smtp/analytics/statuses-and-events and
https://docs.mailtrap.io/email-api-smtp/bounce-categorization (the categories of a bounce).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, Signed

SIGNATURE = wire.Signature.OVER_BODY

_TYPES: dict[str, tuple[str, str | None]] = {
    "bounce": ("bounced", "bounced"),
    "click": ("clicked", None),
    "delivery": ("delivered", None),
    "open": ("opened", None),
    "reject": ("rejected", "blocked"),
    "soft bounce": ("deferred", "other"),
    "spam": ("complained", "spam"),
    "suspension": ("deferred", "other"),
    "unsubscribe": ("unsubscribed", "unsubscribed"),
}
_HARD = ("badrecipient", "hard")
"""The category of an address that does not exist; `hard` in older payloads. Mailtrap gives up after the others, too."""
_REASONS = {
    **dict.fromkeys(_HARD, "bounced"),
    **dict.fromkeys(("badsender", "block", "content", "relayfail", "serverpolicy", "verifyfail"), "blocked"),
    **dict.fromkeys(("spam", "spam_gmail"), "spam"),
    "timeout": "timed_out",
}
_SUPPRESSED = re.compile(r"suppression list(?:.*Reason: (hard bounce|spam complaint|unsubscription))?", re.DOTALL)
_LISTS = {"hard bounce": "bounced", "spam complaint": "spam", "unsubscription": "unsubscribed"}
"""Why Mailtrap did not send at all: the page has the last one, the others are the words of its suppressions."""


def elements(request: Request) -> list[Any]:
    """Return the batch; a line is read with its event, because another one may be broken."""
    lines = [line for line in request.body.splitlines() if line.strip()]
    try:
        body = request.object()
    except InvalidWebhookError:
        if len(lines) < 2:
            raise
        return lines
    return wire.as_list(body["events"], "events") if "events" in body else [body]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; inbound mail gives none."""
    payload = wire.as_object(wire.from_json(element) if isinstance(element, bytes) else element, "the event")
    kind = str(payload.get("event"))
    if kind.startswith("inbound"):
        return
    type_, reason = _TYPES.get(kind, ("unknown", None))
    if kind == "reject" and (listed := _SUPPRESSED.search(str(payload.get("reason")))):
        type_, reason = "suppressed", _LISTS.get(listed[1], "other")
    elif kind == "bounce" and "bounce_category" in payload:
        reason = _REASONS.get(_category(payload), "other")
    yield wire.event(
        payload,
        type=type_,
        at=wire.epoch(payload.get("timestamp")),
        id=payload.get("event_id"),
        message_id=payload.get("message_id"),
        recipient=payload.get("email"),
        reason=reason,
        bounce=bounce(payload),
        smtp=smtp(payload),
        tags=payload.get("category"),
    )


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Return `hard` for an address that does not exist; a `bounce` for another cause is a soft one."""
    if payload.get("event") == "soft bounce":
        return "soft"
    if payload.get("event") != "bounce" or "bounce_category" not in payload:
        return None
    return "hard" if _category(payload) in _HARD else "soft"


def _category(payload: Mapping[str, Any]) -> str:
    return str(payload.get("bounce_category")).replace(" ", "").lower()


def smtp(payload: Mapping[str, Any]) -> object:
    """Return the code of the server's reply and its text, which have fields of their own."""
    return wire.with_code(payload.get("response_code"), payload.get("response"))


def verify(request: Request, secret: str, now: float) -> None:
    """Check the header `Mailtrap-Signature`."""
    wire.hexadecimal(request, "Mailtrap-Signature", secret)


def sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    return wire.as_json(body, Mailtrap_Signature=wire.hex_hmac(body, secret))


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "bounced": {"event": "bounce", "response_code": 550, "bounce_category": "badrecipient"},
        "clicked": {"event": "click"},
        "complained": {"event": "spam"},
        "deferred": {"event": "soft bounce", "response_code": 452, "bounce_category": "overquota"},
        "delivered": {"event": "delivery"},
        "opened": {"event": "open"},
        "rejected": {"event": "reject"},
        "unsubscribed": {"event": "unsubscribe"},
    }
    common = {"timestamp": int(at.timestamp()), "message_id": message_id, "email": recipient}
    return {
        type_: {"events": [{**kind, **common, "event_id": wire.digest([type_, message_id, at])[:32]}]}
        for type_, kind in kinds.items()
    }
