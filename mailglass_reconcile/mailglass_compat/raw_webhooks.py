"""Read recipients from Mailglass's raw webhooks, because its ledger names none, and delete old raw webhooks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat.readers import MAX_PLACES, RecipientReader
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.store.database import Reading, Transaction, array_literal

MAX_BYTES = 4_000_000
"""Stored size above which a raw webhook is not read."""
BYTES_AT_ONCE = 250_000
"""Stored size of the raw webhooks that one transaction reads, unless one alone is larger."""
EVENTS_AT_ONCE = 500
"""Events whose rows one transaction reads."""

COLUMNS = ("id", "tenant_id", "provider", "provider_event_id", "raw_payload")
"""The columns needed to find a recipient."""

# A partitioned table has no size of its own.
_CAN_READ = """
SELECT (SELECT c.relkind = 'p' OR pg_relation_size(c.oid) > 0
          FROM pg_class AS c WHERE c.oid = to_regclass(:webhooks))
       AND (SELECT count(*) = cardinality(CAST(:columns AS text[])) FROM pg_attribute AS a
             WHERE a.attrelid = to_regclass(:webhooks) AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
               AND a.attname = ANY (CAST(:columns AS text[])))
"""

# By the id that Mailglass stores since 1.0, otherwise by the event's id. The size is that of the stored value, without
# reading it.
_LOCATE = """
SELECT k.number, w.id::text, pg_column_size(w.raw_payload) AS size
  FROM unnest(CAST(:webhook_ids AS uuid[]), CAST(:tenant_ids AS text[]), CAST(:event_ids AS text[]))
       WITH ORDINALITY AS k (webhook_id, tenant_id, event_id, number)
 CROSS JOIN LATERAL (
         (SELECT id, tenant_id, provider, raw_payload FROM {schema}.mailglass_webhook_events
           WHERE id = k.webhook_id OFFSET 0)
          UNION ALL
         (SELECT id, tenant_id, provider, raw_payload FROM {schema}.mailglass_webhook_events
           WHERE k.webhook_id IS NULL AND provider = :provider AND provider_event_id = k.event_id OFFSET 0)) AS w
 WHERE w.provider = :provider AND w.tenant_id IS NOT DISTINCT FROM k.tenant_id
