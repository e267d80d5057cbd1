"""Backlog and lag over time, cut into buckets of which each has its worst value: what came and went is seen."""

from __future__ import annotations

from typing import Any, NamedTuple

from mailglass_reconcile.ops import runs
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store.database import Transaction

BUCKETS = 96
WIDTHS = (5, 10, 15, 30, 60, 225, 300, 600, 900, 1_800, 3_600, 6_300)
"""Seconds of a bucket. Buckets begin at multiples of their width, so the same moment is always in the same one."""
SHORTEST_SECONDS = 300.0
"""The series of a new installation begins with its first sweep, but spans at least this time."""
READ_SWEEPS = 10_000
"""Full sweeps of the history that are read at most: a week of one a minute."""

_HISTORY = """
SELECT extract(epoch FROM now())::float8 AS now,
       (SELECT extract(epoch FROM finished_at)::float8 FROM {schema}.mailglass_reconcile_runs
         WHERE kind = 'full' ORDER BY id LIMIT 1) AS began
"""

# Each full sweep of all tenants lasts, as what is known, until the next one. What it left although it could be linked
# gets later until then, and so does what has arrived since.
_BUCKETS = """
-- A sweep's outcomes that no sweep can link, and the rest of what it left.
WITH sweeps AS MATERIALIZED (
  SELECT id, finished_at, linkable_since, open_groups, ends_at,
         floor(extract(epoch FROM finished_at) / :width)::bigint AS bucket,
         unmatched + unmatchable + ambiguous + tenant_mismatch + recipient_mismatch AS waiting,
         remaining - (unmatched + unmatchable + ambiguous + tenant_mismatch + recipient_mismatch) AS left_over
    FROM (SELECT *, least(lead(finished_at) OVER (ORDER BY id), now()::timestamp) AS ends_at
            FROM (SELECT * FROM {schema}.mailglass_reconcile_runs
                   WHERE kind = 'full' ORDER BY id DESC LIMIT :size) AS f
           WHERE tenant_id IS NULL AND open_groups IS NOT NULL AND status IN ('ok', 'partial')
             AND ranges_done >= coalesce(ranges, 0)) AS s
-- The sweep that left the most open.
), fullest AS (
  SELECT DISTINCT ON (bucket) * FROM sweeps WHERE bucket BETWEEN :first AND :last
   ORDER BY bucket, waiting DESC, id DESC
-- The sweep that left the most of what can be linked.
), leftmost AS (
  SELECT DISTINCT ON (bucket) * FROM sweeps WHERE bucket BETWEEN :first AND :last
   ORDER BY bucket, left_over DESC NULLS LAST, id DESC
-- How late something was, and for how long nothing had swept, at the end of each sweep's part of a bucket.
), lateness AS (
  SELECT b.bucket,
         max(least(extract(epoch FROM s.ends_at), (b.bucket + 1) * CAST(:width AS numeric))
             - extract(epoch FROM s.linkable_since)) AS lag_seconds,
         max(least(extract(epoch FROM s.ends_at), (b.bucket + 1) * CAST(:width AS numeric))
             - extract(epoch FROM s.finished_at)) AS silent_seconds
    FROM sweeps AS s
   CROSS JOIN LATERAL generate_series(greatest(s.bucket, :first),
                                      least(floor(extract(epoch FROM s.ends_at) / :width)::bigint, :last)) AS b (bucket)
   GROUP BY b.bucket
)
SELECT b.bucket, extract(epoch FROM f.finished_at)::float8 AS at, f.open_groups AS fullest, m.open_groups AS leftmost,
       least(greatest(l.lag_seconds, 0), 1e9)::float8 AS lag_seconds,
       greatest(l.silent_seconds, 0)::float8 AS silent_seconds
  FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS b (bucket)
  LEFT JOIN fullest AS f ON f.bucket = b.bucket
  LEFT JOIN leftmost AS m ON m.bucket = b.bucket AND m.left_over > 0
  LEFT JOIN lateness AS l ON l.bucket = b.bucket
 ORDER BY b.bucket
"""


class TimeBucket(NamedTuple):
    """A part of the time that is shown, with the worst of it; times are seconds since 1970.

    Attributes:
        began: When it begins.
        ended: When it ends; the last one, now.
        states: The open orphans by state, as the full sweep left them that left the most; None if none is known.
        left_linkable: The largest number of linkable orphans that a sweep left.
        lag_seconds: For how long one had been open although its delivery existed, at most; 0 if none is known.
        silent_seconds: For how long no full sweep had ended, at most, if that is too long; 0 otherwise.
    """

    began: float
    ended: float
    states: dict[str, int] | None
    left_linkable: int
    lag_seconds: float
    silent_seconds: float


def load_series(tx: Transaction, seconds: float) -> list[TimeBucket]:
    """Return the buckets of the last *seconds*, or since the first full sweep if that is younger; the oldest first."""
    now, history_began = tx.execute(_HISTORY).one()
    began = now - seconds
    if history_began is not None and history_began > began:
        began = min(history_began, now - SHORTEST_SECONDS)
    width = next((width for width in WIDTHS if (now - began) / width <= BUCKETS), WIDTHS[-1])
    bounds = {"width": width, "size": READ_SWEEPS, "first": int(began // width), "last": int(now // width)}
    return _make_buckets(tx.execute(_BUCKETS, bounds).all(), began, now, width)


def _make_buckets(rows: Any, began: float, now: float, width: float) -> list[TimeBucket]:
    """Make buckets of rows; the counts of a sweep stay valid for some minutes after it."""
    valid_seconds = max(LATE_SECONDS, 3 * width)
    buckets: list[TimeBucket] = []
    states, counted_at = None, 0.0
    for row in rows:
        start, end = max(began, row.bucket * width), min(now, (row.bucket + 1) * width)
        if row.fullest is not None:
            states, counted_at = runs.count_by_state(row.fullest), row.at
        if start - counted_at > valid_seconds:
            states = None
        unlinkable = None if states is None else {name: number for name, number in states.items() if name != "matched"}
        left_linkable = runs.count_by_state(row.leftmost or [])["matched"]
        silent = row.silent_seconds or 0.0
        silent = silent if silent > valid_seconds else 0.0
        buckets.append(TimeBucket(start, end, unlinkable, left_linkable, row.lag_seconds or 0.0, silent))
    return [*buckets[:-2], *_merge_short(*buckets[-2:])] if len(buckets) > 1 else buckets


def _merge_short(before: TimeBucket, last: TimeBucket) -> list[TimeBucket]:
    """Return the last two buckets, merged into one if the last is too short to be visible."""
    if last.ended - last.began > (before.ended - before.began) / 2:
        return [before, last]
    known_states = [bucket.states for bucket in (last, before) if bucket.states is not None]
    states = max(known_states, key=lambda counts: sum(counts.values()), default=None)
    return [
        TimeBucket(
            before.began,
            last.ended,
            states,
            max(before.left_linkable, last.left_linkable),
            max(before.lag_seconds, last.lag_seconds),
            max(before.silent_seconds, last.silent_seconds),
        )
    ]
