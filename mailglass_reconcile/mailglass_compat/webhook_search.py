"""Search raw webhooks for events that do not name theirs: those of a batch that Mailglass stored before 1.0.

Mailglass writes a raw webhook and then its events, in one transaction. So webhooks are read newest first, from the
event's time on, for at most ten minutes: first those of the events' transactions (`xmin`), then all. A savepoint, a
restore or a later update changes `xmin`; so it only says which webhooks are read first, and the event's id in the
content decides. Both ids are UUIDv7, so the primary key is in the order of time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.mailglass_compat import raw_webhooks
from mailglass_reconcile.mailglass_compat.raw_webhooks import RawWebhook, ReportedEvent
from mailglass_reconcile.mailglass_compat.readers import RecipientReader
from mailglass_reconcile.rules.matching import ALL_READ
from mailglass_reconcile.store.database import Reading, array_literal

BEFORE_SECONDS, AFTER_SECONDS = 600, 1
"""How long before its event, and after it, a raw webhook may have been stored."""
ROWS_AT_ONCE = 2_000
"""Raw webhooks that one transaction looks at, without their contents."""

# One page of raw webhooks of any provider, newest first; of these, the ones that may contain an event, and the page's
# last. The ranges are disjoint, the newest first. The transactions are hashed, not joined by a loop.
_NEXT = """
WITH page AS MATERIALIZED (
  SELECT w.*, row_number() OVER (ORDER BY r.number, w.id DESC) AS place
    FROM unnest(CAST(:first_ids AS uuid[]), CAST(:end_ids AS uuid[])) WITH ORDINALITY AS r (first_id, end_id, number)
   CROSS JOIN LATERAL (
           SELECT id, tenant_id, provider, pg_column_size(raw_payload) AS size, xmin AS transaction_id
             FROM {schema}.mailglass_webhook_events
            WHERE id >= r.first_id AND id < r.end_id ORDER BY id DESC LIMIT :rows) AS w
   ORDER BY r.number, w.id DESC LIMIT :rows
), examined AS (
  SELECT id, tenant_id, size, place,
         provider = :provider AND (tenant_id IN (SELECT unnest(CAST(:tenant_ids AS text[])))) IS TRUE
         AND (CAST(:transaction_ids AS xid[]) IS NULL
              OR (transaction_id IN (SELECT unnest(CAST(:transaction_ids AS xid[])))) IS TRUE) AS may_contain
    FROM page
)
SELECT id::text, tenant_id, size, may_contain, place FROM examined WHERE may_contain OR place = :rows ORDER BY place
"""

_TRANSACTIONS = """
SELECT DISTINCT e.transaction_id::text
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
 CROSS JOIN LATERAL (SELECT xmin AS transaction_id FROM {schema}.mailglass_events WHERE id = k.id OFFSET 0) AS e
