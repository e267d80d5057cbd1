"""Read recipients from Mailglass's raw webhooks, because its ledger names none, and delete old raw webhooks."""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.mailglass_compat.readers import MAX_PATHS, RecipientReader
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.store.database import Reading, Transaction, array_literal

MAX_BYTES = 4_000_000
"""Stored size of the raw webhooks that are read at once; a larger one is not read."""
LOCATED_AT_ONCE = 500
"""Events whose raw webhooks one transaction locates."""
MOST_NEAR = 100
"""Greatest number of raw webhooks of one status near an event's time; beyond that, none is chosen."""
NEAR_SECONDS = 0.1
"""Greatest distance of a raw webhook from its events: they share a transaction, 8 ms apart in a real database."""

COLUMNS = ("id", "tenant_id", "provider", "provider_event_id", "raw_payload", "status", "inserted_at")
"""The columns needed to find a recipient."""

# A partitioned table has no size of its own.
_READABLE = """
SELECT (SELECT c.relkind = 'p' OR pg_relation_size(c.oid) > 0
          FROM pg_class AS c WHERE c.oid = to_regclass(:webhooks))
       AND (SELECT count(*) = cardinality(CAST(:columns AS text[])) FROM pg_attribute AS a
             WHERE a.attrelid = to_regclass(:webhooks) AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
               AND a.attname = ANY (CAST(:columns AS text[])))
"""

# By the id that Mailglass stores since 1.0; otherwise by the event's id, and in a batch by the event's time. The size
# is that of the stored value, without reading it.
_LOCATE = """
SELECT k.number, w.id::text, pg_column_size(w.raw_payload) AS size
  FROM unnest(CAST(:webhook_ids AS uuid[]), CAST(:tenant_ids AS text[]), CAST(:event_ids AS text[]),
              CAST(:moments AS timestamp[]))
       WITH ORDINALITY AS k (webhook_id, tenant_id, event_id, moment, number)
 CROSS JOIN LATERAL (
         (SELECT id, tenant_id, provider, raw_payload FROM {schema}.mailglass_webhook_events
           WHERE id = k.webhook_id OFFSET 0)
          UNION ALL
         (SELECT id, tenant_id, provider, raw_payload FROM {schema}.mailglass_webhook_events
           WHERE k.webhook_id IS NULL AND k.moment IS NULL AND provider = :provider AND provider_event_id = k.event_id
          OFFSET 0)
          UNION ALL
         SELECT near.* FROM unnest(ARRAY['received', 'processing', 'succeeded', 'failed', 'dead']) AS s (status)
          CROSS JOIN LATERAL (
                 SELECT id, tenant_id, provider, raw_payload FROM {schema}.mailglass_webhook_events
                  WHERE k.webhook_id IS NULL AND status = s.status
                    AND inserted_at >= k.moment - make_interval(secs => CAST(:near AS float8))
                    AND inserted_at <= k.moment + make_interval(secs => CAST(:near AS float8))
                  LIMIT :most) AS near) AS w
 WHERE w.provider = :provider AND w.tenant_id IS NOT DISTINCT FROM k.tenant_id
"""

