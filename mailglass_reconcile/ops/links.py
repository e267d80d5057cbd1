"""The latest links, the newest first."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction

READ_AT_MOST = 2_000
"""Events of the ledger that are looked at, so that a look costs the same whatever else is written."""

# A link's id is a UUIDv7, so the newest ones are at the end of the ledger's primary key, except for random ids; those
# that are in the range of the last day's by chance are one in a million.
_OF_ALL = """
WITH latest AS (
  SELECT id, tenant_id, type, delivery_id, idempotency_key, inserted_at FROM {schema}.mailglass_events
   WHERE id >= CAST(lpad(to_hex((extract(epoch FROM now() - interval '1 day') * 1000)::bigint), 12, '0')
                    || '70008000000000000000' AS uuid)
     AND id < CAST(lpad(to_hex((extract(epoch FROM now() + interval '5 minutes') * 1000)::bigint), 12, '0')
                   || '70008000000000000000' AS uuid)
   ORDER BY id DESC LIMIT :read_at_most
)
SELECT left(r.tenant_id, 512) AS tenant_id, r.delivery_id::text, o.id::text AS event_id, left(o.type, 100) AS type,
       to_json(r.inserted_at) #>> '{}' || 'Z' AS linked_at,
       extract(epoch FROM r.inserted_at - o.inserted_at)::float8 AS after_seconds
  FROM (SELECT * FROM latest WHERE type = 'reconciled' AND delivery_id IS NOT NULL LIMIT :size) AS r
  JOIN {schema}.mailglass_events AS o
    ON o.id = CASE WHEN r.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                   THEN CAST(substr(r.idempotency_key, 12) AS uuid) END
   AND o.tenant_id = r.tenant_id
 ORDER BY r.id DESC
"""

_OF_TENANT = """
WITH latest AS (
  SELECT id, tenant_id, type, delivery_id, idempotency_key, inserted_at FROM {schema}.mailglass_events
   WHERE tenant_id = :tenant_id ORDER BY tenant_id, inserted_at DESC LIMIT :read_at_most
)
SELECT left(r.tenant_id, 512) AS tenant_id, r.delivery_id::text, o.id::text AS event_id, left(o.type, 100) AS type,
       to_json(r.inserted_at) #>> '{}' || 'Z' AS linked_at,
       extract(epoch FROM r.inserted_at - o.inserted_at)::float8 AS after_seconds
  FROM (SELECT * FROM latest WHERE type = 'reconciled' AND delivery_id IS NOT NULL LIMIT :size) AS r
  JOIN {schema}.mailglass_events AS o
    ON o.id = CASE WHEN r.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                   THEN CAST(substr(r.idempotency_key, 12) AS uuid) END
   AND o.tenant_id = r.tenant_id
 ORDER BY r.inserted_at DESC, r.id DESC
"""


class Link(NamedTuple):
    """A link: which event of which type reached which delivery, when, and how many seconds after it had arrived."""

    tenant_id: str
    delivery_id: str
    event_id: str
    type: str
    linked_at: str
    after_seconds: float


def latest(tx: Transaction, size: int, tenant_id: str | None = None) -> list[Link]:
    """Return the latest *size* links of the last day, as far as the ledger's last 2,000 events hold them."""
    parameters: dict[str, object] = {"size": size, "read_at_most": READ_AT_MOST}
    if tenant_id is None:
        rows = tx.execute(_OF_ALL, parameters)
    else:
        rows = tx.execute(_OF_TENANT, {**parameters, "tenant_id": tenant_id})
    return [Link(*row) for row in rows.all()]
