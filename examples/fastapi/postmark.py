"""What Postmark's webhooks say, as the events that `record_webhook` takes."""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile import WebhookEvent

TYPES = {
    "Delivery": "delivered",
    "Bounce": "bounced",
    "SpamComplaint": "complained",
    "Open": "opened",
    "Click": "clicked",
    "SubscriptionChange": "unsubscribed",
}
BOUNCES = {
    "Transient": "deferred",
    "DnsError": "deferred",
    "AutoResponder": "autoresponded",
    "Subscribe": "subscribed",
    "Unsubscribe": "unsubscribed",
}
"""Kinds of bounce after which the message may still arrive, or has arrived."""
TIMES = ("DeliveredAt", "BouncedAt", "ReceivedAt", "ChangedAt")


def event_of(report: Mapping[str, Any]) -> WebhookEvent:
    """Return the event that one webhook of Postmark's reports, whatever its kind."""
    return WebhookEvent(
        type=BOUNCES.get(str(report.get("Type"))) or TYPES.get(str(report.get("RecordType")), "unknown"),
        occurred_at=_when(next((report[name] for name in TIMES if report.get(name)), None)),
        provider_event_id=report.get("ID") or _digest(report),
        message_id=report.get("MessageID"),
        recipient=report.get("Recipient") or report.get("Email"),
    )


def _digest(report: Mapping[str, Any]) -> str:
    """Return what a retry shares with the first, and two opens, or two recipients, do not: only bounces have ids."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def _when(text: object) -> dt.datetime:
    try:
        when = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return dt.datetime.now(dt.UTC)
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)
