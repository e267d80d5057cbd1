"""The open orphans that name a message, in all tenants: the events that a delivery without events may be missing."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules.matching import spellings_of
from mailglass_reconcile.store.database import Database, array_literal

MOST = 1_000
"""Of each spelling of the id; a hundred thousand may be open for one."""
TIMEOUT_MS = 24_000

_NAMING = """
SELECT left(o.tenant_id, 1000) AS tenant_id,
       CASE WHEN o.arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) THEN 'waiting'
            ELSE coalesce(o.state, 'unseen') END AS state,
       count(*) AS orphans, min(o.event_id::text) AS event_id
  FROM (SELECT DISTINCT i.event_id
          FROM unnest(CAST(:ids AS text[])) AS c (id)
         CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                              WHERE candidate_id = c.id LIMIT :most) AS i) AS k
 CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id OFFSET 0) AS o
 GROUP BY 1, 2
 ORDER BY count(*) DESC, 1, 2
"""


class Naming(NamedTuple):
    """Open orphans of one tenant and state that name a message: how many, and one of them."""

    tenant_id: str
    state: str
    orphans: int
    event_id: str


def naming(database: Database, message_id: str) -> list[Naming]:
    """Return the open orphans that name a message, in any spelling, by tenant and state, the most first.

    By their ids as they are stored: what no sweep and no writer has looked at yet has none.
    """
    parameters = {
        "ids": array_literal(sorted(spellings_of(message_id))),
        "most": MOST,
        "grace_seconds": database.settings.grace_seconds,
    }
    with database.reading(TIMEOUT_MS) as tx:
        return list(map(Naming._make, tx.execute(_NAMING, parameters)))
