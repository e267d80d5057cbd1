"""Postmark: one event a request; HTTP basic authentication, because Postmark signs nothing.

Followed: https://postmarkapp.com/developer/webhooks/webhooks-overview and its pages for each `RecordType`, and
https://postmarkapp.com/developer/api/bounce-api#bounce-types. Not documented: an id of events that are no bounces; what
`Details` may hold, which in practice begins with the server's reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import NO_EVENT, UNKNOWN, EventKind, EventTable, Provider
from mailglass_reconcile.rules.provider_rules import MessageIds

_TIMES = ("DeliveredAt", "BouncedAt", "ReceivedAt", "ChangedAt")
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


_KINDS = {
    "Delivery": EventKind("delivered"),
    "Bounce/HardBounce": EventKind("bounced", "bounced", "hard"),
    "Bounce/SoftBounce": EventKind("bounced", "bounced", "soft"),
    # a filter's verdict is about the message, not about the address
    "Bounce/SpamNotification": EventKind("bounced", "spam", "soft"),
    "Bounce/VirusNotification": EventKind("bounced", "other", "soft"),
    "Bounce/Transient": EventKind("deferred"),
    "Bounce/DnsError": EventKind("deferred"),
    "Bounce/OpenRelayTest": EventKind("deferred"),
    "Bounce/AutoResponder": EventKind("autoresponded"),
    "Bounce/AddressChange": EventKind("autoresponded"),
    "Bounce/ChallengeVerification": EventKind("autoresponded"),
    "Bounce/Blocked": EventKind("rejected", "blocked"),
    "Bounce/BadEmailAddress": EventKind("rejected", "invalid"),
    "Bounce/DMARCPolicy": EventKind("rejected", "blocked"),
    "Bounce/ManuallyDeactivated": EventKind("rejected", "blocked"),
    "Bounce/Unconfirmed": EventKind("rejected"),
    "Bounce/SMTPApiError": EventKind("failed"),
    "Bounce/TemplateRenderingFailed": EventKind("failed"),
    "Bounce/Unsubscribe": EventKind("unsubscribed", "unsubscribed"),
    "Bounce/Subscribe": EventKind("subscribed"),
    "Bounce/SpamComplaint": EventKind("complained"),
    "Bounce/Unknown": UNKNOWN,
    "Bounce/InboundError": UNKNOWN,
    "Bounce": EventKind("bounced"),
    "SubscriptionChange/HardBounce": EventKind("bounced", "bounced", "hard"),
    "SubscriptionChange/SpamComplaint": EventKind("complained"),
    "SubscriptionChange/ManualSuppression": EventKind("unsubscribed", "unsubscribed"),
    "SubscriptionChange/Subscribe": EventKind("subscribed"),
    "SubscriptionChange": EventKind("unsubscribed"),
    "Open": EventKind("opened"),
    "Click": EventKind("clicked"),
    "SpamComplaint": EventKind("complained"),
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
        at=lambda payload: wire.parse_iso(next((payload[name] for name in _TIMES if name in payload), None)),
        id="ID",
        message_id=_message_id,
        recipient=lambda payload: payload.get("Email", payload.get("Recipient")),
        reply="Details",
        tags="Tag",
    ),
)
