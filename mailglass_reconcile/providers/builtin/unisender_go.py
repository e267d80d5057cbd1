"""Unisender Go: batches, or one event if "use single event" is on; an MD5 of the body with the API key in it.

Followed: https://godocs.unisender.ru/web-api-ref#callback-format and https://godocs.unisender.ru/email-statuses. Not
documented: an id of the event (the header `ID` is another one at each attempt).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from mailglass_reconcile.errors import SignatureError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, iso_field
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest, get_path

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
"""Causes for which Unisender Go does not send at all."""

_ADDRESS = (
    "err_domain_inactive",
    "err_mailbox_discarded",
    "err_unreachable",
    "err_user_inactive",
    "err_user_unknown",
)
"""Causes of a hard bounce that concern the address; any other concerns this message, or is temporary."""

_OF_MESSAGES = "transactional_email_status"
_AUTH = re.compile(rb'"auth"\s{0,9}:\s{0,9}"([0-9a-fA-F]{32})"')
MAX_SIGNATURES = 4
"""Number of signatures that are tried: an event's metadata may have a key `auth` too."""
_PLACEHOLDER = "AUTH"
"""Placeholder for the signature in an unsigned body."""


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the events of all users that are about messages.

    An element that is no event is returned too, and fails later; others, such as `transactional_spam_block`, are not.
    """
    body = request.object()
    if "events_by_user" not in body:
        return [body] if body.get("event_name") == _OF_MESSAGES else []
    users = wire.require_list(body["events_by_user"], "events_by_user")
    events = [event for user in users for event in _events_of(user)]
    return [
        get_path(event, "event_data")
        for event in events
        if not isinstance(event, dict) or event.get("event_name") == _OF_MESSAGES
    ]


def _events_of(user: object) -> list[Any]:
    events = get_path(user, "events")
    return events if isinstance(events, list) else [None]


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the status; `suppressed` if it was not sent, and a row of its own for a bounce because of the address."""
    status, cause = str(payload.get("status")), get_path(payload, "delivery_info", "delivery_status")
    if cause in _SUPPRESSED:
        return "suppressed"
    return "hard_bounced/address" if status == "hard_bounced" and cause in _ADDRESS else status


def _refine(payload: Mapping[str, Any], kind: EventKind) -> EventKind:
    cause = get_path(payload, "delivery_info", "delivery_status")
    failed = isinstance(cause, str) and cause.startswith("err")
    return kind._replace(reason=_REASONS.get(cause, "other") if failed else None)


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the MD5, which stands in the body in the place of the API key; the body is not parsed."""
    candidates = [match[1] for match in islice(_AUTH.finditer(request.body), MAX_SIGNATURES)]
    if not candidates:
        raise SignatureError("the webhook has no signature")
    signatures.require_match(any(_has_signature(request.body, signature, secret.encode()) for signature in candidates))


def _has_signature(body: bytes, signature: bytes, secret: bytes) -> bool:
    return signatures.constant_time_equal(signature.lower(), _md5(body.replace(signature, secret)))


def _md5(text: bytes) -> str:
    return hashlib.md5(text).hexdigest()  # noqa: S324 - Unisender Go's


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    """Return a signed request, with the signature in the place of `_PLACEHOLDER`, as Unisender Go sends it."""

    def with_auth(text: str) -> bytes:
        return body.replace(f'"{_PLACEHOLDER}"'.encode(), f'"{text}"'.encode(), 1)

    return signatures.json_request(with_auth(_md5(with_auth(secret))))


PROVIDER = Provider(
    name="unisender_go",
    title="Unisender Go",
    spellings=("unisender go",),
    authentication=Authentication(Signature.OVER_BODY, _verify, signatures.validate_key, _sign),
    immediate_bytes=1024 * 1024,  # the MD5 of a longer body, four times, takes too long for an event loop
    elements=_elements,
    table=EventTable(
        kind=_kind,
        kinds={
            "sent": EventKind("sent"),
            "delivered": EventKind("delivered"),
            "soft_bounced": EventKind("deferred", None, "soft"),
            "hard_bounced/address": EventKind("bounced", None, "hard"),
            "hard_bounced": EventKind("bounced", None, "soft"),
            "suppressed": EventKind("suppressed"),
            "opened": EventKind("opened"),
            "clicked": EventKind("clicked"),
            "spam": EventKind("complained"),
            "unsubscribed": EventKind("unsubscribed"),
            "subscribed": EventKind("subscribed"),
        },
        refine=_refine,
        at=iso_field("event_time"),  # in UTC without saying so
        message_id=lambda payload: get_path(payload, "metadata", "anymail_id") or payload.get("job_id"),
        recipient="email",
        reply="delivery_info/destination_response",
    ),
)
