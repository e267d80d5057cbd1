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

from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.providers import MessageIds
from mailglass_reconcile.webhooks import ses_subtypes, wire
from mailglass_reconcile.webhooks.provider import NO_EVENT, Kind, Provider, Table, computed, iso
from mailglass_reconcile.webhooks.wire import dug

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _ids(email_id: str | None, nested: str | None, message_id: str | None) -> Iterable[str | None]:
    """`email_id`, a UUID. Mailglass stores it as `message_id`, which Resend itself uses for the e-mail's header."""
    return email_id, nested, message_id if message_id and _UUID.fullmatch(message_id) else None


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's type, with what SES says of a bounce or a list."""
    type_, data = str(payload.get("type")), payload.get("data")
    if type_ == "email.bounced":
        row = ses_subtypes.bounce_row(dug(data, "bounce", "type"), dug(data, "bounce", "subType"))
        return f"{type_}/{row}" if row else type_
    if type_ == "email.suppressed":
        row = f"{type_}/{dug(data, 'suppressed', 'type')}"
        return row if row in _KINDS else type_
    return type_


def _refine(payload: Mapping[str, Any], kind: Kind) -> Kind:
    """Read a bounce without a type, as in older webhooks, which have only words for a person."""
    if kind is not _KINDS["email.bounced"]:
        return kind
    words = dug(payload, "data", "bounce", "message")
    text = str(words)
    reason = "blocked" if "suppressed sending" in text else "bounced" if "bounce message" in text else "other"
    return kind._replace(reason=None if words is None else reason)


def _recipient(payload: Mapping[str, Any]) -> str | None:
    """Return whom an event is about; None if the message went to several, also as copies."""
    named = [one for header in ("to", "cc", "bcc") for one in _listed(dug(payload, "data", header))]
    return bare(named[0]) if len(named) == 1 and isinstance(named[0], str) else None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) and value else []


def _tags(payload: Mapping[str, Any]) -> list[Any]:
    """Return the tags: Resend's have names, and Anymail puts its own into the header `X-Tags`."""
    data = payload.get("data")
    found: list[Any] = []
    for header in _listed(dug(data, "headers")):
        if str(dug(header, "name")).lower() == "x-tags" and isinstance(dug(header, "value"), str):
            try:
                given = wire.from_json(header["value"])
            except ValueError:
                continue
            found = given if isinstance(given, list) else [given]
    return [*found, *wire.named_tags(dug(data, "tags"))]


def _bounce(row: str, type_: str, subtype: str) -> tuple[str, Kind]:
    payload = {"type": "email.bounced", "data": {"bounce": {"type": type_, "subType": subtype, "message": "…"}}}
    return f"email.bounced/{row}", ses_subtypes.BOUNCES[row]._replace(payload=payload)


def _suppressed(listed: str, reason: str) -> tuple[str, Kind]:
    payload = {"type": "email.suppressed", "data": {"suppressed": {"type": listed, "message": "…"}}}
    return f"email.suppressed/{listed}", Kind("suppressed", reason, None, payload)


_KINDS = {
    "email.scheduled": Kind("queued", payload={"type": "email.scheduled"}),
    "email.sent": Kind("sent", payload={"type": "email.sent"}),
    "email.delivered": Kind("delivered", payload={"type": "email.delivered"}),
    "email.delivery_delayed": Kind("deferred", payload={"type": "email.delivery_delayed"}),
    **dict(
        [
            _bounce("hard", "Permanent", "General"),
            _bounce("permanent", "Permanent", "Undetermined"),
            _bounce("soft", "Transient", "MailboxFull"),
            _bounce("undetermined", "Undetermined", "Undetermined"),
            # Resend's own event of what it did not send; the first list is of addresses that have bounced
            _suppressed("Suppressed", "bounced"),
            _suppressed("UnsubscribedRecipient", "unsubscribed"),
            _bounce("suppressed", "Permanent", "OnAccountSuppressionList"),
            _bounce("unsubscribed", "Permanent", "UnsubscribedRecipient"),
        ]
    ),
    "email.bounced": Kind("bounced", payload={"type": "email.bounced"}),
    "email.suppressed": Kind(
        "suppressed", "other", None,
        {"type": "email.suppressed", "data": {"suppressed": {"type": "OnAccountSuppressionList", "message": "…"}}},
    ),
    "email.failed": Kind(
        "failed", payload={"type": "email.failed", "data": {"failed": {"reason": "reached_daily_quota"}}}
    ),
    "email.opened": Kind("opened", payload={"type": "email.opened"}),
    "email.clicked": Kind("clicked", payload={"type": "email.clicked"}),
    "email.complained": Kind("complained", payload={"type": "email.complained"}),
    "email.received": NO_EVENT,
}  # fmt: skip

PROVIDER = Provider(
    name="resend",
    title="Resend",
    message_ids=MessageIds(("metadata/email_id", "metadata/data/email_id", "metadata/message_id"), _ids, version=2),
    # https://resend.com/docs/webhooks/retries-and-replays
    redelivery="open this event under Webhooks in Resend's dashboard, and press Replay",
    documentation="https://resend.com/docs/webhooks/event-types",
    recipient_known="if there is one only",
    boxes="all that begin with `email.`, but `email.received`",
    retries="8 attempts in about 28 hours",
    authentication=wire.SVIX,
    # which Svix gives to an event, the same at each attempt
    request_id=lambda request: request.headers.get("svix-id") or request.headers.get("webhook-id"),
    table=Table(
        kind=_kind,
        kinds=_KINDS,
        refine=_refine,
        at=iso("created_at"),
        message_id="data/email_id",
        recipient=computed(_recipient, "data/to", lambda recipient: [recipient] if recipient else []),
        reply=lambda payload: wire.reply(*_listed(dug(payload, "data", "bounce", "diagnosticCode"))),
        smtp_message_id="data/message_id",
        tags=_tags,
    ),
)