"""


@dataclass(slots=True)
class Budget:
    """What a search may read.

    Attributes:
        rows: The raw webhooks to look at.
        size: The bytes of contents to read.
        is_final: True for a sweep. Only a sweep links an event that waits, and whose webhooks its role may not read.
    """

    rows: int
    size: int
    is_final: bool

    @property
    def is_spent(self) -> bool:
        """True if nothing more may be read."""
        return self.rows <= 0 or self.size <= 0


class SearchResult(NamedTuple):
    """The recipient that an event's raw webhook names; or from which raw webhook on all were read in vain.

    `read_from` is `ALL_READ` if no webhook is left that may be the event's.
    """

    recipient: str | None
    read_from: str | None


class _Sought(NamedTuple):
    """An event, and the range of ids of the raw webhooks that may be its own and have not been read."""

    event: ReportedEvent
    first_id: str
    end_id: str
    is_begun: bool


class _Page(NamedTuple):
    """Raw webhooks that may contain an event, and the id from which on all were looked at."""

    webhooks: list[RawWebhook]
    end_id: str


def search(
    reading: Reading,
    provider: str,
    reader: RecipientReader,
    events: Sequence[ReportedEvent],
    budget: Budget,
) -> dict[str, SearchResult]:
    """Search the raw webhook of each event, and return the result by the ledger's event id.

    Args:
        reading: Begins a transaction for each page and each group of contents.
        provider: The canonical name of the events' provider.
        reader: The places of recipients in its webhooks.
        events: The events; the id of each is a UUIDv7.
        budget: What may be read; what it leaves is read by the next search, from `ReportedEvent.read_from` on.
    """
    run = _Search(reading, provider, reader)
    remaining = {event.event_id: _to_sought(event) for event in events}
    # A search that has begun to read all webhooks has read those of the event's transaction.
    not_begun = {event_id: sought for event_id, sought in remaining.items() if not sought.is_begun}
    if not_begun:
        # With a budget of its own: the other one always makes progress, whatever the transactions hold.
        run.read(not_begun, run.load_transactions(not_begun), replace(budget))
    remaining = {event_id: sought for event_id, sought in remaining.items() if event_id not in run.recipients}
    end_id = run.read(remaining, None, replace(budget))
    unread = {
        event_id: SearchResult(None, ALL_READ if end_id <= sought.first_id else min(end_id, sought.end_id))
        for event_id, sought in remaining.items()
    }
    return unread | {event_id: SearchResult(recipient, ALL_READ) for event_id, recipient in run.recipients.items()}


class _Search:
    """One search; `recipients` has the events whose raw webhook was read, by id, None for one without a recipient."""

    def __init__(self, reading: Reading, provider: str, reader: RecipientReader) -> None:
        self._reading = reading
        self._provider = provider
        self._reader = reader
        self.recipients: dict[str, str | None] = {}

    def load_transactions(self, event_ids: Iterable[str]) -> list[str]:
        """Return the transactions that wrote events."""
        ids = list(event_ids)
        transactions: dict[str, None] = {}
        for start in range(0, len(ids), raw_webhooks.EVENTS_AT_ONCE):
            some_ids = array_literal(ids[start : start + raw_webhooks.EVENTS_AT_ONCE])
            with self._reading() as tx:
                transactions |= dict.fromkeys(tx.execute(_TRANSACTIONS, {"event_ids": some_ids}).scalars())
        return list(transactions)

    def read(self, sought: Mapping[str, _Sought], transactions: Sequence[str] | None, budget: Budget) -> str:
        """Read raw webhooks, of some transactions or of all, until each event is in one, or *budget* is used up.

        Returns:
            The id from which on all webhooks of the events' ranges are read; `ALL_READ` at the end of the ranges.
        """
        end_id = _LAST_ID
        remaining = dict(sought)
        while remaining:
            ranges = _merge_ranges(remaining.values(), end_id)
            if not ranges:
                return ALL_READ
            if budget.is_spent:
                return end_id
            page = self._load_page(ranges, {key.event.tenant_id for key in remaining.values()}, transactions)
            budget.rows -= ROWS_AT_ONCE
            for group in raw_webhooks.group_by_size(page.webhooks):
                if budget.is_spent:
                    return end_id
                self._read_group(group, remaining)
                budget.size -= sum(webhook.size for webhook in group)
                end_id = group[-1].webhook_id
                if not remaining:
                    break
            else:
                end_id = page.end_id
        return end_id

    def _load_page(
        self, ranges: Sequence[tuple[str, str]], tenant_ids: Iterable[str], transactions: Sequence[str] | None
    ) -> _Page:
        parameters = {
            "first_ids": array_literal(first_id for first_id, _ in ranges),
            "end_ids": array_literal(end_id for _, end_id in ranges),
            "provider": self._provider,
            "tenant_ids": array_literal(tenant_ids),
            "transaction_ids": None if transactions is None else array_literal(transactions),
            "rows": ROWS_AT_ONCE,
        }
        with self._reading() as tx:
            rows = tx.execute(_NEXT, parameters).all()
        webhooks = [RawWebhook(row.id, row.tenant_id, row.size) for row in rows if row.may_contain]
        is_full = bool(rows) and rows[-1].place == ROWS_AT_ONCE
        return _Page(webhooks, rows[-1].id if is_full else ALL_READ)

    def _read_group(self, webhooks: Sequence[RawWebhook], remaining: dict[str, _Sought]) -> None:
        """Read the contents of some webhooks, and move the events in them from *remaining* to `recipients`."""
        event_ids = defaultdict(list)
        for sought in remaining.values():
            event_ids[sought.event.tenant_id, sought.event.provider_event_id].append(sought.event.event_id)
        tenants = {webhook.webhook_id: webhook.tenant_id for webhook in webhooks}
        with self._reading() as tx:
            rows = raw_webhooks.read_recipients(tx, self._reader, tenants, {id_ for _, id_ in event_ids})
        recipients = defaultdict(set)
        for webhook_id, provider_event_id, recipient in rows:
            for event_id in event_ids.get((tenants[webhook_id], provider_event_id or ""), ()):
                recipients[event_id].add(recipient)
        for event_id, named in recipients.items():
            self.recipients[event_id] = raw_webhooks.choose_recipient(named)
            del remaining[event_id]


_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


def _to_sought(event: ReportedEvent) -> _Sought:
    ms = UUID(event.event_id).int >> 80
    first_id, end_id = _first_id_of(ms - 1_000 * BEFORE_SECONDS), _first_id_of(ms + 1_000 * AFTER_SECONDS)
    is_begun = event.read_from is not None and event.read_from < end_id
    return _Sought(event, first_id, min(end_id, event.read_from or end_id), is_begun)


def _first_id_of(ms: int) -> str:
    """Return the lowest UUID of a millisecond."""
    return str(UUID(int=min(max(0, ms), 2**48 - 1) << 80))


def _merge_ranges(sought: Iterable[_Sought], end_id: str) -> list[tuple[str, str]]:
    """Return the ranges of ids below *end_id* as disjoint ranges, the newest first."""
    ranges = ((key.first_id, min(key.end_id, end_id)) for key in sought)
    merged: list[tuple[str, str]] = []
    for first, end in sorted((range_ for range_ in ranges if range_[0] < range_[1]), key=itemgetter(1), reverse=True):
        if merged and end >= merged[-1][0]:
            merged[-1] = (min(first, merged[-1][0]), merged[-1][1])
        else:
            merged.append((first, end))
    return merged
