"""The handlers' outbox: a row for each event that they run on, written in the transaction that attaches it.

A row is `waiting` until all its handlers are done (`dispatched`) or it has failed for the last time (`dead`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Report, array_literal

# Without a conflict target, which would need the right to read. Sorted: two transactions wait one way only.
_ADD = """
INSERT INTO {schema}.mailglass_hook_outbox (event_id, delivery_id, type, next_at, inserted_at)
SELECT n.event_id, n.delivery_id, n.type, now()::timestamp, now()::timestamp
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]))
       AS n (event_id, delivery_id, type)
 ORDER BY n.event_id
    ON CONFLICT DO NOTHING
"""

_COUNT = """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead
  FROM {schema}.mailglass_hook_outbox WHERE state <> 'dispatched'
"""

_DEAD = """
SELECT event_id::text, delivery_id::text, type, attempts, done, error, to_json(finished_at) #>> '{}' AS finished_at
  FROM {schema}.mailglass_hook_outbox AS o WHERE state = 'dead' ORDER BY o.finished_at DESC, o.event_id LIMIT :size
"""

RETRY = """
UPDATE {schema}.mailglass_hook_outbox
   SET state = 'waiting', attempts = 0, next_at = now()::timestamp, finished_at = NULL
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_hook_outbox
          WHERE state = 'dead' AND (CAST(:event_id AS uuid) IS NULL OR event_id = CAST(:event_id AS uuid))
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`: let dead rows, or one of them, be tried again; what was done of them stays done."""

DELETE_DISPATCHED = """
DELETE FROM {schema}.mailglass_hook_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_hook_outbox
          WHERE state = 'dispatched' AND finished_at < now()::timestamp - make_interval(days => :days)
          ORDER BY finished_at LIMIT :size))
"""

# Waiting ones too: retries end after days, so nobody has handled these.
DELETE_UNHANDLED = """
DELETE FROM {schema}.mailglass_hook_outbox
 WHERE event_id = ANY (ARRAY(
         SELECT event_id FROM {schema}.mailglass_hook_outbox
          WHERE state <> 'dispatched'
            AND coalesce(finished_at, inserted_at) < now()::timestamp - make_interval(days => :days)
          LIMIT :size FOR UPDATE SKIP LOCKED))
"""


def add(tx: Transaction, reports: Sequence[Report]) -> None:
    """Give events to handlers; nothing is sent if there are none, and an event is added once."""
    if not reports:
        return
    tx.execute(
        _ADD,
        {
            "event_ids": array_literal(report.event_id for report in reports),
            "delivery_ids": array_literal(report.delivery_id for report in reports),
            "types": array_literal(report.type for report in reports),
        },
    )


def count(tx: Transaction) -> tuple[int, int]:
    """Return how many rows wait, and how many are dead."""
    row = tx.execute(_COUNT).one()
    return row.waiting, row.dead


def dead(tx: Transaction, size: int) -> list[dict[str, Any]]:
    """Return the *size* dead rows that died last."""
    return [dict(row) for row in tx.execute(_DEAD, {"size": size}).mappings()]
