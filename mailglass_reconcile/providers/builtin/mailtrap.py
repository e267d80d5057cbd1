"""Mailtrap: batches, as JSON or as lines of JSON; an HMAC over the body.

Followed: https://docs.mailtrap.io/email-api-smtp/webhooks (payloads, both formats, the signature),
https://docs.mailtrap.io/email-api-smtp/analytics/statuses-and-events and
https://docs.mailtrap.io/email-api-smtp/bounce-categorization (the categories of a bounce).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import NO_EVENT, EventKind, EventTable, Provider, epoch_field
from mailglass_reconcile.providers.wire import WebhookRequest

_SUPPRESSED = re.compile(r"suppression list(?:.*Reason: (hard bounce|spam complaint|unsubscription))?", re.DOTALL)


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the batch; a line is parsed here, and a broken one is an element that cannot be read."""
    lines = [line for line in request.body.splitlines() if line.strip()]
    try:
        body = request.object()
    except InvalidWebhookError:
        if len(lines) < 2:
            raise
        return [_line(line) for line in lines]
    return wire.require_list(body["events"], "events") if "events" in body else [body]


def _line(line: bytes) -> Any:
    try:
        return wire.parse_json(line)
    except InvalidWebhookError:
        return None


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's name, with the category of a bounce, or the suppression list of a rejected message."""
    event = str(payload.get("event"))
    if event.startswith("inbound"):
        return "inbound"
    if event == "bounce" and "bounce_category" in payload:
        row = f"bounce/{str(payload['bounce_category']).replace(' ', '').lower()}"
        return row if row in _BOUNCES else "bounce/other"
    if event == "reject" and (match := _SUPPRESSED.search(str(payload.get("reason")))):
        return f"reject/{match[1] or 'suppressed'}"
    return event


# Mailtrap gives up after all of them; only the first is about the address.
_BOUNCES = {
    "bounce/badrecipient": EventKind("bounced", "bounced", "hard"),
    "bounce/hard": EventKind("bounced", "bounced", "hard"),  # in older payloads
    "bounce/badsender": EventKind("bounced", "blocked", "soft"),
    "bounce/block": EventKind("bounced", "blocked", "soft"),
    "bounce/content": EventKind("bounced", "blocked", "soft"),
    "bounce/dnsfail": EventKind("bounced", "other", "soft"),
    "bounce/generalfail": EventKind("bounced", "other", "soft"),
    "bounce/greylisting": EventKind("bounced", "other", "soft"),
    "bounce/other": EventKind("bounced", "other", "soft"),
    "bounce/overquota": EventKind("bounced", "other", "soft"),
    "bounce/relayfail": EventKind("bounced", "blocked", "soft"),
    "bounce/serverfail": EventKind("bounced", "other", "soft"),
    "bounce/serverpolicy": EventKind("bounced", "blocked", "soft"),
    "bounce/spam": EventKind("bounced", "spam", "soft"),
    "bounce/spam_gmail": EventKind("bounced", "spam", "soft"),
    "bounce/timeout": EventKind("bounced", "timed_out", "soft"),
    "bounce/transientfail": EventKind("bounced", "other", "soft"),
    "bounce/verifyfail": EventKind("bounced", "blocked", "soft"),
}

PROVIDER = Provider(
    name="mailtrap",
    title="Mailtrap",
    authentication=signatures.hex_hmac_authentication("Mailtrap-Signature"),
    elements=_elements,
    table=EventTable(
        kind=_kind,
        kinds={
            "delivery": EventKind("delivered"),
            "soft bounce": EventKind("deferred", "other", "soft"),
            "suspension": EventKind("deferred", "other"),
            **_BOUNCES,
            "bounce": EventKind("bounced", "bounced"),
            "reject": EventKind("rejected", "blocked"),
            "reject/suppressed": EventKind("suppressed", "other"),
            "reject/hard bounce": EventKind("suppressed", "bounced"),
            "reject/spam complaint": EventKind("suppressed", "spam"),
            "reject/unsubscription": EventKind("suppressed", "unsubscribed"),
            "open": EventKind("opened"),
            "click": EventKind("clicked"),
            "spam": EventKind("complained"),
            "unsubscribe": EventKind("unsubscribed", "unsubscribed"),
            "inbound": NO_EVENT,
        },
        at=epoch_field("timestamp"),
        id="event_id",
        message_id="message_id",
        recipient="email",
        reply=lambda payload: wire.join_reply(payload.get("response_code"), payload.get("response")),
        smtp_message_id="custom_variables/anymail_id",  # from the header X-MT-Custom-Variables of a mail over SMTP
        tags="category",
    ),
)
