"""One delivery and what happened to it: its events in order, those that were linked to it among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mailglass_reconcile.ops import verdicts
from mailglass_reconcile.ops.verdicts import Verdict
from mailglass_reconcile.store.database import Database

EVENTS = 200
"""At most so many, the latest."""
TIMEOUT_MS = 24_000

_DELIVERY = """
SELECT id::text, left(tenant_id, 512) AS tenant_id,
       -- That of its send, where its row may have none.
       left(coalesce(d.provider,
                     (SELECT CASE jsonb_typeof(e.metadata -> 'provider')
                                  WHEN 'string' THEN e.metadata ->> 'provider' END
                        FROM {schema}.mailglass_events AS e
                       WHERE e.delivery_id = d.id AND e.type IN ('dispatched', 'failed', 'rejected')
                       ORDER BY e.delivery_id, e.occurred_at LIMIT 1)), 512) AS provider,
       left(provider_message_id, 512) AS message_id, left(last_event_type, 100) AS last_event_type, terminal,
       to_json(last_event_at) #>> '{}' || 'Z' AS last_event_at, to_json(dispatched_at) #>> '{}' || 'Z' AS dispatched_at,
       to_json(delivered_at) #>> '{}' || 'Z' AS delivered_at, to_json(bounced_at) #>> '{}' || 'Z' AS bounced_at,
       to_json(complained_at) #>> '{}' || 'Z' AS complained_at, to_json(suppressed_at) #>> '{}' || 'Z' AS suppressed_at
  FROM {schema}.mailglass_deliveries AS d WHERE id = CAST(:delivery_id AS uuid)
"""

# A `reconciled` event stands for the orphan that it links: the orphan's type, time and id are shown.
_EVENTS = """
SELECT coalesce(o.id, e.id)::text AS event_id, left(coalesce(o.type, e.type), 100) AS type,
       to_json(coalesce(o.occurred_at, e.occurred_at)) #>> '{}' || 'Z' AS occurred_at,
       CASE WHEN o.id IS NOT NULL THEN to_json(e.inserted_at) #>> '{}' || 'Z' END AS linked_at,
       extract(epoch FROM e.inserted_at - o.inserted_at)::float8 AS after_seconds,
       coalesce(o.id IS NOT NULL AND e.metadata ->> 'linked_by' = 'hand', false) AS by_hand
  FROM (SELECT * FROM {schema}.mailglass_events
         WHERE delivery_id = CAST(:delivery_id AS uuid) ORDER BY delivery_id DESC, occurred_at DESC LIMIT :size) AS e
  LEFT JOIN {schema}.mailglass_events AS o
    ON o.id = CASE WHEN e.type = 'reconciled'
                    AND e.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
               THEN CAST(substr(e.idempotency_key, 12) AS uuid) END
   AND o.tenant_id = e.tenant_id
 ORDER BY coalesce(o.occurred_at, e.occurred_at), coalesce(o.id, e.id)
"""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A delivery, without its address, and its latest events, the oldest of them first.

    Attributes:
        delivery: `id`, `tenant_id`, `provider`, `message_id`, `last_event_type`, `last_event_at`, `terminal`, and the
            earliest time of each of `dispatched_at`, `delivered_at`, … ; times in ISO 8601, UTC.
        events: `event_id`, `type` and `occurred_at`; of those that were linked later, `linked_at`, `after_seconds`
            since they arrived, and whether `by_hand`.
        more: Whether there are older ones, too.
        verdict: What happened to it, in one sentence, and the command that shows more.
    """

    delivery: dict[str, Any]
    events: list[dict[str, Any]]
    more: bool
    verdict: Verdict


def timeline(database: Database, delivery_id: UUID) -> Timeline | None:
    """Return what happened to a delivery, or None if there is none with this id."""
    with database.reading(TIMEOUT_MS) as tx:
        found = tx.execute(_DELIVERY, {"delivery_id": str(delivery_id)}).mappings().one_or_none()
        if found is None:
            return None
        rows = tx.execute(_EVENTS, {"delivery_id": str(delivery_id), "size": EVENTS + 1}).mappings().all()
        verdict = verdicts.of(tx, [str(delivery_id)])[str(delivery_id)]
    return Timeline(dict(found), [dict(row) for row in rows[-EVENTS:]], len(rows) > EVENTS, verdict)
