"""The append-only ledger: every row that this package inserts into `mailglass_events`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Claimed, array_literal

# One statement, because each of two would look for the orphan and read its JSON. Seconds are subtracted, not times: an
# arrival may be infinite.
_APPEND_RECONCILED = """
WITH claimed AS MATERIALIZED (
  SELECT m.id, o.event_id, d.id AS delivery_id, e.tenant_id, o.arrived_at, left(e.type, 512) AS type, e.occurred_at,
         o.rule IS NOT NULL AS keyed, left(e.metadata ->> 'provider', 512) AS provider,
         left(e.metadata ->> 'provider_event_id', 512) AS provider_event_id
    FROM unnest(CAST(:ids AS uuid[]), CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[]))
         AS m (id, event_id, delivery_id)
    JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = m.event_id
    JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
    -- IS NOT DISTINCT FROM, because no index serves it: with stale statistics, one on the tenant looks cheap.
    JOIN {schema}.mailglass_deliveries AS d ON d.id = m.delivery_id AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id
   ORDER BY d.id, o.event_id
     FOR UPDATE OF o SKIP LOCKED
     FOR NO KEY UPDATE OF d SKIP LOCKED
), appended AS (
  INSERT INTO {schema}.mailglass_events
         (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation, inserted_at)
  SELECT id, tenant_id, delivery_id, 'reconciled', now()::timestamp, 'reconciled:' || event_id,
         jsonb_build_object('reconciled_from_event_id', event_id, 'reconciled_provider', provider,
                            'reconciled_provider_event_id', provider_event_id),
         false, now()::timestamp
    FROM claimed
      ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
  RETURNING id
)
SELECT id::text, id IN (SELECT id FROM appended) AS appended, event_id::text, delivery_id::text, tenant_id,
       arrived_at::text, type, to_json(occurred_at) #>> '{}' AS occurred_at, keyed,
       (extract(epoch FROM now()::timestamp) - extract(epoch FROM arrived_at))::float8 AS lag_seconds
  FROM claimed
"""

_NOT_RECONCILED = """
SELECT e.id::text
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
 WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_events AS r
                    WHERE r.idempotency_key = 'reconciled:' || e.id
                      AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM e.tenant_id)
"""

# In the order of the keys: two webhooks that share several, in whatever order, then wait for each other one way only.
_APPEND = """
INSERT INTO {schema}.mailglass_events
       (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, metadata,
        needs_reconciliation, inserted_at)
SELECT n.*, now()::timestamp
  FROM unnest(CAST(:ids AS uuid[]), CAST(:tenant_ids AS text[]), CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]),
              CAST(:occurred_at AS timestamp[]), CAST(:idempotency_keys AS text[]), CAST(:reject_reasons AS text[]),
              CAST(:metadata AS jsonb[]), CAST(:needs_reconciliation AS boolean[]))
       AS n (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, metadata, needed)
 ORDER BY n.idempotency_key COLLATE "C"
    ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id::text
"""

_PRESENT = "SELECT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = CAST(:id AS uuid))"


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


def uuid7() -> str:
    """Return a new UUID of version 7 (RFC 9562), as Mailglass makes its ids: it sorts by its millisecond."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def append_reconciled(tx: Transaction, pairs: Sequence[tuple[str, str]]) -> list[Claimed]:
    """Claim orphans and deliveries, append a `reconciled` event for each pair, and return the claimed, by delivery id.

    Waits for nobody who holds an orphan or a delivery. A pair is left out if the orphan is no longer open, the delivery
    is gone or of another tenant, or either is locked.

    Args:
        tx: The transaction that links them.
        pairs: Each orphan's id and the id of its delivery.
    """
    parameters = {
        "ids": array_literal(uuid7() for _ in pairs),
        "event_ids": array_literal(event_id for event_id, _ in pairs),
        "delivery_ids": array_literal(delivery_id for _, delivery_id in pairs),
    }
    return [Claimed(*row) for row in tx.execute(_APPEND_RECONCILED, parameters).all()]


def not_reconciled(tx: Transaction, event_ids: Sequence[str]) -> set[str]:
    """Return those orphans that no `reconciled` event of their tenant reconciles, of *event_ids*."""
    return set(tx.execute(_NOT_RECONCILED, {"event_ids": array_literal(event_ids)}).scalars())


def present(tx: Transaction, event_id: str) -> bool:
    """Whether the ledger holds this event: what became of a COMMIT whose answer was lost."""
    return bool(tx.execute(_PRESENT, {"id": event_id}).scalar_one())


def append(tx: Transaction, entries: Sequence[Entry]) -> set[str]:
    """Append *entries*, and return the ids of those that are new; the others' idempotency keys were there already."""
    if not entries:
        return set()
    parameters = {
        "ids": array_literal(entry.id for entry in entries),
        "tenant_ids": array_literal(entry.tenant_id for entry in entries),
        "delivery_ids": array_literal(entry.delivery_id for entry in entries),
        "types": array_literal(entry.type for entry in entries),
        "occurred_at": array_literal(entry.occurred_at for entry in entries),
        "idempotency_keys": array_literal(entry.idempotency_key for entry in entries),
        "reject_reasons": array_literal(entry.reject_reason for entry in entries),
        "metadata": array_literal(json.dumps(entry.metadata) for entry in entries),
        "needs_reconciliation": array_literal(str(entry.needs_reconciliation) for entry in entries),
    }
    return set(tx.execute(_APPEND, parameters).scalars())
