"""Resend: one event a request; signed as Standard Webhooks, by Svix.

Followed: https://resend.com/docs/webhooks/event-types, https://resend.com/docs/dashboard/emails/email-bounces (types of
bounces, which are those of Amazon SES), https://resend.com/docs/webhooks/verify-webhooks-requests,
https://docs.svix.com/receiving/verifying-payloads/how-manual, and for the events' fields
https://github.com/resend/resend-node/blob/canary/src/webhooks/interfaces/webhook-event.interface.ts. Not documented:
which of several recipients an event is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.providers import ses_subtypes, signatures, wire
from mailglass_reconcile.providers.provider import NO_EVENT, EventKind, EventTable, Provider, iso_field
from mailglass_reconcile.providers.wire import get_path
from mailglass_reconcile.rules.addresses import strip_display_name
from mailglass_reconcile.rules.provider_rules import MessageIds

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _ids(email_id: str | None, nested: str | None, message_id: str | None) -> Iterable[str | None]:
    """`email_id`, a UUID. Mailglass stores it as `message_id`, which Resend itself uses for the e-mail's header."""
    return email_id, nested, message_id if message_id and _UUID.fullmatch(message_id) else None


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's type, with SES's type of a bounce or a suppression."""
    type_, data = str(payload.get("type")), payload.get("data")
    if type_ == "email.bounced":
        row = ses_subtypes.bounce_row(get_path(data, "bounce", "type"), get_path(data, "bounce", "subType"))
        return f"{type_}/{row}" if row else type_
    if type_ == "email.suppressed":
        row = f"{type_}/{get_path(data, 'suppressed', 'type')}"
        return row if row in _KINDS else type_
    return type_


def _refine(payload: Mapping[str, Any], kind: EventKind) -> EventKind:
    """Read a bounce without a type, as in older webhooks, which have only words for a person."""
    if kind is not _KINDS["email.bounced"]:
        return kind
    message = get_path(payload, "data", "bounce", "message")
    text = str(message)
    reason = "blocked" if "suppressed sending" in text else "bounced" if "bounce message" in text else "other"
    return kind._replace(reason=None if message is None else reason)


def _recipient(payload: Mapping[str, Any]) -> str | None:
    """Return the message's only recipient, or None if it went to several, also as copies."""
    headers = ("to", "cc", "bcc")
    recipients = [recipient for header in headers for recipient in _as_list(get_path(payload, "data", header))]
    return strip_display_name(recipients[0]) if len(recipients) == 1 and isinstance(recipients[0], str) else None


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) and value else []


def _tags(payload: Mapping[str, Any]) -> list[Any]:
    """Return Anymail's tags, from the header `X-Tags`, and Resend's, which have names."""
    data = payload.get("data")
    tags: list[Any] = []
    for header in _as_list(get_path(data, "headers")):
        if str(get_path(header, "name")).lower() == "x-tags" and isinstance(get_path(header, "value"), str):
            try:
                value = wire.parse_json(header["value"])
            except ValueError:
                continue
            tags = value if isinstance(value, list) else [value]
    return [*tags, *wire.format_named_tags(get_path(data, "tags"))]


_KINDS = {
    "email.scheduled": EventKind("queued"),
    "email.sent": EventKind("sent"),
    "email.delivered": EventKind("delivered"),
    "email.delivery_delayed": EventKind("deferred"),
    **{f"email.bounced/{row}": kind for row, kind in ses_subtypes.BOUNCES.items()},
    "email.bounced": EventKind("bounced"),
    # Resend's own event of what it did not send; the first list is of addresses that have bounced
    "email.suppressed/Suppressed": EventKind("suppressed", "bounced"),
    "email.suppressed/UnsubscribedRecipient": EventKind("suppressed", "unsubscribed"),
    "email.suppressed": EventKind("suppressed", "other"),
    "email.failed": EventKind("failed"),
    "email.opened": EventKind("opened"),
    "email.clicked": EventKind("clicked"),
    "email.complained": EventKind("complained"),
    "email.received": NO_EVENT,
}

PROVIDER = Provider(
    name="resend",
    title="Resend",
    message_ids=MessageIds(("metadata/email_id", "metadata/data/email_id", "metadata/message_id"), _ids, version=2),
    # https://resend.com/docs/webhooks/retries-and-replays
    redelivery="Open this event under Webhooks in Resend's dashboard, and press Replay.",
    authentication=signatures.SVIX,
    # which Svix gives to an event, the same at each attempt
    request_id=lambda request: request.headers.get("svix-id") or request.headers.get("webhook-id"),
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        refine=_refine,
        at=iso_field("created_at"),
        message_id="data/email_id",
        recipient=_recipient,
        reply=lambda payload: wire.first_reply(*_as_list(get_path(payload, "data", "bounce", "diagnosticCode"))),
        smtp_message_id="data/message_id",
        tags=_tags,
    ),
)
