"""Postmark's webhooks, in the shapes of its documentation."""

import zlib
from typing import Any


def payload(kind: str, message_id: str, to: str, second: int = 0) -> dict[str, Any]:
    """Return a webhook of a `RecordType`, or of a kind of bounce, at a second of 10:00 on 1 May 2026."""
    at = f"2026-05-01T10:00:{second:02}.1234567Z"
    common = {"MessageID": message_id, "ServerID": 23, "MessageStream": "outbound", "Tag": "welcome", "Metadata": {}}
    viewer = {
        "Recipient": to,
        "ReceivedAt": at,
        "Platform": "Desktop",
        "UserAgent": "Mozilla/5.0",
        "OS": {"Name": "OS X 10.7 Lion", "Company": "Apple Computer, Inc.", "Family": "OS X 10"},
        "Client": {"Name": "Chrome 35", "Company": "Google", "Family": "Chrome"},
        "Geo": {"IP": "188.2.95.4", "City": "Novi Sad", "CountryISOCode": "RS", "Coords": "45.2517,19.8369"},
    }
    bounce = {
        "ID": zlib.crc32(f"{kind}{message_id}{to}{second}".encode()),
        "Type": kind,
        "Name": "Hard bounce",
        "Description": "The server was unable to deliver your message",
        "Details": f"smtp;550 5.1.1 <{to}>: user unknown",
        "Email": to,
        "From": "shop@example.com",
        "BouncedAt": at,
        "DumpAvailable": True,
        "Inactive": True,
        "CanActivate": kind != "SpamComplaint",
        "Subject": "Welcome",
        "Content": "<Full dump>",
    }
    more: dict[str, dict[str, Any]] = {
        "Delivery": {"Recipient": to, "DeliveredAt": at, "Details": "Test delivery webhook details"},
        "Open": {**viewer, "FirstOpen": second == 0, "ReadSeconds": 5},
        "Click": {**viewer, "ClickLocation": "HTML", "OriginalLink": "https://example.com/?to=ada"},
        "SubscriptionChange": {
            "Recipient": to,
            "ChangedAt": at,
            "Origin": "Recipient",
            "SuppressSending": True,
            "SuppressionReason": "ManualSuppression",
        },
        "SpamComplaint": {**bounce, "TypeCode": 512},
    }
    record = kind if kind in more else "Bounce"
    return {"RecordType": record, **common, **more.get(kind, {**bounce, "TypeCode": 1})}


def payloads_of_all_kinds(message_id: str, ada: str, bob: str) -> list[dict[str, Any]]:
    """Return every kind of webhook about a message to two recipients, one per second, with two opens."""
    ada_s = ("Delivery", "Open", "Open", "Click", "SubscriptionChange", "AutoResponder")
    bob_s = ("Transient", "DnsError", "HardBounce", "SpamComplaint")
    kinds = [*((kind, ada) for kind in ada_s), ("Delivery", bob), *((kind, bob) for kind in bob_s)]
    return [payload(kind, message_id, to, second) for second, (kind, to) in enumerate(kinds)]
