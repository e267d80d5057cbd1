"""Open orphans as a sweep or a writer reads them: in order of arrival, a slice at a time, or by message id.

A sweep walks them in slices, so that memory is bounded by a slice whatever is open. Its cost follows the orphans and
the deliveries: what matches nothing is found out by the database and never leaves it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.eligible import Marks
from mailglass_reconcile.store.model import Open, Slice, array_literal

SLICE_ORPHANS = 10_000
"""Orphans whose keys and matches are in memory at once: about 10 MB."""

_WITHOUT_KEYS = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider, NULL, o.recipient, o.rule, o.recipient_lost
  FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_open_orphans
          WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                          CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
            AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
            AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
            AND (refused > 0) = :refused
            AND (rule IS NULL OR rule = ANY (CAST(:stale AS text[]))
                 OR rule = :any AND provider = ANY (CAST(:known AS text[])))
          ORDER BY arrived_at, event_id LIMIT :size) AS o
 LIMIT :size
"""

_ANY_OF = """
SELECT event_id::text, tenant_id, arrived_at::text, provider, NULL, recipient, rule, recipient_lost
  FROM {schema}.mailglass_open_orphans AS o
 WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
   AND arrived_at <= CAST(:until_time AS timestamp)
 ORDER BY o.arrived_at, o.event_id LIMIT :size
"""

# Row by row in order of arrival, which ends as soon as enough are found. Ids of which only the hashes are equal do no
# harm: whoever looks the deliveries up compares the ids.
_NAMING = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY k.position), o.recipient, o.rule, o.recipient_lost
  FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_open_orphans
          WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                          CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
            AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
            AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
            AND (refused > 0) = :refused AND ids > 0
            AND rule <> ALL (CAST(:stale AS text[]))
            AND NOT (rule = :any AND provider = ANY (CAST(:known AS text[])))
            AND EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                          JOIN {schema}.mailglass_deliveries AS d
                            ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                         WHERE k.event_id = mailglass_open_orphans.event_id)
          ORDER BY arrived_at, event_id LIMIT :size) AS o
 LIMIT :size
"""

# By hashing both tables: the ids themselves, of which the planner knows how many are different.
_NAMING_BY_SCANS = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY k.position), o.recipient, o.rule, o.recipient_lost
  FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_open_orphans
          WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                          CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
            AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
            AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
            AND (refused > 0) = :refused AND ids > 0
            AND rule <> ALL (CAST(:stale AS text[]))
            AND NOT (rule = :any AND provider = ANY (CAST(:known AS text[])))
            AND EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                          JOIN {schema}.mailglass_deliveries AS d ON d.provider_message_id = k.candidate_id
                         WHERE k.event_id = mailglass_open_orphans.event_id)
          ORDER BY arrived_at, event_id LIMIT :size) AS o
 LIMIT :size
"""

# OFFSET 0, so that each row is probed for, whatever the planner believes of the tables; and no more of one id than a
# batch, because a hundred thousand may be open for it.
_WANTED = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS i
              WHERE i.event_id = o.event_id ORDER BY i.position), o.recipient, o.rule, o.recipient_lost
  FROM (SELECT i.event_id
          FROM unnest(CAST(:ids AS text[])) AS c (id)
         CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                              WHERE candidate_id = c.id LIMIT :size) AS i
         UNION
        SELECT event_id FROM unnest(CAST(:event_ids AS uuid[])) AS e (event_id)) AS k
 CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id OFFSET 0) AS o
 WHERE o.tenant_id = :tenant_id AND o.refused = 0
   AND o.arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
 LIMIT :size
"""


def without_keys(tx: Transaction, piece: Slice, marks: Marks, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return the first *size* orphans of *piece* that have no keys, or keys that are out of date."""
    rows = tx.execute(_WITHOUT_KEYS, {**piece.parameters(), **marks.parameters(), "size": size})
    return [_open(*row) for row in rows.all()]


def any_of(tx: Transaction, piece: Slice, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return the first *size* orphans of *piece*, with their mark but without their ids."""
    return [_open(*row) for row in tx.execute(_ANY_OF, {**piece.parameters(), "size": size}).all()]


def naming(tx: Transaction, piece: Slice, marks: Marks, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return the first *size* orphans of *piece* with keys of which one names a delivery, of whatever tenant."""
    rows = tx.execute(_NAMING, {**piece.parameters(), **marks.parameters(), "size": size})
    return sorted((_open(*row) for row in rows.all()), key=lambda orphan: orphan.place)


def naming_by_scans(tx: Transaction, piece: Slice, marks: Marks, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return what `naming` returns, in a block of `by_scans`."""
    rows = tx.execute(_NAMING_BY_SCANS, {**piece.parameters(), **marks.parameters(), "size": size})
    return sorted((_open(*row) for row in rows.all()), key=lambda orphan: orphan.place)


def wanted(
    tx: Transaction, tenant_id: str, ids: Collection[str], event_ids: Collection[str], settings: Settings
) -> list[Open]:
    """Return a tenant's open orphans with keys, in their grace or not, that a writer asks for; at most a batch.

    Those that are expired, or that the database has refused before, are left out.

    Args:
        tx: A transaction of this package's scope.
        tenant_id: The tenant.
        ids: Message ids: what has one of them among its keys.
        event_ids: The orphans themselves.
        settings: The maximum age, and the size of a batch.
    """
    parameters = {
        "ids": array_literal(ids),
        "event_ids": array_literal(event_ids),
        "tenant_id": tenant_id,
        "max_age_minutes": settings.max_age_minutes,
        "size": settings.batch_size,
    }
    return [_open(*row) for row in tx.execute(_WANTED, parameters).all()]


def _open(
    event_id: str,
    tenant_id: str,
    arrived_at: str,
    provider: str | None,
    ids: Sequence[str] | None,
    recipient: str | None,
    rule: str | None,
    lost: bool,
) -> Open:
    return Open(event_id, tenant_id, arrived_at, Keys(provider, tuple(ids or ()), recipient, rule, lost))
