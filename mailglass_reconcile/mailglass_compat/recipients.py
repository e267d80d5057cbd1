"""Read the recipients of Mailglass's events, which its ledger leaves out, from SES's event ids and raw webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import raw_webhooks, readers
from mailglass_reconcile.mailglass_compat.raw_webhooks import EVENTS_AT_ONCE, ReportedEvent
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.store.database import Reading, array_literal

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


class _EventIds(NamedTuple):
    """The usable ids in an event's metadata, or None each."""

    provider_event_id: str | None
    notification_id: str | None
    webhook_event_id: str | None


def load_recipients(reading: Reading, events: Sequence[UnknownRecipient]) -> dict[str, str]:
    """Return the normalized recipients that Mailglass's rows name, by event id.

    An event whose recipient cannot be read is left out. Before Mailglass 1.0, only the first event of a batch names its
    raw webhook.
    """
    providers = [readers.RECIPIENT_IN_EVENT_ID, *(readers.READERS if _can_read_webhooks(reading, events) else ())]
    events_by_id = {event.event_id: event for event in events if event.provider in providers}
    recipients: dict[str, str] = {}
    reported: dict[str, list[ReportedEvent]] = defaultdict(list)
    for event_id, ids in _load_ids(reading, list(events_by_id)):
        event = events_by_id[event_id]
        if ids.provider_event_id is None or event.provider is None:
            continue
        if event.provider == readers.RECIPIENT_IN_EVENT_ID:
            text = readers.recipient_in_event_id(ids.provider_event_id, ids.notification_id or "")
            if usable := matching.text_of(text):
                recipients[event_id] = normalize_address(usable)
        else:
            reported[event.provider].append(
                ReportedEvent(event_id, event.tenant_id, ids.provider_event_id, ids.webhook_event_id)
            )
    for provider, reported_events in reported.items():
        recipients |= raw_webhooks.load_recipients(reading, provider, readers.READERS[provider], reported_events)
    return recipients


def _can_read_webhooks(reading: Reading, events: Sequence[UnknownRecipient]) -> bool:
    if not any(event.provider in readers.READERS for event in events):
        return False
    with reading() as tx:
        return raw_webhooks.can_read(tx)


def _load_ids(reading: Reading, event_ids: Sequence[str]) -> Iterator[tuple[str, _EventIds]]:
    """Yield the ids of each event, some hundred in one transaction."""
    for start in range(0, len(event_ids), EVENTS_AT_ONCE):
        with reading() as tx:
            rows = tx.execute(_IDS, {"event_ids": array_literal(event_ids[start : start + EVENTS_AT_ONCE])}).all()
        for event_id, *texts in rows:
            yield event_id, _EventIds(*map(matching.text_of, texts))