"""

# One row for each event that is asked for, or for each event of a webhook; `address` is NULL unless the event names
# exactly one. A webhook that is no batch is one event.
_RECIPIENTS = """
SELECT w.id::text, left(x.event ->> :event_id, 513), a.address
  FROM unnest(CAST(:webhook_ids AS uuid[])) AS k (id)
 CROSS JOIN LATERAL (SELECT id, raw_payload FROM {schema}.mailglass_webhook_events WHERE id = k.id OFFSET 0) AS w
 CROSS JOIN LATERAL jsonb_array_elements(
         CASE jsonb_typeof(w.raw_payload -> :batch) WHEN 'array' THEN w.raw_payload -> :batch
              ELSE jsonb_build_array(w.raw_payload) END) AS x (event)
  LEFT JOIN LATERAL (
         SELECT max(CASE jsonb_typeof(n.name) WHEN 'string' THEN left(btrim(n.name #>> '{}'), 513) END) AS address
           FROM unnest(ARRAY[x.event #> CAST(:place0 AS text[]), x.event #> CAST(:place1 AS text[]),
                             x.event #> CAST(:place2 AS text[])]) AS p (held)
          CROSS JOIN LATERAL jsonb_array_elements(
                  CASE jsonb_typeof(p.held) WHEN 'array' THEN p.held WHEN 'string' THEN jsonb_build_array(p.held)
                       ELSE '[]' END) AS n (name)
         HAVING count(*) = 1) AS a ON true
 WHERE CAST(:event_id AS text) IS NULL
       OR (x.event ->> :event_id IN (SELECT unnest(CAST(:event_ids AS text[])))) IS TRUE
"""

COUNT_OLD = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(inserted_at)) AS oldest
  FROM {schema}.mailglass_webhook_events
 WHERE {schema}.mailglass_reconcile_is_past_retention_v1(
         status, inserted_at, CAST(:status AS text), CAST(:days AS integer))
"""
DELETE_OLD = """
DELETE FROM {schema}.mailglass_webhook_events
 WHERE id = ANY (ARRAY(
         SELECT id FROM {schema}.mailglass_webhook_events
          WHERE {schema}.mailglass_reconcile_is_past_retention_v1(
                  status, inserted_at, CAST(:status AS text), CAST(:days AS integer))
          ORDER BY inserted_at LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""Statement for `in_batches`."""


class ReportedEvent(NamedTuple):
    """The ids of an event of the ledger by which its raw webhook is found.

    Attributes:
        event_id: The ledger's id.
        tenant_id: The event's tenant, which is also the raw webhook's.
        provider_event_id: The provider's id.
        webhook_event_id: The id of the raw webhook in the event's metadata, or None.
    """

    event_id: str
    tenant_id: str
    provider_event_id: str
    webhook_event_id: str | None


def can_read(tx: Transaction) -> bool:
    """Return True if there are raw webhooks, and this role may read them."""
    parameters = {"webhooks": tx.name_of("mailglass_webhook_events"), "columns": array_literal(COLUMNS)}
    return bool(tx.execute(_CAN_READ, parameters).scalar_one())


def load_recipients(
    reading: Reading, provider: str, reader: RecipientReader, events: Sequence[ReportedEvent]
) -> dict[str, str]:
    """Return the normalized recipients that raw webhooks name, by the ledger's event id.

    A webhook is found by its id, or by the event's. An event is left out if one of its webhooks names no recipient, or
    if two of them name different recipients.
    """
    sizes: dict[str, int] = {}
    # A webhook that is no batch is the event; in a batch, the event is the one with its id.
    events_by_place = defaultdict(list)
    for start in range(0, len(events), EVENTS_AT_ONCE):
        with reading() as tx:
            located = _locate_webhooks(tx, provider, events[start : start + EVENTS_AT_ONCE])
        for event, webhook_id, size in located:
            sizes[webhook_id] = size
            place = (webhook_id, event.provider_event_id if reader.event_id else None)
            events_by_place[place].append(event.event_id)
    provider_event_ids = {event.provider_event_id for event in events}
    recipients = defaultdict(set)
    for webhook_ids in _group_by_size(sizes):
        with reading() as tx:
            rows = _read_recipients(tx, reader, webhook_ids, provider_event_ids)
        for webhook_id, provider_event_id, recipient in rows:
            for event_id in events_by_place.get((webhook_id, provider_event_id), ()):
                recipients[event_id].add(recipient)
    chosen = {event_id: named.pop() for event_id, named in recipients.items() if len(named) == 1}
    return {event_id: recipient for event_id, recipient in chosen.items() if recipient}


def _locate_webhooks(
    tx: Transaction, provider: str, events: Sequence[ReportedEvent]
) -> list[tuple[ReportedEvent, str, int]]:
    """Return each event with the id and the stored size of each raw webhook that may contain it."""
    parameters = {
        "provider": provider,
        "webhook_ids": array_literal(_as_uuid(event.webhook_event_id) for event in events),
        "tenant_ids": array_literal(event.tenant_id for event in events),
        "event_ids": array_literal(event.provider_event_id for event in events),
    }
    rows = tx.execute(_LOCATE, parameters).all()
    return [(events[number - 1], webhook_id, size) for number, webhook_id, size in rows]


def _read_recipients(
    tx: Transaction, reader: RecipientReader, webhook_ids: Iterable[str], provider_event_ids: Iterable[str]
) -> list[tuple[str, str | None, str | None]]:
    """Return webhook id, event id and normalized recipient of each event; of a batch, only of those that are named."""
    places = [*reader.places, *[None] * MAX_PLACES]
    parameters = {
        "webhook_ids": array_literal(webhook_ids),
        "event_ids": array_literal(provider_event_ids if reader.event_id else ()),
        "batch": reader.batch,
        "event_id": reader.event_id,
        **{f"place{n}": array_literal(place.split("/")) if (place := places[n]) else None for n in range(MAX_PLACES)},
    }
    rows = tx.execute(_RECIPIENTS, parameters).all()
    return [(webhook_id, event_id, _normalize(text)) for webhook_id, event_id, text in rows]


def _normalize(text: str | None) -> str | None:
    usable = matching.text_of(text)
    return normalize_address(usable) if usable else None


def _group_by_size(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield groups of webhooks by id, to be read at once; leave out those that are too large."""
    group: list[str] = []
    total = 0
    for webhook_id, size in sizes.items():
        if size > MAX_BYTES:
            continue
        if group and total + size > BYTES_AT_ONCE:
            yield group
            group, total = [], 0
        group.append(webhook_id)
        total += size
    if group:
        yield group


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _as_uuid(text: str | None) -> str | None:
    return text if text and _UUID.fullmatch(text) else None
