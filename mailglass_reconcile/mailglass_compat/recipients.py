"""Read the recipients of Mailglass's events, which its ledger leaves out, from SES's event ids and raw webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.mailglass_compat import raw_webhooks, readers, webhook_search
from mailglass_reconcile.mailglass_compat.raw_webhooks import EVENTS_AT_ONCE, ReportedEvent
from mailglass_reconcile.mailglass_compat.webhook_search import Budget, SearchResult
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.store.database import Reading, array_literal

# One character more than an id may have. Our writers' events have no raw webhook.
_IDS = """
SELECT e.id::text, starts_with(e.idempotency_key, 'webhook:') IS NOT TRUE,
       left(e.metadata ->> 'provider_event_id', 513), left(e.metadata ->> 'sns_message_id', 513),
       left(e.metadata ->> 'webhook_event_id', 513)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
 CROSS JOIN LATERAL (SELECT id, metadata, idempotency_key FROM {schema}.mailglass_events WHERE id = k.id OFFSET 0) AS e
"""


class UnknownRecipient(NamedTuple):
    """An event of the ledger whose recipient is unknown.

    `provider` is canonical. `read_from` is the result of the search before, as in `SearchResult`; None if there was
    none.
    """

    event_id: str
    tenant_id: str
    provider: str | None
    read_from: str | None


class _EventIds(NamedTuple):
    """Whether another program than ours wrote an event; and the usable ids in its metadata, or None each."""

    is_foreign: bool
    provider_event_id: str | None
    notification_id: str | None
    webhook_event_id: str | None


UNREADABLE = SearchResult(None, None)
"""The result for an event of which nothing names the recipient."""

SWEEP = Budget(rows=50_000, size=8_000_000, is_final=True)
"""What a sweep searches for the orphans that it reads at once, about a second at most; the next sweep continues."""
CALL = Budget(rows=10_000, size=4_000_000, is_final=False)
"""What is searched in a caller's transaction, for which time counts; a sweep searches the rest."""


def load_recipients(reading: Reading, events: Sequence[UnknownRecipient], budget: Budget) -> dict[str, SearchResult]:
    """Return the recipient that Mailglass's rows name, or how far they were searched, by event id.

    An event whose recipient cannot be read is left out.
    """
    can_read = _can_read_webhooks(reading, events)
    providers = [readers.RECIPIENT_IN_EVENT_ID, *(readers.READERS if can_read else ())]
    events_by_id = {event.event_id: event for event in events if event.provider in providers}
    results: dict[str, SearchResult] = {}
    # The role that sweeps may be able to read what this one, a recorder's or reader's, is not.
    if not (can_read or budget.is_final):
        results = {event.event_id: SearchResult(None, event.read_from) for event in events}
    located: dict[str, list[ReportedEvent]] = defaultdict(list)
    sought: dict[str, list[ReportedEvent]] = defaultdict(list)
    for event_id, ids in _load_ids(reading, list(events_by_id)):
        event = events_by_id[event_id]
        if ids.provider_event_id is None or event.provider is None:
            continue
        if event.provider == readers.RECIPIENT_IN_EVENT_ID:
            text = readers.recipient_in_event_id(ids.provider_event_id, ids.notification_id or "")
            if usable := matching.text_of(text):
                results[event_id] = SearchResult(normalize_address(usable), None)
            continue
        reported = ReportedEvent(
            event_id, event.tenant_id, ids.provider_event_id, ids.webhook_event_id, event.read_from
        )
        is_batched = readers.READERS[event.provider].batch is not None
        if not is_batched or raw_webhooks.as_uuid(ids.webhook_event_id) or UUID(event_id).version != 7:
            located[event.provider].append(reported)
        elif ids.is_foreign:
            sought[event.provider].append(reported)
    for provider, reported_events in located.items():
        recipients = raw_webhooks.load_recipients(reading, provider, readers.READERS[provider], reported_events)
        results |= {event_id: SearchResult(recipient, None) for event_id, recipient in recipients.items()}
    for provider, reported_events in sought.items():
        results |= webhook_search.search(reading, provider, readers.READERS[provider], reported_events, budget)
    return results


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
        for event_id, is_foreign, *texts in rows:
            yield event_id, _EventIds(is_foreign, *map(matching.text_of, texts))
