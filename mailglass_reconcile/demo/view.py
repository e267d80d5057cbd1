"""What the demo's screen shows of the tables, read again each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

ROWS = 8

_COUNTS = sa.text("""
SELECT count(*) AS events, count(*) FILTER (WHERE type = 'reconciled') AS reconciled,
       (SELECT count(*) FROM mailglass_open_orphans) AS open
  FROM mailglass_events
""")

_NEWEST = sa.text("""
SELECT id::text, tenant_id, type, delivery_id::text FROM mailglass_events
 ORDER BY inserted_at DESC, id DESC LIMIT :rows
""")

_OLDEST_OPEN = sa.text("""
SELECT o.event_id::text, o.tenant_id, e.type,
       extract(epoch FROM (now() AT TIME ZONE 'UTC') - o.arrived_at)::float8 AS age
  FROM mailglass_open_orphans AS o JOIN mailglass_events AS e ON e.id = o.event_id
 ORDER BY o.arrived_at, o.event_id LIMIT :rows
""")


class LedgerRow(NamedTuple):
    """A row of the ledger; an orphan has no delivery, for ever."""

    id: str
    tenant_id: str
    type: str
    delivery_id: str | None


class OpenRow(NamedTuple):
    """An open orphan, and its age in seconds."""

    event_id: str
    tenant_id: str
    type: str
    age: float


class View(NamedTuple):
    """The ledger's newest rows, the open set's oldest, and how many there are of each."""

    events: int
    reconciled: int
    open: int
    newest: Sequence[LedgerRow]
    oldest_open: Sequence[OpenRow]


def read(connection: sa.Connection) -> View:
    """Read the view; *connection* is in autocommit."""
    counts = connection.execute(_COUNTS).one()
    newest = [LedgerRow(*row) for row in connection.execute(_NEWEST, {"rows": ROWS})]
    oldest = [OpenRow(*row) for row in connection.execute(_OLDEST_OPEN, {"rows": ROWS})]
    return View(counts.events, counts.reconciled, counts.open, newest, oldest)
