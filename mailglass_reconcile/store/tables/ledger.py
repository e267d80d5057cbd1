"""The append-only ledger: what this package inserts into `mailglass_events`, and what it reads of an orphan's row."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.rules.matching import Document
from mailglass_reconcile.store.database import (
    Function,
    Reading,
    Transaction,
    array_literal,
    column_arrays,
    uuid7_bounds,
    uuid7s,
)
from mailglass_reconcile.store.tables.stored_keys import StoredKeys

LINK = Function("mailglass_reconcile_link_v1", ("reconciled_ids", "orphan_ids", "owner_ids", "extra_metadata"))
APPEND_WEBHOOK = Function("mailglass_reconcile_append_v1", ("entries",), catches=True)
APPEND_EVENT = Function("mailglass_reconcile_append_event_v1", ("entry",), catches=True)

# The text of a small document that is not compressed is at most about twice as long.
_DOCUMENTS = """
-- In the order in which they are wanted, as many as fit into the memory for a slice.
WITH wanted AS (
  SELECT k.number, e.id, e.metadata, e.normalized_payload, s.is_small,
         sum(2 * CASE WHEN s.is_small THEN b.size ELSE :most_bytes END) OVER (ORDER BY k.number) AS bytes
    FROM unnest(CAST(:event_ids AS uuid[])) WITH ORDINALITY AS k (id, number)
    JOIN {schema}.mailglass_events AS e ON e.id = k.id
   CROSS JOIN LATERAL (SELECT pg_column_size(e.metadata) + pg_column_size(e.normalized_payload) AS size) AS b
   CROSS JOIN LATERAL (
           SELECT b.size < 2000
                  AND num_nonnulls(pg_column_compression(e.metadata), pg_column_compression(e.normalized_payload)) = 0
                  AS is_small) AS s
)
SELECT number, id::text,
       CASE WHEN is_small OR octet_length(metadata::text) <= :most_bytes THEN metadata::text END,
       CASE WHEN is_small OR octet_length(normalized_payload::text) <= :most_bytes THEN normalized_payload::text END
  FROM wanted WHERE bytes <= :slice_bytes ORDER BY number
"""

_IS_OVERSIZED = """
SELECT greatest(octet_length(metadata::text), octet_length(normalized_payload::text)) > :most_bytes
  FROM {schema}.mailglass_events WHERE id = CAST(:event_id AS uuid)
"""

DOCUMENT_BYTES = 65_536
"""A longer text of one of the columns is not read: its event is unmatchable."""
SLICE_BYTES = 16 * 2**20
"""Text that is in memory at once."""


class Entry(NamedTuple):
    """A row of the ledger that a writer appends; `occurred_at` in UTC."""

    id: str
    tenant_id: str
    delivery_id: str | None
    type: str
    occurred_at: str
    idempotency_key: str | None
    reject_reason: str | None
    metadata: Mapping[str, Any]
    needs_reconciliation: bool


NOW = "now"
"""As a time, the start of the transaction."""


class ClaimedEvent(NamedTuple):
    """An event and its delivery, from the claim to the broadcast; the time as Postgres writes it.

    `reconciled_id` is the `reconciled` event that was appended; None for an event that its writer attached at once, or
    for one that was claimed but whose key the ledger held already. An orphan arrived `lag_seconds` ago. `checked` is
    false if its recipient could not be read, and it was linked by the message id alone. Handlers run on it if it is
    `handled`. An orphan is `closed` unless an event of another kind has its key.
    """

    reconciled_id: str | None
    event_id: str
    delivery_id: str
    tenant_id: str
    type: str
    occurred_at: str
    lag_seconds: float = 0.0
    checked: bool = True
    handled: bool = False
    closed: bool = False


NEWEST_EVENTS = 2_000
"""Events of the ledger that are read to find the latest links among other events."""

_LATEST_LINKS = """
SELECT tenant_id, extract(epoch FROM now()::timestamp - max(inserted_at))::float8 AS age_seconds
  FROM (SELECT tenant_id, type, delivery_id, idempotency_key, inserted_at FROM {schema}.mailglass_events
         WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :size) AS e
 WHERE e.type = 'reconciled' OR e.delivery_id IS NOT NULL AND e.idempotency_key LIKE 'webhook:%'
 GROUP BY tenant_id
