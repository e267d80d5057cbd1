"""Open orphans in order of arrival, a page at a time; a filter costs at most one pass over the open set."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import sqlalchemy as sa

from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Place, array_literal

_BOUNDS = """
SELECT greatest(CASE WHEN :waiting THEN CAST(:eligible_until AS timestamp) ELSE CAST(:eligible_after AS timestamp) END,
                now()::timestamp - make_interval(secs => CAST(:newer AS float8)))::text,
       least(CASE WHEN :waited THEN CAST(:eligible_until AS timestamp) ELSE 'infinity' END,
             now()::timestamp - make_interval(secs => CAST(:older AS float8)))::text
"""

# One that was linked since is where it was, if its session wrote UTC.
_PLACE = """
SELECT coalesce(o.arrived_at, e.inserted_at)::text, e.id::text
  FROM {schema}.mailglass_events AS e
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = e.id
 WHERE e.id = CAST(:event_id AS uuid)
"""

# Keys that are missing or out of date are left to Python, which computes them as a sweep does.
_OLDEST_FIRST = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY k.position) AS ids,
       o.recipient, o.rule, o.recipient_lost, left(e.type, 512) AS type, to_json(o.arrived_at) #>> '{}' AS at,
       o.arrived_at > CAST(:eligible_until AS timestamp) AS waiting
  FROM (SELECT c.*
          FROM (SELECT * FROM {schema}.mailglass_open_orphans
                 WHERE (arrived_at, event_id) > (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
                   AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
                 ORDER BY arrived_at, event_id LIMIT CAST(:span AS bigint)) AS c
         WHERE (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
           AND (CAST(:type AS text) IS NULL
                OR EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.id = c.event_id AND e.type = :type))
           AND (rule IS NULL OR rule <> ALL (CAST(:current AS text[]))
                OR rule = :any AND provider = ANY (CAST(:known AS text[]))
                OR (CAST(:provider AS text) IS NULL OR provider = :provider)
                   AND (NOT :without_ids OR ids = 0)
                   AND (CAST(:ids AS text[]) IS NULL
                        OR event_id IN (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                                         WHERE candidate_id = ANY (CAST(:ids AS text[]))))
                   AND (NOT :naming
                        OR EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                                     JOIN {schema}.mailglass_deliveries AS d
                                       ON hashtextextended(d.provider_message_id, 0)
                                          = hashtextextended(k.candidate_id, 0)
                                    WHERE k.event_id = c.event_id)))
         ORDER BY c.arrived_at, c.event_id LIMIT :size) AS o
  LEFT JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
 ORDER BY o.arrived_at, o.event_id
"""

_NEWEST_FIRST = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY k.position) AS ids,
       o.recipient, o.rule, o.recipient_lost, left(e.type, 512) AS type, to_json(o.arrived_at) #>> '{}' AS at,
       o.arrived_at > CAST(:eligible_until AS timestamp) AS waiting
  FROM (SELECT c.*
          FROM (SELECT * FROM {schema}.mailglass_open_orphans
                 WHERE (arrived_at, event_id) < (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
                   AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
                 ORDER BY arrived_at DESC, event_id DESC LIMIT CAST(:span AS bigint)) AS c
         WHERE (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
           AND (CAST(:type AS text) IS NULL
                OR EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.id = c.event_id AND e.type = :type))
           AND (rule IS NULL OR rule <> ALL (CAST(:current AS text[]))
                OR rule = :any AND provider = ANY (CAST(:known AS text[]))
                OR (CAST(:provider AS text) IS NULL OR provider = :provider)
                   AND (NOT :without_ids OR ids = 0)
                   AND (CAST(:ids AS text[]) IS NULL
                        OR event_id IN (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                                         WHERE candidate_id = ANY (CAST(:ids AS text[]))))
                   AND (NOT :naming
                        OR EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                                     JOIN {schema}.mailglass_deliveries AS d
                                       ON hashtextextended(d.provider_message_id, 0)
                                          = hashtextextended(k.candidate_id, 0)
                                    WHERE k.event_id = c.event_id)))
         ORDER BY c.arrived_at DESC, c.event_id DESC LIMIT :size) AS o
  LEFT JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
 ORDER BY o.arrived_at DESC, o.event_id DESC
