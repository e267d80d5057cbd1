"""Read the recipients of Mailglass's events, which its ledger leaves out, from SES's event ids and raw webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import raw_webhooks, readers
from mailglass_reconcile.mailglass_compat.raw_webhooks import ReportedEvent
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.store.database import Reading, array_literal

IDS_AT_ONCE = 500
"""Events whose rows one transaction reads: about 10 ms."""

# One character more than an id may have.
_IDS = """
SELECT e.id::text, left(e.metadata ->> 'provider_event_id', 513), left(e.metadata ->> 'sns_message_id', 513),
       left(e.metadata ->> 'webhook_event_id', 513)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
 CROSS JOIN LATERAL (SELECT id, metadata FROM {schema}.mailglass_events WHERE id = k.id OFFSET 0) AS e
"""


class UnknownRecipient(NamedTuple):
    """An event of the ledger whose recipient is unknown; `provider` is canonical."""

    event_id: str
    tenant_id: str
    provider: str | None


def load_recipients(reading: Reading, events: Sequence[UnknownRecipient]) -> dict[str, str]:
    """Return the normalized recipients that Mailglass's rows name, by event id."""
    events_by_id = {event.event_id: event for event in _select_readable(reading, events)}
    recipients: dict[str, str] = {}
    reported: dict[str, list[ReportedEvent]] = defaultdict(list)
    for event_id, ids in _load_ids(reading, list(events_by_id)):
        _, tenant_id, provider = events_by_id[event_id]
        if ids.provider_event_id is None or provider is None:
            continue
        if provider == readers.RECIPIENT_IN_EVENT_ID:
            text = readers.recipient_in_event_id(ids.provider_event_id, ids.notification_id or "")
            if usable := matching.text_of(text):
                recipients[event_id] = normalize_address(usable)
        else:
            reported[provider].append(ReportedEvent(event_id, tenant_id, ids.provider_event_id, ids.webhook_event_id))
    for provider, of_provider in reported.items():
        recipients |= raw_webhooks.load_recipients(reading, provider, readers.READERS[provider], of_provider)
    return recipients


def _select_readable(reading: Reading, events: Sequence[UnknownRecipient]) -> list[UnknownRecipient]:
    """Return the events whose recipients Mailglass's rows may name, so that no other event's row is read."""
    in_event_id = [event for event in events if event.provider == readers.RECIPIENT_IN_EVENT_ID]
    in_raw_webhook = [event for event in events if event.provider in readers.READERS]
    if not in_raw_webhook:
        return in_event_id
    with reading() as tx:
        return in_event_id + (in_raw_webhook if raw_webhooks.can_read(tx) else [])


class _ProviderIds(NamedTuple):
    """Usable ids in the metadata of an event of Mailglass's, or None each."""

    provider_event_id: str | None
    notification_id: str | None
    webhook_event_id: str | None


def _load_ids(reading: Reading, event_ids: Sequence[str]) -> Iterator[tuple[str, _ProviderIds]]:
    """Yield the ids of each event, some hundred in one transaction."""
    for start in range(0, len(event_ids), IDS_AT_ONCE):
        with reading() as tx:
            rows = tx.execute(_IDS, {"event_ids": array_literal(event_ids[start : start + IDS_AT_ONCE])}).all()
        for event_id, *texts in rows:
            yield event_id, _ProviderIds(*map(matching.text_of, texts))
