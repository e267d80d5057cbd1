"""Read the recipients of Mailglass's events, which its ledger leaves out, from SES's event ids and raw webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import raw_webhooks, readers
from mailglass_reconcile.mailglass_compat.raw_webhooks import ReportedEvent
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.store import ledger
from mailglass_reconcile.store.database import Transaction


class UnknownRecipient(NamedTuple):
    """An event of the ledger whose recipient is unknown; `provider` is canonical."""

    event_id: str
    tenant_id: str
    provider: str | None


def load_recipients(tx: Transaction, events: Sequence[UnknownRecipient]) -> dict[str, str]:
    """Return the normalized recipients that Mailglass's rows name, by event id."""
    events_by_id = {event.event_id: event for event in _select_readable(tx, events)}
    recipients: dict[str, str] = {}
    reported: dict[str, list[ReportedEvent]] = defaultdict(list)
    for event_id, document in ledger.load_documents(tx, events_by_id):
        _, tenant_id, provider = events_by_id[event_id]
        provider_event_id = matching.text_of(document.metadata.get("provider_event_id"))
        if provider_event_id is None or provider is None:
            continue
        if provider == readers.RECIPIENT_IN_EVENT_ID:
            notification_id = matching.text_of(document.metadata.get("sns_message_id"))
            if text := matching.text_of(readers.recipient_in_event_id(provider_event_id, notification_id or "")):
                recipients[event_id] = normalize_address(text)
        else:
            webhook_id = matching.text_of(document.metadata.get("webhook_event_id"))
            reported[provider].append(ReportedEvent(event_id, tenant_id, provider_event_id, webhook_id))
    for provider, of_provider in reported.items():
        recipients |= raw_webhooks.load_recipients(tx, provider, readers.READERS[provider], of_provider)
    return recipients


def _select_readable(tx: Transaction, events: Sequence[UnknownRecipient]) -> list[UnknownRecipient]:
    """Return the events whose recipients Mailglass's rows may name, so that no other event's document is read."""
    in_event_id = [event for event in events if event.provider == readers.RECIPIENT_IN_EVENT_ID]
    in_raw_webhook = [event for event in events if event.provider in readers.READERS]
    return in_event_id + (in_raw_webhook if in_raw_webhook and raw_webhooks.can_read(tx) else [])
