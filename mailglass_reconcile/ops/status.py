"""How linking is going: what the history of runs says, and whether somebody has to act."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import health, live
from mailglass_reconcile.schedule import LATE_SECONDS
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.reading import reading
from mailglass_reconcile.sweep import windows

LAST_RUNS = 5

_WAITING = """
SELECT count(*) FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > now()::timestamp - make_interval(secs => :grace_seconds)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
"""

# A full sweep that was cut into ranges has linked nothing itself: they are added up with it, and not shown alone.
_LAST_RUNS = """
SELECT to_json(greatest(r.finished_at, parts.finished_at)) #>> '{}' || 'Z' AS finished_at, r.kind, r.origin,
       r.tenant_id,
       CASE WHEN parts.failed > 0 THEN 'failed' WHEN parts.partial > 0 THEN 'partial' ELSE r.status END AS status,
       coalesce(r.error, parts.error) AS error, r.runs + parts.runs AS runs, r.scanned + parts.scanned AS scanned,
       r.linked + parts.linked AS linked, r.duration_ms + parts.duration_ms AS duration_ms
  FROM (SELECT * FROM {schema}.mailglass_reconcile_runs
         WHERE kind NOT IN ('range', 'dispatch') ORDER BY id DESC LIMIT :size) AS r
 CROSS JOIN LATERAL (
         SELECT max(finished_at) AS finished_at, max(error) AS error,
                count(*) FILTER (WHERE status = 'failed') AS failed,
                count(*) FILTER (WHERE status = 'partial') AS partial, coalesce(sum(runs), 0)::bigint AS runs,
                coalesce(sum(scanned), 0)::bigint AS scanned, coalesce(sum(linked), 0)::bigint AS linked,
                coalesce(sum(duration_ms), 0)::bigint AS duration_ms
           FROM {schema}.mailglass_reconcile_runs AS p
          WHERE r.kind = 'full' AND r.open_groups IS NULL AND r.remaining > 0 AND p.kind = 'range' AND p.id > r.id
            AND p.tenant_id IS NOT DISTINCT FROM r.tenant_id AND p.status <> 'duplicate'
            AND NOT EXISTS (SELECT FROM {schema}.mailglass_reconcile_runs AS n
                             WHERE n.kind = 'full' AND n.id > r.id AND n.id < p.id AND n.status <> 'duplicate'
                               AND n.tenant_id IS NOT DISTINCT FROM r.tenant_id)) AS parts
 ORDER BY r.id DESC
"""

_TOTALS = """
SELECT coalesce(sum(linked), 0)::bigint AS linked, coalesce(sum(expired), 0)::bigint AS expired,
       coalesce(sum(runs) FILTER (WHERE status = 'failed'), 0)::bigint AS failed_runs
  FROM {schema}.mailglass_reconcile_runs
"""


@dataclass(frozen=True, slots=True)
class Status:
    """How linking is going.

    Attributes:
        open: `eligible` and `waiting` together.
        eligible: Open orphans at `as_of` that a sweep looks at.
        waiting: Open orphans that are in their grace now.
        lag_seconds: For how long the oldest one has been open although its delivery is there; 0 if none is.
        as_of: When the eligible ones were counted, in ISO 8601: at the end of the last full sweep, or now.
        groups: The eligible ones by `state`, `tenant_id` and `provider`, the largest first.
        last_success: When a run of each kind last ended well, in ISO 8601.
        last_runs: The last runs, the newest first.
        hooks_waiting: Events that wait for their handlers.
        hooks_dead: Events whose handlers have failed for the last time.
        totals: `linked`, `expired` and `failed_runs` since the history began.
        triggers: Whether the triggers that keep the table of open orphans are at work.
        healthy: Whether nobody has to act.
        problems: Why not: a sentence for each, with what to do.
    """

    open: int
    eligible: int
    waiting: int
    lag_seconds: float
    as_of: str
    groups: list[dict[str, Any]]
    last_success: dict[str, str]
    last_runs: list[dict[str, Any]]
    hooks_waiting: int
    hooks_dead: int
    totals: dict[str, int]
    triggers: bool
    healthy: bool
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `status --json` prints them."""
        return asdict(self)


def check(engine: sa.Engine, max_lag_seconds: float = LATE_SECONDS) -> list[str]:
    """Return what is wrong, a sentence for each; one cheap query, whatever is open.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = runtime.get_settings()
    with reading(engine, settings, statement_timeout_ms=10_000) as tx:
        return health.problems(health.facts(tx), max_lag_seconds)


def waiting(engine: sa.Engine, tenant_id: str | None = None) -> int:
    """Return how many open orphans are in their grace, of one tenant or, with None, of all.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = runtime.get_settings()
    with reading(engine, settings, probes_only=True) as tx:
        return _waiting(tx, settings, tenant_id)


def _waiting(tx: Transaction, settings: Settings, tenant_id: str | None) -> int:
    if not windows.can_be(tenant_id):
        return 0
    parameters = {"grace_seconds": settings.grace_seconds, "tenant_id": tenant_id}
    return int(tx.execute(_WAITING, parameters).scalar_one())


def status(
    engine: sa.Engine,
    *,
    tenant_id: str | None = None,
    count_now: bool = False,
    max_lag_seconds: float = LATE_SECONDS,
) -> Status:
    """Return how linking is going, in a read-only transaction.

    Args:
        engine: An engine on the database.
        tenant_id: Show this tenant's open orphans only; None is all tenants.
        count_now: Count the open orphans now, which takes seconds if a million are open, instead of as the last full
            sweep left them. If there has been none, they are counted now anyway.
        max_lag_seconds: As for `check`.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    runtime.load_imports(to_read=True)
    settings = runtime.get_settings()
    with reading(engine, settings, snapshot=True, probes_only=True) as tx:
        facts = health.facts(tx)
        schema.require_current(facts.version)
        in_grace = _waiting(tx, settings, tenant_id)
        if count_now or facts.groups is None or facts.counted_at is None:
            as_of, groups = facts.now, live.count(tx, settings, tenant_id)
        else:
            as_of, groups = facts.counted_at, [g for g in facts.groups if tenant_id in (None, g["tenant_id"])]
        eligible = sum(group["orphans"] for group in groups)
        last_runs = [dict(row) for row in tx.execute(_LAST_RUNS, {"size": LAST_RUNS}).mappings()]
        totals = dict(tx.execute(_TOTALS).mappings().one())
    problems = health.problems(facts, max_lag_seconds)
    return Status(
        open=eligible + in_grace,
        eligible=eligible,
        waiting=in_grace,
        lag_seconds=facts.lag_seconds,
        as_of=as_of,
        groups=groups,
        last_success=facts.last_success,
        last_runs=last_runs,
        hooks_waiting=facts.hooks_waiting,
        hooks_dead=facts.hooks_dead,
        totals=totals,
        triggers=facts.triggers,
        healthy=not problems,
        problems=problems,
    )