"""

# The order is by the columns, not by their texts.
_AHEAD_OF_OLDEST = """
SELECT o.arrived_at::text, o.event_id::text FROM {schema}.mailglass_open_orphans AS o
 WHERE (arrived_at, event_id) > (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
   AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
 ORDER BY o.arrived_at, o.event_id OFFSET :span - 1 LIMIT 1
"""

_AHEAD_OF_NEWEST = """
SELECT o.arrived_at::text, o.event_id::text FROM {schema}.mailglass_open_orphans AS o
 WHERE (arrived_at, event_id) < (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
   AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
 ORDER BY o.arrived_at DESC, o.event_id DESC OFFSET :span - 1 LIMIT 1
"""

FIRST = Place("-infinity", "00000000-0000-0000-0000-000000000000")
LAST = Place("infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff")


class Wanted(NamedTuple):
    """Which open orphans to read; None is all of them.

    Attributes:
        tenant_id: The tenant.
        provider: The provider, in its canonical spelling.
        type: The event's type.
        ids: Candidate ids, of which one must be among the orphan's.
        naming: Whether one of its ids must name a delivery.
        without_ids: Whether it must have no usable id.
        current: The marks of this process's rules; keys with another one are read too, whatever they are.
        any_provider: The mark of the rule of every other provider.
        known: The providers that have a rule of their own.
    """

    tenant_id: str | None
    provider: str | None
    type: str | None
    ids: Collection[str] | None
    naming: bool
    without_ids: bool
    current: Collection[str]
    any_provider: str
    known: Collection[str]


class Bounds(NamedTuple):
    """After which arrival, and until which, orphans are listed; and until which they are eligible."""

    from_time: str
    until_time: str
    eligible_until: str


def bounds(
    tx: Transaction,
    eligible: tuple[str, str],
    *,
    waiting: bool | None,
    older: float | None,
    newer: float | None,
) -> Bounds:
    """Return which arrivals to list.

    Args:
        tx: A transaction of this package's scope.
        eligible: After which arrival, and until which, orphans are eligible.
        waiting: Only those in their grace, only those past it, or, with None, both.
        older: At least this many seconds since they arrived.
        newer: At most this many.
    """
    parameters = {
        "eligible_after": eligible[0],
        "eligible_until": eligible[1],
        "waiting": waiting is True,
        "waited": waiting is False,
        "older": older,
        "newer": newer,
    }
    from_time, until_time = tx.execute(_BOUNDS, parameters).one()
    return Bounds(from_time, until_time, eligible[1])


def place_of(tx: Transaction, event_id: str) -> Place | None:
    """Return where an orphan stands in the order of arrival, or None if the ledger has no such event."""
    row = tx.execute(_PLACE, {"event_id": event_id}).one_or_none()
    return Place(*row) if row else None


def next_open(
    tx: Transaction,
    wanted: Wanted,
    within: Bounds,
    after: Place,
    size: int,
    *,
    newest_first: bool,
    span: int | None = None,
) -> list[sa.Row[Any]]:
    """Return the next *size* open orphans after a place, in order; if *span* is given, of the next *span* rows only."""
    parameters = {
        **_from(within, after),
        "eligible_until": within.eligible_until,
        "span": span,
        "size": size,
        "tenant_id": wanted.tenant_id,
        "provider": wanted.provider,
        "type": wanted.type,
        "ids": None if wanted.ids is None else array_literal(wanted.ids),
        "naming": wanted.naming,
        "without_ids": wanted.without_ids,
        "current": array_literal(wanted.current),
        "any": wanted.any_provider,
        "known": array_literal(wanted.known),
    }
    return list(tx.execute(_NEWEST_FIRST if newest_first else _OLDEST_FIRST, parameters).all())


def ahead(tx: Transaction, within: Bounds, after: Place, span: int, *, newest_first: bool) -> Place | None:
    """Return the place *span* rows of the table after another one, or None if there are fewer."""
    statement = _AHEAD_OF_NEWEST if newest_first else _AHEAD_OF_OLDEST
    row = tx.execute(statement, {**_from(within, after), "span": span}).one_or_none()
    return Place(*row) if row else None


def _from(within: Bounds, after: Place) -> dict[str, str]:
    return {
        "from_time": within.from_time,
        "until_time": within.until_time,
        "place_time": after.arrived_at,
        "place_event": after.event_id,
    }
