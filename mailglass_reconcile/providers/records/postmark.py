"""Postmark: one event a request; HTTP basic authentication, because Postmark signs nothing.

Followed: https://postmarkapp.com/developer/webhooks/webhooks-overview and its pages for each `RecordType`, and
https://postmarkapp.com/developer/api/bounce-api#bounce-types. Not documented: an id of events that are no bounces; what
`Details` may hold, which in practice begins with the server's reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import (
    NO_EVENT,
    EventKind,
    EventTable,
    PayloadField,
    Provider,
    computed_field,
)
from mailglass_reconcile.rules.provider_rules import MessageIds

_TIMES = {"Delivery": "DeliveredAt", "Bounce": "BouncedAt", "SpamComplaint": "BouncedAt"}
_TIMES |= {"Open": "ReceivedAt", "Click": "ReceivedAt", "SubscriptionChange": "ChangedAt"}
_NULL_UUID = "00000000-0000-0000-0000-000000000000"


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the record's type, with the type of a bounce or the reason of a suppression."""
    record = payload.get("RecordType")
    if record == "Inbound" or (record is None and "FromFull" in payload):
        return "Inbound"
    detail = payload.get("Type")
    if record == "SubscriptionChange":
        detail = payload.get("SuppressionReason") if payload.get("SuppressSending", True) else "Subscribe"
    row = f"{record}/{detail}"
    return row if row in _KINDS else str(record)


def _message_id(payload: Mapping[str, Any]) -> object:
    """Return the id; a change of a subscription that no message has caused has the null UUID."""
    message_id = payload.get("MessageID")
    return wire.get_path(payload, "Metadata", "anymail_id") or (None if message_id == _NULL_UUID else message_id)


def _bounce(type_: str, code: int, *fields: Any) -> tuple[str, EventKind]:
    return f"Bounce/{type_}", EventKind(*fields)._replace(
        payload={"RecordType": "Bounce", "Type": type_, "TypeCode": code}
    )


def _change(reason: str | None, *fields: Any, sending: bool = False) -> tuple[str, EventKind]:
    payload = {"RecordType": "SubscriptionChange", "SuppressSending": not sending, "SuppressionReason": reason}
    return f"SubscriptionChange/{reason or 'Subscribe'}", EventKind(*fields)._replace(payload=payload)


_KINDS = {
    "Delivery": EventKind("delivered", payload={"RecordType": "Delivery"}),
    **dict(
        [
            _bounce("HardBounce", 1, "bounced", "bounced", "hard"),
            _bounce("SoftBounce", 4096, "bounced", "bounced", "soft"),
            # a filter's verdict is about the message, not about the address
            _bounce("SpamNotification", 512, "bounced", "spam", "soft"),
            _bounce("VirusNotification", 100_000, "bounced", "other", "soft"),
            _bounce("Transient", 2, "deferred"),
            _bounce("DnsError", 256, "deferred"),
            _bounce("OpenRelayTest", 2048, "deferred"),
            _bounce("AutoResponder", 32, "autoresponded"),
            _bounce("AddressChange", 64, "autoresponded"),
            _bounce("ChallengeVerification", 16_384, "autoresponded"),
            _bounce("Blocked", 100_008, "rejected", "blocked"),
            _bounce("BadEmailAddress", 100_000, "rejected", "invalid"),
            _bounce("DMARCPolicy", 100_009, "rejected", "blocked"),
            _bounce("ManuallyDeactivated", 100_002, "rejected", "blocked"),
            _bounce("Unconfirmed", 100_003, "rejected"),
            _bounce("SMTPApiError", 100_006, "failed"),
            _bounce("TemplateRenderingFailed", 100_010, "failed"),
            _bounce("Unsubscribe", 16, "unsubscribed", "unsubscribed"),
            _bounce("Subscribe", 128, "subscribed"),
            _bounce("SpamComplaint", 100_001, "complained"),
            _bounce("Unknown", 8192, "unknown"),
            _bounce("InboundError", 100_007, "unknown"),
            _change("HardBounce", "bounced", "bounced", "hard"),
            _change("SpamComplaint", "complained"),
            _change("ManualSuppression", "unsubscribed", "unsubscribed"),
            _change(None, "subscribed", sending=True),
        ]
    ),
    "Bounce": EventKind("bounced", payload={"RecordType": "Bounce"}),
    "Open": EventKind("opened", payload={"RecordType": "Open"}),
    "Click": EventKind("clicked", payload={"RecordType": "Click"}),
    "SpamComplaint": EventKind("complained", payload={"RecordType": "SpamComplaint", "Type": "SpamComplaint"}),
    "SubscriptionChange": EventKind(
        "unsubscribed", payload={"RecordType": "SubscriptionChange", "SuppressSending": True}
    ),
    "Inbound": NO_EVENT,
}

PROVIDER = Provider(
    name="postmark",
    title="Postmark",
    message_ids=MessageIds(("metadata/message_id", "metadata/MessageID")),  # a bounce's `ID` is of another namespace
    lacks_id=frozenset({"subscribed", "unsubscribed"}),  # by the account's owner or Postmark
    authentication=signatures.BASIC,
    elements=lambda request: [request.json],
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        at=PayloadField(
            lambda payload: wire.parse_iso(next((payload[name] for name in _TIMES.values() if name in payload), None)),
            lambda row: (_TIMES[row.partition("/")[0]],),
            lambda at: at.isoformat(),
        ),
        id="ID",
        message_id=computed_field(_message_id, "MessageID"),
        recipient=PayloadField(
            lambda payload: payload.get("Email", payload.get("Recipient")),
            lambda row: ("Email" if _TIMES[row.partition("/")[0]] == "BouncedAt" else "Recipient",),
        ),
        reply="Details",
        tags="Tag",
        sample={"MessageStream": "outbound"},
    ),
)
