"""The types of events that handlers run on, as dispatchers have written them down; and what is handed over later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction, array_literal, columns

# A row that was written within ten minutes stays as it is, so that an idle dispatcher only reads.
_SEE = """
INSERT INTO {schema}.mailglass_handled_types AS h (type, seen_at)
SELECT t.type, now()::timestamp
  FROM unnest(CAST(:types AS text[])) AS t (type)
 WHERE t.type NOT IN (SELECT type FROM {schema}.mailglass_handled_types
                       WHERE seen_at > now()::timestamp - interval '10 minutes')
 ORDER BY t.type
    ON CONFLICT (type) DO UPDATE SET seen_at = excluded.seen_at
"""

_UNSEEN = """
SELECT type, extract(epoch FROM now()::timestamp - seen_at)::float8 AS seconds
  FROM {schema}.mailglass_handled_types WHERE seen_at < now()::timestamp - interval '1 hour' ORDER BY type
"""

_KNOWN = """
SELECT (SELECT extract(epoch FROM now()::timestamp - seen_at)::float8 FROM {schema}.mailglass_handled_types
         WHERE type = :type) AS seen_seconds,
       (SELECT count(*) FROM {schema}.mailglass_handler_outbox WHERE state = 'waiting' AND type = :type) AS waiting
"""

_FORGET = "DELETE FROM {schema}.mailglass_handled_types WHERE type = :type"

DELETE_WAITING = """
DELETE FROM {schema}.mailglass_handler_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_handler_outbox
          WHERE state = 'waiting' AND type = :type LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`."""

# Of what has reached a delivery since then, all that some handler is not done with and that nothing else tries.
_MISSED = """
WITH page AS MATERIALIZED (
  SELECT id, type, delivery_id, idempotency_key FROM {schema}.mailglass_events
   WHERE id > CAST(:after_id AS uuid) AND id < CAST(:until_id AS uuid) ORDER BY id LIMIT :size
-- What our writers attached, and what a `reconciled` event has linked.
), reached AS (
  SELECT id AS event_id, delivery_id FROM page
   WHERE type = :type AND delivery_id IS NOT NULL
     AND (starts_with(idempotency_key, 'webhook:') OR starts_with(idempotency_key, 'send:'))
   UNION ALL
  SELECT o.id, p.delivery_id
    FROM page AS p
    JOIN {schema}.mailglass_events AS o
      ON o.type = :type
     AND o.id = {schema}.mailglass_reconcile_orphan_of_v1(p.type, p.idempotency_key)
)
SELECT r.event_id::text, r.delivery_id::text, (SELECT max(id::text) FROM page) AS last
  FROM (SELECT) AS always
  LEFT JOIN (SELECT r.* FROM reached AS r
               LEFT JOIN {schema}.mailglass_handler_outbox AS x ON x.event_id = r.event_id
              WHERE x.event_id IS NULL
                 OR x.state = 'dispatched' AND NOT x.done @> CAST(:handlers AS text[])) AS r ON true
"""

_HAND_OVER = """
INSERT INTO {schema}.mailglass_handler_outbox AS x (event_id, delivery_id, type, next_at, inserted_at)
SELECT m.event_id, m.delivery_id, :type, now()::timestamp, now()::timestamp
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS m (event_id, delivery_id)
 ORDER BY m.event_id
    ON CONFLICT (event_id) DO UPDATE
   SET state = 'waiting', attempts = 0, next_at = excluded.next_at, finished_at = NULL
 WHERE x.state = 'dispatched'
"""


class Unseen(NamedTuple):
    """A type, and how long ago a dispatcher last had a handler of it."""

    type: str
    seconds: float


class Known(NamedTuple):
    """How long ago a dispatcher had a handler of a type, None if none ever had; and how many of its events wait."""

    seen_seconds: float | None
    waiting: int


class Missed(NamedTuple):
    """Events and their deliveries, of one page of the ledger; `last` is the last id of the page, None after it."""

    pairs: list[tuple[str, str]]
    last: str | None


def see(tx: Transaction, types: Collection[str]) -> None:
    """Write down that this process has handlers of *types*: from now on, events of these types are handed over."""
    tx.execute(_SEE, {"types": array_literal(types)})


def unseen(tx: Transaction) -> list[Unseen]:
    """Return the types that handlers run on, and that no dispatcher has named for an hour."""
    return list(map(Unseen._make, tx.execute(_UNSEEN)))


def known(tx: Transaction, type_: str) -> Known:
    return Known._make(tx.execute(_KNOWN, {"type": type_}).one())


def forget(tx: Transaction, type_: str) -> None:
    """Hand over no further events of a type."""
    tx.execute(_FORGET, {"type": type_})


def missed(tx: Transaction, type_: str, handlers: Collection[str], between: Mapping[str, str], size: int) -> Missed:
    """Return events of a type that reached a delivery and that one of *handlers*, by name, is not done with.

    Events that wait, or are dead, are left out. They are those of the first *size* rows of the ledger whose ids are
    *between* `after_id` and `until_id`.
    """
    parameters = {"type": type_, "handlers": array_literal(handlers), **between, "size": size}
    rows = tx.execute(_MISSED, parameters).all()
    return Missed([(row.event_id, row.delivery_id) for row in rows if row.event_id], rows[0].last)


def hand_over(tx: Transaction, type_: str, pairs: Sequence[tuple[str, str]]) -> int:
    """Let handlers run on events, given with their deliveries, and return how many; what is done of them stays done."""
    if not pairs:
        return 0
    return tx.execute(_HAND_OVER, {"type": type_, **columns(("event_ids", "delivery_ids"), pairs)}).rowcount
