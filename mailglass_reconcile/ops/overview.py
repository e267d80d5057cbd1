"""What the page shows first: what is open, how it got there, the last runs and links, and what handlers wait for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from mailglass_reconcile.ops import curve, health, links
from mailglass_reconcile.ops.curve import Sample
from mailglass_reconcile.ops.links import Link
from mailglass_reconcile.schedule import LATE_SECONDS
from mailglass_reconcile.store import outbox, schema
from mailglass_reconcile.store.database import Database, Transaction

RUNS = 10
LINKS = 10
DEAD = 5
READ_AT_MOST = 10_000
"""Orphans in their grace, and rows of the outbox, that are looked at for one tenant."""
BUCKETS = 96
TIMEOUT_MS = 10_000

_WAITING = """
SELECT count(*) FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > now()::timestamp - make_interval(secs => :grace_seconds)
"""

_WAITING_OF_TENANT = """
SELECT count(*) FILTER (WHERE w.tenant_id = :tenant_id)
  FROM (SELECT tenant_id FROM {schema}.mailglass_open_orphans
         WHERE arrived_at > now()::timestamp - make_interval(secs => :grace_seconds)
         ORDER BY arrived_at DESC, event_id DESC LIMIT :size) AS w
"""

# Of another tenant, nothing is read; of a run over all tenants, nothing is shown to one but that it was.
_RUNS = """
SELECT to_json(finished_at) #>> '{}' || 'Z' AS finished_at, kind, origin, left(tenant_id, 512) AS tenant_id, status,
       error, runs,
       CASE WHEN :all_tenants OR tenant_id IS NOT NULL THEN scanned END AS scanned,
       CASE WHEN :all_tenants OR tenant_id IS NOT NULL THEN linked END AS linked,
       CASE WHEN :all_tenants OR tenant_id IS NOT NULL THEN duration_ms END AS duration_ms
  FROM (SELECT * FROM {schema}.mailglass_reconcile_runs ORDER BY id DESC LIMIT :read_at_most) AS r
 WHERE :all_tenants OR tenant_id IS NULL OR tenant_id = :tenant_id
 ORDER BY r.id DESC LIMIT :size
"""

_TOTALS = """
SELECT coalesce(sum(linked), 0)::bigint AS linked, coalesce(sum(expired), 0)::bigint AS expired,
       coalesce(sum(runs) FILTER (WHERE status = 'failed'), 0)::bigint AS failed_runs
  FROM {schema}.mailglass_reconcile_runs
"""

_HANDLERS_OF_TENANT = """
SELECT count(*) FILTER (WHERE o.state = 'waiting' AND e.tenant_id = :tenant_id) AS waiting,
       count(*) FILTER (WHERE o.state = 'dead' AND e.tenant_id = :tenant_id) AS dead, count(*) AS looked_at
  FROM (SELECT event_id, state FROM {schema}.mailglass_hook_outbox WHERE state <> 'dispatched' LIMIT :size) AS o
  LEFT JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
"""


class Handlers(NamedTuple):
    """Events that wait for their handlers, and dead ones; `at_least` if not all were looked at."""

    waiting: int
    dead: int
    at_least: bool
    last_dead: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Overview:
    """How linking is going, of all tenants or of one.

    Attributes:
        now: The database's time, in ISO 8601, UTC, as all times here.
        counted_at: When the last full sweep counted what is open; None if none has.
        states: Eligible open orphans at `counted_at` by state, the most frequent first.
        groups: The same by `state`, `tenant_id`, `provider`: `orphans`, the largest first.
        small: Whether small tenants were added up under no name, so that one of them does not know its number.
        waiting: Orphans in their grace now.
        lag_seconds: For how long the oldest one has been open although its delivery is there; None of one tenant.
        last_success: When a run of each kind last ended well.
        problems: What is wrong, a sentence for each; none of one tenant.
        runs: The last runs; of one tenant, its own with their counts and those over all tenants without.
        links: The latest links.
        handlers: What handlers wait for.
        samples: Backlog and lag over time.
        totals: `linked`, `expired`, `failed_runs` since the history began; None of one tenant.
    """

    now: str
    counted_at: str | None
    states: list[tuple[str, int]]
    groups: list[dict[str, Any]]
    small: bool
    waiting: int
    lag_seconds: float | None
    last_success: dict[str, str]
    problems: list[str]
    runs: list[dict[str, Any]]
    links: list[Link]
    handlers: Handlers
    samples: list[Sample]
    totals: dict[str, int] | None


def overview(database: Database, *, seconds: int, tenant_id: str | None = None) -> Overview:
    """Return how linking is going, in a read-only transaction whose cost does not depend on what is open.

    Args:
        database: The database.
        seconds: How far the curve reaches back.
        tenant_id: Of this tenant alone; None is all tenants.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = database.settings
    with database.reading(TIMEOUT_MS) as tx:
        facts = health.facts(tx)
        schema.require_current(facts.version)
        groups = [g for g in facts.groups or [] if tenant_id in (None, g["tenant_id"])]
        states: Counter[str] = Counter()
        for group in groups:
            states[group["state"]] += group["orphans"]
        return Overview(
            now=facts.now,
            counted_at=facts.counted_at,
            states=states.most_common(),
            groups=groups,
            small=any(g["tenant_id"] is None for g in facts.groups or []),
            waiting=_waiting(tx, settings.grace_seconds, tenant_id),
            lag_seconds=facts.lag_seconds if tenant_id is None else None,
            last_success=facts.last_success,
            problems=health.problems(facts, LATE_SECONDS) if tenant_id is None else [],
            runs=_runs(tx, tenant_id),
            links=links.latest(tx, LINKS, tenant_id),
            handlers=_handlers(tx, facts, tenant_id),
            samples=curve.samples(tx, seconds=seconds, buckets=BUCKETS, tenant_id=tenant_id),
            totals=dict(tx.execute(_TOTALS).mappings().one()) if tenant_id is None else None,
        )


def _waiting(tx: Transaction, grace_seconds: int, tenant_id: str | None) -> int:
    if tenant_id is None:
        count: int = tx.execute(_WAITING, {"grace_seconds": grace_seconds}).scalar_one()
    else:
        whose = {"grace_seconds": grace_seconds, "tenant_id": tenant_id, "size": READ_AT_MOST}
        count = tx.execute(_WAITING_OF_TENANT, whose).scalar_one()
    return count


def _runs(tx: Transaction, tenant_id: str | None) -> list[dict[str, Any]]:
    whose = {
        "all_tenants": tenant_id is None,
        "tenant_id": tenant_id or "",
        "read_at_most": READ_AT_MOST,
        "size": RUNS,
    }
    return [dict(row) for row in tx.execute(_RUNS, whose).mappings()]


def _handlers(tx: Transaction, facts: health.Facts, tenant_id: str | None) -> Handlers:
    if tenant_id is None:
        return Handlers(facts.hooks_waiting, facts.hooks_dead, at_least=False, last_dead=outbox.dead(tx, DEAD))
    row = tx.execute(_HANDLERS_OF_TENANT, {"tenant_id": tenant_id, "size": READ_AT_MOST}).one()
    return Handlers(row.waiting, row.dead, at_least=row.looked_at == READ_AT_MOST, last_dead=[])
