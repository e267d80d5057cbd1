"""Backlog by state and lag over time, as the full sweeps of the history left them."""

from __future__ import annotations

from typing import Any, NamedTuple

from mailglass_reconcile.store.database import Transaction

READ_AT_MOST = 10_000
"""Full sweeps of the history that are read: a week of one a minute."""

# The last full sweep of all tenants in each bucket of time. What a sweep could have linked and did not is `matched`.
_OF_ALL = """
SELECT DISTINCT ON (r.bucket) extract(epoch FROM r.finished_at)::float8 AS at,
       jsonb_build_object(
         'unmatched', r.unmatched, 'unmatchable', r.unmatchable, 'ambiguous', r.ambiguous,
         'tenant_mismatch', r.tenant_mismatch, 'recipient_mismatch', r.recipient_mismatch,
         'matched', greatest(0, r.remaining - r.unmatched - r.unmatchable - r.ambiguous - r.tenant_mismatch
                                - r.recipient_mismatch)) AS states,
       greatest(0, coalesce(extract(epoch FROM r.finished_at - r.linkable_since), 0))::float8 AS lag_seconds
  FROM (SELECT *, ceil(extract(epoch FROM now()::timestamp - finished_at) / :bucket_seconds) AS bucket
          FROM (SELECT * FROM {schema}.mailglass_reconcile_runs WHERE kind = 'full' ORDER BY id DESC LIMIT :size) AS f
         WHERE tenant_id IS NULL AND remaining IS NOT NULL AND status IN ('ok', 'partial')
           AND finished_at > now()::timestamp - make_interval(secs => :seconds)) AS r
 ORDER BY r.bucket DESC, r.id DESC
"""

# Of one tenant, only what the census of a sweep has named.
_OF_TENANT = """
SELECT r.at, coalesce((SELECT jsonb_object_agg(g.state, g.orphans)
                         FROM (SELECT one ->> 'state' AS state, sum((one ->> 'orphans')::bigint) AS orphans
                                 FROM jsonb_array_elements(r.open_groups) AS one
                                WHERE one ->> 'tenant_id' = :tenant_id GROUP BY 1) AS g), '{}') AS states,
       CAST(NULL AS float8) AS lag_seconds
  FROM (SELECT DISTINCT ON (b.bucket) b.bucket, b.open_groups, extract(epoch FROM b.finished_at)::float8 AS at
          FROM (SELECT *, ceil(extract(epoch FROM now()::timestamp - finished_at) / :bucket_seconds) AS bucket
                  FROM (SELECT * FROM {schema}.mailglass_reconcile_runs
                         WHERE kind = 'full' ORDER BY id DESC LIMIT :size) AS f
                 WHERE tenant_id IS NULL AND open_groups IS NOT NULL
                   AND finished_at > now()::timestamp - make_interval(secs => :seconds)) AS b
         ORDER BY b.bucket DESC, b.id DESC) AS r
 ORDER BY r.bucket DESC
"""


class Sample(NamedTuple):
    """What a full sweep left.

    `at` is when it ended, in seconds since 1970; `states` the open orphans by state; `lag_seconds` for how long the
    oldest one had been open although its delivery was there, None if that is not known (of one tenant).
    """

    at: float
    states: dict[str, int]
    lag_seconds: float | None


def samples(tx: Transaction, *, seconds: int, buckets: int, tenant_id: str | None = None) -> list[Sample]:
    """Return what the full sweeps of the last *seconds* left, one of each of *buckets* spans, the oldest first."""
    parameters: dict[str, Any] = {"seconds": seconds, "bucket_seconds": seconds / buckets, "size": READ_AT_MOST}
    if tenant_id is None:
        rows = tx.execute(_OF_ALL, parameters)
    else:
        rows = tx.execute(_OF_TENANT, {**parameters, "tenant_id": tenant_id})
    return [Sample(*row) for row in rows.all()]
