"""The registered handlers and their types, as dispatchers have written them; and the events that one has missed."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction, column_arrays
from mailglass_reconcile.store.tables.handler_jobs import NewJob

# A row that was written within ten minutes stays as it is, so that an idle dispatcher only reads. A row that this
# statement has inserted has no xmax.
_REGISTER = """
INSERT INTO {schema}.mailglass_handled_types AS h (type, handler, seen_at, seen_by)
SELECT r.type, r.handler, now()::timestamp, CAST(:process AS text)
  FROM unnest(CAST(:handlers AS text[]), CAST(:types AS text[])) AS r (handler, type)
 WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_handled_types AS s
                    WHERE s.type = r.type AND s.handler = r.handler
                      AND s.seen_at > now()::timestamp - interval '10 minutes' OFFSET 0)
 ORDER BY r.type, r.handler
    ON CONFLICT (type, handler) DO UPDATE SET seen_at = excluded.seen_at, seen_by = excluded.seen_by
RETURNING handler, type, xmax = 0 AS is_new
"""

_REGISTERED = """
SELECT handler, type, extract(epoch FROM now()::timestamp - seen_at)::float8 AS seen_seconds, seen_by
  FROM {schema}.mailglass_handled_types
 ORDER BY handler, type
"""

_WAITING = """
SELECT count(*) FROM {schema}.mailglass_handler_outbox
 WHERE state = 'waiting'
   AND (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
   AND (CAST(:handler AS text) IS NULL OR handler = CAST(:handler AS text))
"""

_FORGET = """
DELETE FROM {schema}.mailglass_handled_types
 WHERE (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
   AND (CAST(:handler AS text) IS NULL OR handler = CAST(:handler AS text))
"""

# Of what has reached a delivery, the newest first.
_MISSED = """
WITH page AS MATERIALIZED (
  SELECT id, tenant_id, type, delivery_id, idempotency_key FROM {schema}.mailglass_events
   WHERE id > CAST(:after_id AS uuid) AND id < CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :size
-- What our writers attached, and what a `reconciled` event of its tenant has linked.
), reached AS (
  SELECT id AS event_id, tenant_id, type, delivery_id FROM page
   WHERE starts_with(idempotency_key, 'webhook:') OR starts_with(idempotency_key, 'send:')
   UNION ALL
  SELECT o.id, o.tenant_id, o.type, l.delivery_id
    FROM page AS p
    JOIN {schema}.mailglass_events AS o
      ON o.id = {schema}.mailglass_reconcile_orphan_of_v1(p.type, p.idempotency_key)
   CROSS JOIN LATERAL {schema}.mailglass_reconcile_link_of_v1(o.id, o.tenant_id) AS l
-- A foreign writer's event may name no delivery, or another tenant's.
), missed AS (
  SELECT r.event_id, h.handler, r.delivery_id, r.type
    FROM reached AS r
    JOIN unnest(CAST(:handlers AS text[]), CAST(:types AS text[])) AS h (handler, type) ON h.type = r.type
   CROSS JOIN LATERAL (SELECT FROM {schema}.mailglass_deliveries AS d
                        WHERE d.id = r.delivery_id AND d.tenant_id = r.tenant_id OFFSET 0) AS owned
   WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_handler_outbox AS j
                      WHERE j.event_id = r.event_id AND j.handler = h.handler OFFSET 0)
)
SELECT m.event_id::text, m.handler, m.delivery_id::text, m.type, (SELECT min(id::text) FROM page) AS last
  FROM (SELECT) AS always LEFT JOIN missed AS m ON true
"""


class Registration(NamedTuple):
    """A handler's name, and a type of events that it runs on."""

    handler: str
    type: str


class Registered(NamedTuple):
    """A registration in the database, how many seconds ago a dispatcher last had it, and that one's host and pid."""

    handler: str
    type: str
    seen_seconds: float
    seen_by: str


class Page(NamedTuple):
    """Jobs that a page of the ledger lacks; `last` is the lowest id of the page, None after the last page."""

    jobs: list[NewJob]
    last: str | None


def register(tx: Transaction, registrations: Collection[Registration]) -> list[Registration]:
    """Register this process's handlers, so that events of their types get jobs. Return the new ones."""
    process = f"{socket.gethostname()}, pid {os.getpid()}"
    rows = tx.execute(_REGISTER, {**column_arrays(("handlers", "types"), registrations), "process": process})
    return [Registration(row.handler, row.type) for row in rows if row.is_new]


def load_registered(tx: Transaction) -> list[Registered]:
    """Return all registrations."""
    return list(map(Registered._make, tx.execute(_REGISTERED)))


def count_waiting_jobs(tx: Transaction, *, type_: str | None, handler: str | None) -> int:
    """Count the waiting jobs of a type, of a handler or of both."""
    number: int = tx.execute(_WAITING, {"type": type_, "handler": handler}).scalar_one()
    return number


def forget(tx: Transaction, *, type_: str | None, handler: str | None) -> None:
    """Delete registrations of a type, of a handler or of both: further events get no jobs for them."""
    tx.execute(_FORGET, {"type": type_, "handler": handler})


def missed(tx: Transaction, registrations: Sequence[Registration], *, after_id: str, until_id: str, size: int) -> Page:
    """Return the jobs that *registrations* lack, of the newest *size* rows of the ledger between two ids."""
    bounds = {"after_id": after_id, "until_id": until_id, "size": size}
    rows = tx.execute(_MISSED, {**column_arrays(("handlers", "types"), registrations), **bounds}).all()
    return Page([NewJob(*row[:4]) for row in rows if row.event_id], rows[0].last)
