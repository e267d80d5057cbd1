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


def _bounce(category: str, reason: str, bounce: Any = "soft") -> tuple[str, EventKind]:
    return f"bounce/{category.lower()}", EventKind(
        "bounced", reason, bounce, {"event": "bounce", "response_code": 550, "bounce_category": category}
    )


# Mailtrap gives up after all of them; only the first is about the address.
_BOUNCES = dict(
    [
        _bounce("badrecipient", "bounced", "hard"),
        _bounce("hard", "bounced", "hard"),  # in older payloads
        _bounce("badsender", "blocked"),
        _bounce("block", "blocked"),
        _bounce("content", "blocked"),
        _bounce("dnsFail", "other"),
        _bounce("generalfail", "other"),
        _bounce("greylisting", "other"),
        _bounce("other", "other"),
        _bounce("overquota", "other"),
        _bounce("relayfail", "blocked"),
        _bounce("serverfail", "other"),
        _bounce("serverpolicy", "blocked"),
        _bounce("spam", "spam"),
        _bounce("spam_gmail", "spam"),
        _bounce("timeout", "timed_out"),
        _bounce("transientfail", "other"),
        _bounce("verifyfail", "blocked"),
    ]
)


def _reject(reason: str, list_name: str = "") -> EventKind:
    text = "Recipient in suppression list." + (f" Reason: {list_name}" if list_name else "")
    return EventKind("suppressed", reason, None, {"event": "reject", "reason": text})


PROVIDER = Provider(
    name="mailtrap",
    title="Mailtrap",
    authentication=signatures.hex_hmac_authentication("Mailtrap-Signature"),
    elements=_elements,
    batch=lambda payloads: {"events": list(payloads)},
    table=EventTable(
        kind=_kind,
        kinds={
            "delivery": EventKind("delivered", payload={"event": "delivery"}),
            "soft bounce": EventKind(
                "deferred", "other", "soft",
                {"event": "soft bounce", "response_code": 452, "bounce_category": "overquota"},
            ),
            "suspension": EventKind("deferred", "other", None, {"event": "suspension"}),
            **_BOUNCES,
            "bounce": EventKind("bounced", "bounced", None, {"event": "bounce"}),
            "reject": EventKind("rejected", "blocked", None, {"event": "reject"}),
            "reject/suppressed": _reject("other"),
            "reject/hard bounce": _reject("bounced", "hard bounce"),
            "reject/spam complaint": _reject("spam", "spam complaint"),
            "reject/unsubscription": _reject("unsubscribed", "unsubscription"),
            "open": EventKind("opened", payload={"event": "open"}),
            "click": EventKind("clicked", payload={"event": "click"}),
            "spam": EventKind("complained", payload={"event": "spam"}),
            "unsubscribe": EventKind("unsubscribed", "unsubscribed", None, {"event": "unsubscribe"}),
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
)  # fmt: skip
