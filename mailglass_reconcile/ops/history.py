"""What the history of runs says of sweeps, of beat and of the prune: one query, however much is open."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from mailglass_reconcile.store.database import Transaction

# The last full sweeps of all tenants. One that was cut into ranges is over when all of them have added their counts.
# What it left although it could be linked is late until sweeps of some tenants or events have linked as many. One that
# broke off, by its deadline or Ctrl-C, has not succeeded.
_HISTORY = """
SELECT to_json(now()::timestamp) #>> '{}' || 'Z' AS now,
       extract(epoch FROM now()::timestamp - success.finished_at)::float8 AS success_age,
       success.origin AS success_origin,
       CASE WHEN greatest(1, ok.skipped + ok.failed)
                 > (SELECT coalesce(sum(linked), 0) FROM {schema}.mailglass_reconcile_runs
                     WHERE id > ok.id AND (kind = 'targeted' OR kind = 'full' AND tenant_id IS NOT NULL))
            THEN extract(epoch FROM now()::timestamp - ok.linkable_since)::float8 END AS lag_seconds,
       to_json(counted.finished_at) #>> '{}' || 'Z' AS counted_at, counted.open_groups AS groups,
       last.status, last.error, extract(epoch FROM now()::timestamp - last.finished_at)::float8 AS last_age,
       last.linked, last.failed, last.published, last.publish_failed,
       extract(epoch FROM now()::timestamp - uncovered.since)::float8 AS uncovered_seconds,
       extract(epoch FROM now()::timestamp - beat.finished_at)::float8 AS beat_age,
       pruned.finished_at IS NOT NULL AS pruned,
       extract(epoch FROM now()::timestamp
                        - coalesce(pruned.finished_at, first.started_at))::float8 AS unpruned_seconds,
       (SELECT coalesce(jsonb_object_agg(k.kind, s.at), '{}')
          FROM unnest(ARRAY['full', 'recent', 'range', 'targeted', 'prune']) AS k (kind)
         CROSS JOIN LATERAL (
                 SELECT to_json(finished_at) #>> '{}' || 'Z' AS at FROM {schema}.mailglass_reconcile_runs
                  WHERE kind = k.kind AND status IN ('ok', 'partial') AND covered AND ranges_done >= coalesce(ranges, 0)
                    AND (kind <> 'full' OR tenant_id IS NULL)
                  ORDER BY id DESC LIMIT 1) AS s) AS last_success
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial')
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS ok ON true
  LEFT JOIN LATERAL (
         SELECT finished_at, origin FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial') AND covered
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS success ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND open_groups IS NOT NULL
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS counted ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status <> 'duplicate' ORDER BY id DESC LIMIT 1) AS last ON true
  LEFT JOIN LATERAL (
         SELECT min(started_at) AS since FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND NOT covered AND remaining IS NOT NULL
            AND id > coalesce((SELECT id FROM {schema}.mailglass_reconcile_runs
                                WHERE kind = 'full' AND tenant_id IS NULL AND covered AND status <> 'duplicate'
                                ORDER BY id DESC LIMIT 1), 0)) AS uncovered ON true
  -- Each kind by itself, because an index has them in order. Dispatches count: then beat is alive.
  LEFT JOIN LATERAL (
         SELECT max(b.finished_at) AS finished_at
           FROM unnest(ARRAY['full', 'recent', 'range', 'dispatch', 'prune']) AS k (kind)
          CROSS JOIN LATERAL (SELECT finished_at FROM {schema}.mailglass_reconcile_runs
                               WHERE kind = k.kind AND origin = 'beat' ORDER BY id DESC LIMIT 1) AS b) AS beat ON true
  LEFT JOIN LATERAL (
         SELECT finished_at FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'prune' AND status IN ('ok', 'partial') ORDER BY id DESC LIMIT 1) AS pruned ON true
  LEFT JOIN LATERAL (
         SELECT started_at FROM {schema}.mailglass_reconcile_runs ORDER BY id LIMIT 1) AS first ON true
"""


class Last(NamedTuple):
    """The last full sweep of all tenants, unless it was a duplicate."""

    status: str
    error: str | None
    age: float
    linked: int
    failed: int
    published: int
    publish_failed: int


class History(NamedTuple):
    """What the history says.

    Attributes:
        now: The database's time, in ISO 8601, UTC.
        success_age: How long ago a full sweep last succeeded, in seconds; None if none has.
        success_origin: Who asked for that one.
        lag_seconds: For how long the oldest orphan has been open although its delivery exists; 0 if none is.
        counted_at: When a full sweep last counted what is open.
        groups: What it counted, by state, tenant and provider, the largest first.
        last: The last full sweep.
        uncovered_seconds: For how long no full sweep has looked at everything; 0 if the last one has.
        beat_age: How long ago a run ended that beat had asked for; None without one.
        pruned: Whether a prune has ever succeeded.
        unpruned_seconds: How long ago that was, or else for how long there is a history.
        last_success: When a run of each kind last succeeded.
    """

    now: str
    success_age: float | None
    success_origin: str | None
    lag_seconds: float
    counted_at: str | None
    groups: list[dict[str, Any]] | None
    last: Last | None
    uncovered_seconds: float
    beat_age: float | None
    pruned: bool
    unpruned_seconds: float
    last_success: dict[str, str]


def read(tx: Transaction) -> History:
    row = tx.execute(_HISTORY).one()
    last = None
    if row.status is not None:
        last = Last(row.status, row.error, row.last_age, row.linked, row.failed, row.published, row.publish_failed)
    return History(
        row.now,
        row.success_age,
        row.success_origin,
        max(0.0, row.lag_seconds or 0.0),
        row.counted_at,
        None if row.groups is None else added_up(row.groups),
        last,
        row.uncovered_seconds or 0.0,
        row.beat_age,
        row.pruned,
        row.unpruned_seconds or 0.0,
        row.last_success,
    )


def by_state(groups: list[dict[str, Any]]) -> Counter[str]:
    """Return how many are open by state."""
    found: Counter[str] = Counter()
    for group in added_up(groups):
        found[group["state"]] += group["orphans"]
    return found


def added_up(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups of open orphans, the largest first; ranges of a fan-out have counted the same ones."""
    counts: Counter[tuple[str, str | None, str | None]] = Counter()
    for group in groups:
        # What a later version stored in another form is left out.
        if isinstance(group, dict) and isinstance(group.get("state"), str) and isinstance(group.get("orphans"), int):
            counts[group["state"], group.get("tenant_id"), group.get("provider")] += group["orphans"]
    return [
        {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
        for (state, tenant_id, provider), orphans in counts.most_common()
    ]