"""


def load_latest_links(tx: Transaction, seconds: float) -> dict[str, float]:
    """Return by tenant the age in seconds of its latest event that has linked or attached something.

    Only the newest `NEWEST_EVENTS` events of the last *seconds* are read.
    """
    rows = tx.execute(_LATEST_LINKS, {**uuid7_bounds(seconds), "size": NEWEST_EVENTS})
    return {row.tenant_id: row.age_seconds for row in rows}


def link(
    tx: Transaction, pairs: Sequence[tuple[str, str]], extra_metadata: Mapping[str, str] | None = None
) -> list[ClaimedEvent]:
    """Claim orphans and deliveries, append a `reconciled` event for each pair, project, close; return the claimed.

    Waits for no session that has locked one of them. A pair is left out if the orphan is no longer open, the delivery
    is gone or of another tenant, or either is locked. Those whose key the ledger held already have no `reconciled_id`.
    *extra_metadata* are more metadata of the appended event, as JSON, by orphan id.
    """
    extra_metadata = extra_metadata or {}
    rows = [
        (id_, *pair, extra_metadata.get(pair[0], "{}")) for id_, pair in zip(uuid7s(len(pairs)), pairs, strict=True)
    ]
    return [ClaimedEvent(*row) for row in tx.call(LINK, column_arrays(LINK.arguments, rows))]


def append_webhook(
    tx: Transaction, entries: Sequence[Entry], keys: Sequence[StoredKeys]
) -> dict[str, ClaimedEvent | None]:
    """Append a webhook's events, each with its delivery or as an orphan; project and enqueue attached events.

    Orphans are stored with *keys*, which has the keys and the state of each entry. New events are returned by id, with
    the delivery, or None for an orphan.
    """
    events = json.dumps(list(map(_as_json, entries, keys)))
    delivery_ids = dict(tx.call(APPEND_WEBHOOK, {"entries": events}))
    return {entry.id: _to_claimed_event(entry, delivery_ids[entry.id]) for entry in entries if entry.id in delivery_ids}


def _as_json(entry: Entry, stored: StoredKeys) -> dict[str, Any]:
    keys = stored.keys
    return {
        **entry._asdict(),
        "provider": keys.provider,
        "recipient": keys.recipient,
        "rank": keys.rank,
        "ids": keys.candidate_ids,
        "lost": keys.lost,
        "state": stored.state,
    }


def _to_claimed_event(entry: Entry, delivery_id: str | None) -> ClaimedEvent | None:
    if delivery_id is None:
        return None
    return ClaimedEvent(None, entry.id, delivery_id, entry.tenant_id, entry.type, entry.occurred_at)


def append_event(tx: Transaction, entry: Entry) -> bool:
    """Append an event, unless the ledger has its key; return whether it is new.

    A LookupError says that its tenant has no such delivery.
    """
    event_ids = [event_id for (event_id,) in tx.call(APPEND_EVENT, {"entry": json.dumps(entry._asdict())})]
    if None in event_ids:
        raise LookupError(f"there is no delivery {entry.delivery_id} of this tenant")
    return bool(event_ids)


def load_documents(reading: Reading, event_ids: Collection[str]) -> Iterator[tuple[str, Document]]:
    """Yield the id and the document of each event, as many from one transaction as fit into memory.

    A document of more than 64 kB of text, or one that Python cannot read, is empty.
    """
    remaining_ids = list(event_ids)
    while remaining_ids:
        parameters = {
            "event_ids": array_literal(remaining_ids),
            "most_bytes": DOCUMENT_BYTES,
            "slice_bytes": SLICE_BYTES,
        }
        returned = len(remaining_ids)
        with reading() as tx:
            rows = tx.execute(_DOCUMENTS, parameters).all()
        for number, event_id, metadata, normalized_payload in rows:
            returned = number
            yield event_id, _parse_document(metadata, normalized_payload)
        remaining_ids = remaining_ids[returned:]


def is_oversized(tx: Transaction, event_id: str) -> bool:
    """Return True if an event's document is too long to be read."""
    return bool(tx.execute(_IS_OVERSIZED, {"event_id": event_id, "most_bytes": DOCUMENT_BYTES}).scalar_one_or_none())


def _parse_document(metadata: str | None, normalized_payload: str | None) -> Document:
    try:
        return Document(_parse_object(metadata), _parse_object(normalized_payload))
    except (ValueError, RecursionError):
        return Document()


def _parse_object(text: str | None) -> Mapping[str, Any]:
    if text is None:
        raise ValueError("too long")
    if text == "{}":  # most events' normalized payload
        return {}
    document, _ = _decode(text)
    return document if isinstance(document, dict) else {}


_decode = json.JSONDecoder().raw_decode
"""Half of the time of `json.loads` is the search for white space around a document, which `jsonb` never has."""
