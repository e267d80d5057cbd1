"""The page's overview: what is open, backlog and lag over time, the last runs and links, what handlers wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from mailglass_reconcile.ops import causes, history, runs, status, time_series
from mailglass_reconcile.ops.checks import Look
from mailglass_reconcile.ops.runs import Wanted
from mailglass_reconcile.ops.time_series import Bucket
from mailglass_reconcile.store import schema, window
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.listing import Cause

RUNS = 10
LINKS = 10
READ_EVENTS = 2_000
"""Events of the ledger that are read to find the latest links, however much is written besides them."""
TIMEOUT_MS = 10_000

# A link's id is a UUIDv7, so the newest ones are at the end of the ledger's primary key. Of a million random ids, one
# is in the range of the last day's by chance.
_LINKS = """
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
    ON o.id = {schema}.mailglass_reconcile_orphan_of_v1(r.type, r.idempotency_key)
   AND o.tenant_id = r.tenant_id
 ORDER BY r.id DESC
"""


class RecentLink(NamedTuple):
    """A link: which event of which type got which delivery, when, and how many seconds after the event arrived."""

    tenant_id: str
    delivery_id: str
    event_id: str
    type: str
    linked_at: str
    after_seconds: float


@dataclass(frozen=True, slots=True)
class Overview:
    """How linking is going, of all tenants.

    Attributes:
        now: The database's time, in ISO 8601, UTC, as all times here.
        counted_at: When the last full sweep counted what is open; None if none has.
        states: Eligible open orphans at `counted_at` by state, the most frequent first.
        causes: The same by state, tenant and provider, the largest first. Small ones are added up under no
            tenant.
        waiting: Orphans in their grace now.
        lag_seconds: For how long the oldest one has been open although its delivery exists; 0 if none is.
        last_success: When a run of each kind last ended well.
        runs: The last runs, without recent sweeps that linked nothing.
        links: The latest links of the last day.
        jobs_waiting: Jobs of handlers that wait: one for each handler and event.
        jobs_dead: Jobs that have failed for the last time.
        curves: Backlog and lag over time, the oldest first.
        totals: `linked`, `expired`, `failed_runs` since the history began.
    """

    now: str
    counted_at: str | None
    states: list[tuple[str, int]]
    causes: list[Cause]
    waiting: int
    lag_seconds: float
    last_success: dict[str, str]
    runs: list[dict[str, Any]]
    links: list[RecentLink]
    jobs_waiting: int
    jobs_dead: int
    curves: list[Bucket]
    totals: dict[str, int]


def overview(database: Database, *, seconds: int) -> Overview:
    """Return how linking is going, with charts of the last *seconds*; the cost does not depend on what is open."""
    with database.reading(TIMEOUT_MS) as tx:
        schema.require_migrated(tx)
        look = Look(tx)
        past = look.history
        groups = past.groups or []
        return Overview(
            now=past.now,
            counted_at=past.counted_at,
            states=history.by_state(groups).most_common(),
            causes=causes.of_groups(tx, groups),
            waiting=window.waiting(tx),
            lag_seconds=past.lag_seconds,
            last_success=past.last_success,
            runs=runs.newest(tx, Wanted(), size=RUNS),
            links=_links(tx),
            jobs_waiting=look.outbox.waiting,
            jobs_dead=look.outbox.dead,
            curves=time_series.curves(tx, seconds),
            totals=status.totals(tx),
        )


def _links(tx: Transaction) -> list[RecentLink]:
    rows = tx.execute(_LINKS, {"size": LINKS, "read_at_most": READ_EVENTS}).all()
    return [RecentLink(*row) for row in rows]