# One row for each event of a webhook; `address` is NULL unless the event names exactly one. A webhook that is no batch
# is one event.
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
"""

DELETE_OLD = """
DELETE FROM {schema}.mailglass_webhook_events
 WHERE id = ANY (ARRAY(
         SELECT id FROM {schema}.mailglass_webhook_events
          WHERE status = :status AND inserted_at < now()::timestamp - make_interval(days => :days)
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
    """Return True if there are raw webhooks, and this role may read the columns that name a recipient."""
    parameters = {"webhooks": tx.name_of("mailglass_webhook_events"), "columns": array_literal(COLUMNS)}
    return bool(tx.execute(_READABLE, parameters).scalar_one())


def load_recipients(
    reading: Reading, provider: str, reader: RecipientReader, events: Sequence[ReportedEvent]
) -> dict[str, str]:
    """Return the normalized recipients that raw webhooks name, by the ledger's event id.

    A redelivered webhook, or an event that is twice in a batch, names the recipient several times. An event is left out
    if one of its webhooks names no recipient, or if two of them name different recipients.
    """
    webhooks_by_event: dict[str, list[tuple[str, int]]] = {}
    for start in range(0, len(events), LOCATED_AT_ONCE):
        with reading() as tx:
            webhooks_by_event |= _locate_webhooks(tx, provider, reader, events[start : start + LOCATED_AT_ONCE])
    sizes = {webhook_id: size for webhooks in webhooks_by_event.values() for webhook_id, size in webhooks}
    provider_ids = {event.event_id: event.provider_event_id for event in events}
    # A webhook that is no batch is the event; in a batch, the event is the one with its id.
    events_by_place = defaultdict(list)
    for event_id, webhooks in webhooks_by_event.items():
        for webhook_id, _ in webhooks:
            events_by_place[webhook_id, provider_ids[event_id] if reader.event_id else None].append(event_id)
    recipients = defaultdict(set)
    for webhook_ids in _group_by_size(sizes):
        with reading() as tx:
            rows = _read_recipients(tx, reader, webhook_ids)
        for webhook_id, provider_event_id, text in rows:
            for event_id in events_by_place.get((webhook_id, provider_event_id), ()):
                recipients[event_id].add(_normalize(text))
    return {event_id: only for event_id, (only, *others) in recipients.items() if only and not others}


def _normalize(text: str | None) -> str | None:
    usable = matching.text_of(text)
    return normalize_address(usable) if usable else None


def _locate_webhooks(
    tx: Transaction, provider: str, reader: RecipientReader, events: Sequence[ReportedEvent]
) -> Mapping[str, list[tuple[str, int]]]:
    """Return the raw webhooks that may contain each event, with their sizes; none for an event with too many."""
    parameters = {
        "provider": provider,
        "webhook_ids": array_literal(_as_uuid(event.webhook_event_id) for event in events),
        "tenant_ids": array_literal(event.tenant_id for event in events),
        "event_ids": array_literal(event.provider_event_id for event in events),
        "moments": array_literal(_stored_at(event.event_id) if reader.batch else None for event in events),
        "near": NEAR_SECONDS,
        "most": MOST_NEAR,
    }
    webhooks_by_event = defaultdict(list)
    for number, webhook_id, size in tx.execute(_LOCATE, parameters):
        webhooks_by_event[events[number - 1].event_id].append((webhook_id, size))
    return {event_id: webhooks for event_id, webhooks in webhooks_by_event.items() if len(webhooks) < MOST_NEAR}


def _read_recipients(
    tx: Transaction, reader: RecipientReader, webhook_ids: Iterable[str]
) -> Sequence[tuple[str, str | None, str | None]]:
    places = [*reader.places, *[None] * MAX_PATHS]
    parameters = {
        "webhook_ids": array_literal(webhook_ids),
        "batch": reader.batch,
        "event_id": reader.event_id,
        **{f"place{n}": array_literal(place.split("/")) if (place := places[n]) else None for n in range(MAX_PATHS)},
    }
    return [(webhook_id, event_id, text) for webhook_id, event_id, text in tx.execute(_RECIPIENTS, parameters)]


def _group_by_size(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield groups of raw webhooks whose sizes add up to at most `MAX_BYTES`."""
    group: list[str] = []
    total = 0
    for webhook_id, size in sizes.items():
        if size > MAX_BYTES:
            continue
        if total + size > MAX_BYTES:
            yield group
            group, total = [], 0
        group.append(webhook_id)
        total += size
    if group:
        yield group


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _as_uuid(text: str | None) -> str | None:
    return text if text and _UUID.fullmatch(text) else None


def _stored_at(event_id: str) -> str | None:
    """Return the time when an event was stored, in UTC, from its UUIDv7; None for an id of another version."""
    uuid = UUID(event_id)
    seconds = (uuid.int >> 80) / 1000
    if uuid.version != 7 or seconds > dt.datetime.max.replace(tzinfo=dt.UTC).timestamp() - 1:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).replace(tzinfo=None).isoformat()
