"""Mailglass's raw webhooks: the recipients that its ledger does not name, and the deletion of old ones."""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.mailglass_compat.readers import MOST_PLACES, Reader
from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.store.database import Transaction, array_literal

MAX_BYTES = 4_000_000
"""Raw webhooks that are read at once, as stored; a larger one is not read."""
MOST_NEAR = 100
"""Raw webhooks of one status that may have been stored at an event's moment; if there are more, none is chosen."""
NEAR_SECONDS = 0.1
"""A raw webhook and its events come from one transaction: at most 8 ms apart in a real database."""

COLUMNS = ("id", "tenant_id", "provider", "provider_event_id", "raw_payload", "status", "inserted_at")
"""The columns that are read to find a recipient."""

# A partitioned table has no size of its own.
_READABLE = """
SELECT (SELECT c.relkind = 'p' OR pg_relation_size(c.oid) > 0
          FROM pg_class AS c WHERE c.oid = to_regclass(:webhooks))
       AND (SELECT count(*) = cardinality(CAST(:columns AS text[])) FROM pg_attribute AS a
             WHERE a.attrelid = to_regclass(:webhooks) AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
               AND a.attname = ANY (CAST(:columns AS text[])))
"""

# By the id that Mailglass has noted since 1.0; otherwise by the event's id, and of a batch by its moment. The size is
# that of the stored value, which is not read for it.
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
_NAMED = """
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
"""For `in_batches`."""


class Reported(NamedTuple):
    """An event of the ledger, as far as its raw webhook is found by it.

    Attributes:
        event_id: The ledger's id.
        tenant_id: Its tenant, which is the raw webhook's, too.
        provider_event_id: The provider's id of it.
        webhook_event_id: The raw webhook, as the event's metadata names it, or None.
    """

    event_id: str
    tenant_id: str
    provider_event_id: str
    webhook_event_id: str | None


def may_be_read(tx: Transaction) -> bool:
    """Return whether there are raw webhooks, and this role may read what names a recipient."""
    parameters = {"webhooks": tx.name_of("mailglass_webhook_events"), "columns": array_literal(COLUMNS)}
    return bool(tx.execute(_READABLE, parameters).scalar_one())


def recipients(tx: Transaction, provider: str, reader: Reader, events: Sequence[Reported]) -> dict[str, str]:
    """Return the recipients that raw webhooks name, by the ledger's event id, in the form in which they are compared.

    A webhook that was sent twice, and an event that stands twice in a batch, name the recipient several times. An event
    is left out if one of its webhooks names no recipient, or two of them name different ones.
    """
    webhooks_by_event = _located(tx, provider, reader, events)
    sizes = {webhook_id: size for webhooks in webhooks_by_event.values() for webhook_id, size in webhooks}
    provider_ids = {event.event_id: event.provider_event_id for event in events}
    # A webhook that is no batch is the event; in a batch, the event is the one with its id.
    events_by_place = defaultdict(list)
    for event_id, webhooks in webhooks_by_event.items():
        for webhook_id, _ in webhooks:
            events_by_place[webhook_id, provider_ids[event_id] if reader.event_id else None].append(event_id)
    named = defaultdict(set)
    for webhook_ids in _parts(sizes):
        for webhook_id, provider_event_id, text in _named(tx, reader, webhook_ids):
            for event_id in events_by_place.get((webhook_id, provider_event_id), ()):
                named[event_id].add(_compared(text))
    return {event_id: only for event_id, (only, *others) in named.items() if only and not others}


def _compared(text: str | None) -> str | None:
    usable = matching.text_of(text)
    return address(usable) if usable else None


def _located(
    tx: Transaction, provider: str, reader: Reader, events: Sequence[Reported]
) -> Mapping[str, list[tuple[str, int]]]:
    """Return the raw webhooks that may hold each event, with their sizes; none for an event if there are very many."""
    parameters = {
        "provider": provider,
        "webhook_ids": array_literal(_as_uuid(event.webhook_event_id) for event in events),
        "tenant_ids": array_literal(event.tenant_id for event in events),
        "event_ids": array_literal(event.provider_event_id for event in events),
        "moments": array_literal(_moment(event.event_id) if reader.batch else None for event in events),
        "near": NEAR_SECONDS,
        "most": MOST_NEAR,
    }
    located = defaultdict(list)
    for number, webhook_id, size in tx.execute(_LOCATE, parameters):
        located[events[number - 1].event_id].append((webhook_id, size))
    return {event_id: webhooks for event_id, webhooks in located.items() if len(webhooks) < MOST_NEAR}


def _named(tx: Transaction, reader: Reader, webhook_ids: Iterable[str]) -> Sequence[tuple[str, str | None, str | None]]:
    places = [*reader.places, *[None] * MOST_PLACES]
    parameters = {
        "webhook_ids": array_literal(webhook_ids),
        "batch": reader.batch,
        "event_id": reader.event_id,
        **{f"place{n}": array_literal(place.split("/")) if (place := places[n]) else None for n in range(MOST_PLACES)},
    }
    return [(webhook_id, event_id, text) for webhook_id, event_id, text in tx.execute(_NAMED, parameters)]


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield raw webhooks together whose sizes add up to no more than `MAX_BYTES`."""
    part: list[str] = []
    total = 0
    for webhook_id, size in sizes.items():
        if size > MAX_BYTES:
            continue
        if total + size > MAX_BYTES:
            yield part
            part, total = [], 0
        part.append(webhook_id)
        total += size
    if part:
        yield part


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _as_uuid(text: str | None) -> str | None:
    return text if text and _UUID.fullmatch(text) else None


def _moment(event_id: str) -> str | None:
    """Return when an event was stored, in UTC, from its UUIDv7; None for an id of another version."""
    known = UUID(event_id)
    seconds = (known.int >> 80) / 1000
    if known.version != 7 or seconds > dt.datetime.max.replace(tzinfo=dt.UTC).timestamp() - 1:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).replace(tzinfo=None).isoformat()
