"""The recipients of Mailglass's events, which its ledger leaves out: in SES's event ids, and in raw webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import raw_webhooks, readers
from mailglass_reconcile.mailglass_compat.raw_webhooks import Reported
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.store import ledger
from mailglass_reconcile.store.database import Transaction


class Unknown(NamedTuple):
    """An event of the ledger whose recipient is not known; the provider by its canonical name."""

    event_id: str
    tenant_id: str
    provider: str | None


def named(tx: Transaction, events: Sequence[Unknown]) -> dict[str, str]:
    """Return the recipients that Mailglass's rows name, by event id, in the form in which they are compared."""
    events_by_id = {event.event_id: event for event in _readable(tx, events)}
    recipients: dict[str, str] = {}
    reported: dict[str, list[Reported]] = defaultdict(list)
    for event_id, document in ledger.documents(tx, events_by_id):
        _, tenant_id, provider = events_by_id[event_id]
        provider_event_id = matching.text_of(document.metadata.get("provider_event_id"))
        if provider_event_id is None or provider is None:
            continue
        if provider == readers.IN_EVENT_ID:
            notification_id = matching.text_of(document.metadata.get("sns_message_id"))
            if text := matching.text_of(readers.in_event_id(provider_event_id, notification_id or "")):
                recipients[event_id] = address(text)
        else:
            webhook_id = matching.text_of(document.metadata.get("webhook_event_id"))
            reported[provider].append(Reported(event_id, tenant_id, provider_event_id, webhook_id))
    for provider, of_provider in reported.items():
        recipients |= raw_webhooks.recipients(tx, provider, readers.READERS[provider], of_provider)
    return recipients


def _readable(tx: Transaction, events: Sequence[Unknown]) -> list[Unknown]:
    """Return the events whose recipients Mailglass's rows may name; where it writes no rows, their documents cost."""
    in_event_id = [event for event in events if event.provider == readers.IN_EVENT_ID]
    in_raw_webhook = [event for event in events if event.provider in readers.READERS]
    return in_event_id + (in_raw_webhook if in_raw_webhook and raw_webhooks.may_be_read(tx) else [])
