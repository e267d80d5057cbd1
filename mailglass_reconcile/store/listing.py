"""Which orphans a list shows, in order: open ones by arrival, expired ones by tenant; a filter costs one pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import NIL, Transaction, array_literal
from mailglass_reconcile.store.open_orphans import Open, Place

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

# Keys that this process's rules may compute otherwise are left to Python, which judges them as a sweep does.
# Scalar subqueries, because the planner turns an EXISTS into one pass over a whole table.
# What passes a page's filter, in either order; keys that are not current are left to the judge.
_PASSES = """
 WHERE (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
   AND (CAST(:type AS text) IS NULL
        OR (SELECT e.type FROM {schema}.mailglass_events AS e WHERE e.id = c.event_id) = :type)
   AND (rule IS NULL OR rule <> ALL (CAST(:current AS text[]))
        OR rule = :any_rule AND provider = ANY (CAST(:known AS text[]))
        OR (CAST(:provider AS text) IS NULL OR provider = :provider)
           AND (NOT :without_ids OR ids = 0)
           AND (CAST(:ids AS text[]) IS NULL
                OR event_id IN (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                                 WHERE candidate_id = ANY (CAST(:ids AS text[]))))
           AND (NOT :naming
                OR (SELECT true
                      FROM {schema}.mailglass_open_orphan_ids AS k
                      JOIN {schema}.mailglass_deliveries AS d
                        ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                     WHERE k.event_id = c.event_id LIMIT 1)))
"""

_OLDEST_FIRST = """
SELECT c.event_id::text, c.arrived_at::text, to_json(c.arrived_at) #>> '{}' AS at,
       c.arrived_at > CAST(:eligible_until AS timestamp) AS waiting
  FROM (SELECT * FROM {schema}.mailglass_open_orphans
         WHERE (arrived_at, event_id) > (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
           AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
         ORDER BY arrived_at, event_id LIMIT CAST(:span AS bigint)) AS c
{passes}
 ORDER BY c.arrived_at, c.event_id LIMIT :size
""".replace("{passes}", _PASSES)

_NEWEST_FIRST = """
SELECT c.event_id::text, c.arrived_at::text, to_json(c.arrived_at) #>> '{}' AS at,
       c.arrived_at > CAST(:eligible_until AS timestamp) AS waiting
  FROM (SELECT * FROM {schema}.mailglass_open_orphans
         WHERE (arrived_at, event_id) < (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
           AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
         ORDER BY arrived_at DESC, event_id DESC LIMIT CAST(:span AS bigint)) AS c
{passes}
 ORDER BY c.arrived_at DESC, c.event_id DESC LIMIT :size
""".replace("{passes}", _PASSES)

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

_LEDGER_PLACE = """
SELECT tenant_id, inserted_at::text AS inserted_at, id::text AS event_id
  FROM {schema}.mailglass_events WHERE id = CAST(:event_id AS uuid)
"""

# Only the ledger still has these. Tenant by tenant, because its index of orphans begins with the tenant; the next one
# is probed for. A row that was reconciled is passed over by the caller, so that a page ends after so many rows.
_EXPIRED = """
WITH RECURSIVE tenants AS (
  (SELECT tenant_id FROM {schema}.mailglass_events
    WHERE needs_reconciliation = true AND tenant_id >= :from_tenant
      AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id) ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.needs_reconciliation = true AND e.tenant_id > t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL AND CAST(:tenant_id AS text) IS NULL
)
SELECT e.id::text AS event_id, e.tenant_id, e.inserted_at::text AS arrived_at, to_json(e.inserted_at) #>> '{}' AS at,
       EXISTS (SELECT FROM {schema}.mailglass_events AS r
                WHERE {links}) AS settled
  FROM tenants AS t
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_events
          WHERE tenant_id = t.tenant_id AND needs_reconciliation = true AND delivery_id IS NULL
            AND inserted_at >= CASE WHEN t.tenant_id = :from_tenant THEN CAST(:from_time AS timestamp)
                                    ELSE '-infinity' END
            AND (t.tenant_id <> :from_tenant
                 OR (inserted_at, id) > (CAST(:from_time AS timestamp), CAST(:from_event AS uuid)))
            AND inserted_at <= least(CAST(:eligible_after AS timestamp),
                                     now()::timestamp - make_interval(secs => CAST(:older AS float8)))
            AND inserted_at > now()::timestamp - make_interval(secs => coalesce(CAST(:newer AS float8), 3e9))
          ORDER BY inserted_at, id LIMIT :size) AS e
 LIMIT :size
""".replace("{links}", schema.links("e.id", "e.tenant_id"))

NO_KEYS = Keys(None, (), None)


class Wanted(NamedTuple):
    """Which open orphans to list; None is all of them.

    Attributes:
        tenant_id: The tenant.
        provider: The provider, in its canonical spelling.
        type: The event's type.
        ids: Candidate ids, of which an orphan must have one.
        naming: Whether one of its ids must name a delivery.
        without_ids: Whether it must have no usable id.
    """

    tenant_id: str | None
    provider: str | None
    type: str | None
    ids: Collection[str] | None
    naming: bool
    without_ids: bool


class Bounds(NamedTuple):
    """After which arrival, and until which, orphans are listed; and until which they are eligible."""

    from_time: str
    until_time: str
    eligible_until: str


class Entry(NamedTuple):
    """An orphan's place in a list: its event, its arrival, the same in ISO 8601, and whether it is in its grace."""

    event_id: str
    arrived_at: str
    at: str
    waiting: bool

    @property
    def place(self) -> Place:
        """Where it is in the order of arrival."""
        return Place(self.arrived_at, self.event_id)


class LedgerPlace(NamedTuple):
    """A place in the order in which expired orphans are listed."""

    tenant_id: str
    inserted_at: str
    event_id: str


FIRST_OF_LEDGER = LedgerPlace("", "-infinity", NIL)


class ExpiredEntry(NamedTuple):
    """An old orphan of the ledger, its arrival in ISO 8601, and whether something has reconciled it."""

    orphan: Open
    at: str
    settled: bool

    @property
    def place(self) -> LedgerPlace:
        """Where it is in the order in which expired orphans are listed."""
        return LedgerPlace(self.orphan.tenant_id, self.orphan.arrived_at, self.orphan.event_id)


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
        tx: A reading transaction.
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
    """Return where an orphan is in the order of arrival, or None if the ledger has no such event."""
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
) -> list[Entry]:
    """Return the next *size* open orphans after a place, in order; if *span* is given, of the next *span* rows only."""
    parameters = {
        **_from(within, after),
        "current": array_literal(rule.mark for rule in providers.rules().values()),
        "any_rule": providers.rule_of(providers.ANY_PROVIDER).mark,
        "known": array_literal(providers.known()),
        "eligible_until": within.eligible_until,
        "span": span,
        "size": size,
        "tenant_id": wanted.tenant_id,
        "provider": wanted.provider,
        "type": wanted.type,
        "ids": None if wanted.ids is None else array_literal(wanted.ids),
        "naming": wanted.naming,
        "without_ids": wanted.without_ids,
    }
    rows = tx.execute(_NEWEST_FIRST if newest_first else _OLDEST_FIRST, parameters)
    return [Entry(*row) for row in rows.all()]


def ahead(tx: Transaction, within: Bounds, after: Place, span: int, *, newest_first: bool) -> Place | None:
    """Return the place *span* rows of the table after another one, or None if there are fewer."""
    statement = _AHEAD_OF_NEWEST if newest_first else _AHEAD_OF_OLDEST
    row = tx.execute(statement, {**_from(within, after), "span": span}).one_or_none()
    return Place(*row) if row else None


def _from(within: Bounds, after: Place) -> dict[str, Any]:
    return {
        "from_time": within.from_time,
        "until_time": within.until_time,
        "place_time": after.arrived_at,
        "place_event": after.event_id,
    }


def ledger_place_of(tx: Transaction, event_id: str) -> LedgerPlace | None:
    """Return where an event is in the order of expired orphans, or None if the ledger has no such event."""
    row = tx.execute(_LEDGER_PLACE, {"event_id": event_id}).one_or_none()
    return LedgerPlace(*row) if row else None


def next_expired(
    tx: Transaction,
    after: LedgerPlace,
    size: int,
    *,
    tenant_id: str | None,
    eligible_after: str,
    older: float | None,
    newer: float | None,
) -> list[ExpiredEntry]:
    """Return the next *size* orphans of the ledger that arrived until *eligible_after*, reconciled ones too."""
    parameters = {
        "from_tenant": after.tenant_id,
        "from_time": after.inserted_at,
        "from_event": after.event_id,
        "size": size,
        "tenant_id": tenant_id,
        "eligible_after": eligible_after,
        "older": older,
        "newer": newer,
    }
    return [
        ExpiredEntry(Open(event_id, tenant, arrived_at, 0, NO_KEYS), at, settled)
        for event_id, tenant, arrived_at, at, settled in tx.execute(_EXPIRED, parameters).all()
    ]
