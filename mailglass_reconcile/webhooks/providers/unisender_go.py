"""Unisender Go: batches, or one event if "use single event" is on; an MD5 of the body with the API key in it.

Followed: https://godocs.unisender.ru/web-api-ref#callback-format and https://godocs.unisender.ru/email-statuses. Not
documented: an id of the event (the header `ID` is another one at each attempt).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from mailglass_reconcile.errors import SignatureError
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, Signed, dug

SIGNATURE = wire.Signature.OVER_BODY
IMMEDIATE_BYTES = 1024 * 1024
"""The MD5 of a longer body, four times, takes too long for an event loop."""

_TYPES = {
    "clicked": "clicked",
    "delivered": "delivered",
    "hard_bounced": "bounced",
    "opened": "opened",
    "sent": "sent",
    "soft_bounced": "deferred",
    "spam": "complained",
    "subscribed": "subscribed",
    "unsubscribed": "unsubscribed",
}

_REASONS = {
    "err_blacklisted": "blocked",
    "err_delivery_failed": "other",
    "err_destination_misconfigured": "bounced",
    "err_domain_inactive": "bounced",
    "err_lost": "other",
    "err_mailbox_discarded": "bounced",
    "err_mailbox_full": "bounced",
    "err_skip_letter": "bounced",
    "err_spam_rejected": "spam",
    "err_spam_skipped": "spam",
    "err_too_large": "bounced",
    "err_unreachable": "bounced",
    "err_unsubscribed": "unsubscribed",
    "err_user_inactive": "bounced",
    "err_user_unknown": "bounced",
    "err_will_retry": None,
}

_SUPPRESSED = ("err_skip_letter", "err_spam_skipped", "err_unsubscribed")
"""Causes for which Unisender Go has not sent at all."""

_ADDRESS = (
    "err_domain_inactive",
    "err_mailbox_discarded",
    "err_unreachable",
    "err_user_inactive",
    "err_user_unknown",
)
"""Causes of a hard bounce that lie in the address; any other lies in this message, or in the moment."""

_OF_MESSAGES = "transactional_email_status"
_AUTH = re.compile(rb'"auth"\s{0,9}:\s{0,9}"([0-9a-fA-F]{32})"')
MAX_GIVEN = 4
"""Signatures that are tried: an event's metadata may have a key `auth`, too."""
_UNSIGNED = "AUTH"
"""Stands in a body in the place of its signature until it is signed."""


def elements(request: Request) -> list[Any]:
    """Return the events about messages, of all users, and what is no event.

    The others, such as `transactional_spam_block`, give none.
    """
    body = request.object()
    if "events_by_user" not in body:
        return [body] if body.get("event_name") == _OF_MESSAGES else []
    users = wire.as_list(body["events_by_user"], "events_by_user")
    payload = [event for user in users for event in _events_of(user)]
    return [
        dug(event, "event_data")
        for event in payload
        if not isinstance(event, dict) or event.get("event_name") == _OF_MESSAGES
    ]


def _events_of(user: object) -> list[Any]:
    events = dug(user, "events")
    return events if isinstance(events, list) else [None]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; its time is in UTC without saying so."""
    payload = wire.as_object(element, "the event")
    status = dug(payload, "delivery_info", "delivery_status")
    failed = isinstance(status, str) and status.startswith("err")
    yield wire.event(
        payload,
        type="suppressed" if status in _SUPPRESSED else _TYPES.get(str(payload.get("status")), "unknown"),
        at=wire.iso(payload.get("event_time")),
        id=None,
        message_id=dug(payload, "metadata", "anymail_id") or payload.get("job_id"),
        recipient=payload.get("email"),
        reason=_REASONS.get(str(status), "other") if failed else None,
        bounce=bounce(payload),
        smtp=smtp(payload),
    )


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one: `hard_bounced` says only that Unisender Go does not try again."""
    if payload.get("status") not in ("hard_bounced", "soft_bounced"):
        return None
    told = dug(payload, "delivery_info", "delivery_status")
    if told in _SUPPRESSED:
        return None
    return "hard" if payload["status"] == "hard_bounced" and told in _ADDRESS else "soft"


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied."""
    return dug(payload, "delivery_info", "destination_response")


def verify(request: Request, secret: str, now: float) -> None:
    """Check the MD5, which stands in the body in the place of the API key; the body is not parsed."""
    given = [found[1] for found in islice(_AUTH.finditer(request.body), MAX_GIVEN)]
    if not given:
        raise SignatureError("the webhook has no signature")
    wire.require(any(_matches(request.body, one, secret.encode()) for one in given))


def _matches(body: bytes, given: bytes, secret: bytes) -> bool:
    return wire.equal(given.lower(), _md5(body.replace(given, secret)))


def _md5(text: bytes) -> str:
    return hashlib.md5(text).hexdigest()  # noqa: S324 - Unisender Go's


def sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request with a body that has `_UNSIGNED` in the place of its signature, as Unisender Go sends it."""

    def with_auth(text: str) -> bytes:
        return body.replace(f'"{_UNSIGNED}"'.encode(), f'"{text}"'.encode(), 1)

    return wire.as_json(with_auth(_md5(with_auth(secret))))


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    """Return for each type a body as Unisender Go writes it, without its signature."""
    statuses: dict[str, tuple[str, str]] = {
        "bounced": ("hard_bounced", "err_user_unknown"),
        "clicked": ("clicked", "ok"),
        "complained": ("spam", "ok"),
        "deferred": ("soft_bounced", "err_mailbox_full"),
        "delivered": ("delivered", "ok"),
        "opened": ("opened", "ok"),
        "sent": ("sent", "ok"),
        "subscribed": ("subscribed", "ok"),
        "unsubscribed": ("unsubscribed", "ok"),
    }
    common = {"job_id": message_id, "email": recipient, "event_time": f"{at:%Y-%m-%d %H:%M:%S}"}
    return {
        type_: {
            "auth": _UNSIGNED,
            "events_by_user": [
                {
                    "events": [
                        {
                            "event_name": _OF_MESSAGES,
                            "event_data": {**common, "status": status, "delivery_info": {"delivery_status": detail}},
                        }
                    ]
                }
            ],
        }
        for type_, (status, detail) in statuses.items()
    }
