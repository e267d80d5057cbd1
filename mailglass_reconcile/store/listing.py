"""Queries for lists of orphans: open ones by arrival, expired ones by tenant; a filter costs one pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from mailglass_reconcile.rules import states
from mailglass_reconcile.store import ledger
from mailglass_reconcile.store.database import NIL, Transaction, array_literal
from mailglass_reconcile.store.open_orphans import NO_KEYS, Cursor, OrphanRow

OVERSIZED_SHOWN = 50
"""Documents of the newest open orphans that are measured at most: each may have megabytes."""

_BOUNDS = """
SELECT greatest(CASE WHEN :waiting THEN CAST(:eligible_until AS timestamp) ELSE CAST(:eligible_after AS timestamp) END,
                now()::timestamp - make_interval(secs => CAST(:newer AS float8)))::text,
       least(CASE WHEN :waited THEN CAST(:eligible_until AS timestamp) ELSE 'infinity' END,
             now()::timestamp - make_interval(secs => CAST(:older AS float8)))::text
"""

# An orphan linked since keeps its cursor, if its session wrote UTC; one without an event is still in our table.
_CURSOR = """
SELECT coalesce(o.arrived_at, e.inserted_at)::text, k.id::text
  FROM (SELECT CAST(:event_id AS uuid) AS id) AS k
  LEFT JOIN {schema}.mailglass_events AS e ON e.id = k.id
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.id
 WHERE coalesce(o.arrived_at, e.inserted_at) IS NOT NULL
"""

# The inner query chooses the page from stored columns; types and ids are looked up only for that page. Message ids
# become an array, so that their orphans can be found by primary key.
_PAGE = """
SELECT p.event_id::text, p.arrived_at::text, p.tenant_id, p.provider,
       (SELECT e.type FROM {schema}.mailglass_events AS e WHERE e.id = p.event_id) AS type,
       CASE WHEN p.arrived_at > CAST(:eligible_until AS timestamp) THEN 'waiting'
            ELSE coalesce(p.state, 'unseen') END AS state,
       ARRAY(SELECT i.candidate_id FROM {schema}.mailglass_open_orphan_ids AS i
              WHERE i.event_id = p.event_id ORDER BY i.position) AS ids
  FROM (SELECT * FROM {schema}.mailglass_open_orphans
         WHERE (arrived_at, event_id) < (CAST(:place_time AS timestamp), CAST(:place_event AS uuid))
           AND arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
           AND (CAST(:provider AS text) IS NULL OR provider = :provider)
           AND (CAST(:state AS text) IS NULL OR state = :state OR CAST(:state AS text) = 'unseen' AND state IS NULL)
           AND (CAST(:recipient AS text) IS NULL OR recipient = CAST(:recipient AS text))
           AND (CAST(:ids AS text[]) IS NULL
                OR event_id = ANY (ARRAY(SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                                          WHERE candidate_id = ANY (CAST(:ids AS text[])))))
         ORDER BY arrived_at DESC, event_id DESC LIMIT :size) AS p
 ORDER BY p.arrived_at DESC, p.event_id DESC
"""

# Those whose event was deleted are left out.
_OLDEST = """
SELECT o.event_id::text FROM {schema}.mailglass_open_orphans AS o
 WHERE o.arrived_at > CAST(:after AS timestamp) AND o.arrived_at <= CAST(:until AS timestamp)
   AND (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id)
   AND EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = o.event_id OFFSET 0)
 ORDER BY o.arrived_at, o.event_id LIMIT :size
"""

# The cause of a tenant mismatch is the tenant that has the delivery: one delivery of each id is enough.
_CAUSES = """
WITH passed AS MATERIALIZED (
  SELECT event_id, tenant_id, provider,
         CASE WHEN arrived_at > CAST(:eligible_until AS timestamp) THEN 'waiting'
              ELSE coalesce(state, 'unseen') END AS state
    FROM {schema}.mailglass_open_orphans
   WHERE arrived_at > CAST(:from_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
     AND (CAST(:provider AS text) IS NULL OR provider = :provider)
     AND (CAST(:state AS text) IS NULL OR state = :state OR CAST(:state AS text) = 'unseen' AND state IS NULL)
     AND (CAST(:recipient AS text) IS NULL OR recipient = CAST(:recipient AS text))
     AND (CAST(:ids AS text[]) IS NULL
          OR event_id = ANY (ARRAY(SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                                    WHERE candidate_id = ANY (CAST(:ids AS text[])))))
   LIMIT :most
)
SELECT p.state, left(p.tenant_id, 1000), p.provider, left(d.tenant_id, 1000), count(*)
  FROM passed AS p
  LEFT JOIN LATERAL (
         SELECT named.tenant_id
           FROM {schema}.mailglass_open_orphan_ids AS i
          CROSS JOIN LATERAL (
                  SELECT tenant_id FROM {schema}.mailglass_deliveries
                   WHERE hashtextextended(provider_message_id, 0) = hashtextextended(i.candidate_id, 0)
                     AND provider_message_id = i.candidate_id LIMIT 1) AS named
          WHERE p.state = 'tenant_mismatch' AND i.event_id = p.event_id LIMIT 1) AS d ON true
 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4
"""

# What matching may let pass: by its keys as they are stored, or because they are not current, and are computed then.
# Only an event without keys may have a document that is too long to be read; few of them are read for that.
_NEWEST = """
WITH newest AS MATERIALIZED (
  SELECT event_id, tenant_id, provider, state FROM {schema}.mailglass_open_orphans
   WHERE arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
   ORDER BY arrived_at DESC, event_id DESC LIMIT :size
-- Compressed, or not small.
), suspect AS MATERIALIZED (
  SELECT n.event_id
    FROM newest AS n JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
   WHERE n.state = 'unmatchable' AND n.provider IS NULL
     AND (pg_column_size(e.metadata) + pg_column_size(e.normalized_payload) < 2000
          AND num_nonnulls(pg_column_compression(e.metadata), pg_column_compression(e.normalized_payload)) = 0)
         IS NOT TRUE
   LIMIT :suspects
)
SELECT n.tenant_id, n.provider, n.state, left(e.type, 512) AS type,
       s.event_id IS NOT NULL AND greatest(octet_length(e.metadata::text), octet_length(e.normalized_payload::text))
                                  > :document_bytes AS is_oversized,
       count(*)::integer AS orphans
  FROM newest AS n
  JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
  LEFT JOIN suspect AS s ON s.event_id = n.event_id
 GROUP BY 1, 2, 3, 4, 5
"""

_LEDGER_CURSOR = """
SELECT tenant_id, inserted_at::text AS inserted_at, id::text AS event_id
  FROM {schema}.mailglass_events WHERE id = CAST(:event_id AS uuid)
"""

# Only the ledger still has these. Tenant by tenant, because its index of orphans begins with the tenant; the next one
# is probed for. A row that was reconciled is passed over by the caller, so that a page ends after so many rows.
_EXPIRED = """
WITH tenants AS (
  SELECT tenant_id
    FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1(
           greatest(CAST(:tenant_id AS text), CAST(:from_tenant AS text)))
   LIMIT CASE WHEN CAST(:tenant_id AS text) IS NOT NULL THEN 1 END
)
SELECT e.id::text AS event_id, e.tenant_id, e.inserted_at::text AS arrived_at,
       EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id)) AS settled
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
 WHERE CAST(:tenant_id AS text) IS NULL OR t.tenant_id = :tenant_id
 LIMIT :size
"""


class RowFilter(NamedTuple):
    """A filter for the rows of open orphans; None is all.

    Attributes:
        tenant_id: The tenant.
        provider: The provider, in its canonical spelling.
        ids: Candidate ids, of which an orphan must have one.
        state: The state that is stored, or `unseen` for none.
        recipient: The normalized recipient, as it is stored.
    """

    tenant_id: str | None = None
    provider: str | None = None
    ids: Collection[str] | None = None
    state: str | None = None
    recipient: str | None = None

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements that list."""
        return self._asdict() | {"ids": None if self.ids is None else array_literal(self.ids)}


class Cause(NamedTuple):
    """A cause for which orphans stay open, and the number of them.

    Attributes:
        state: The orphans' state, as lists show it.
        tenant_id: The orphans' tenant.
        provider: The orphans' provider, if known.
        other_tenant_id: For a `tenant_mismatch`, a tenant that has the deliveries.
        number: The number of orphans.
    """

    state: states.OpenState
    tenant_id: str
    provider: str | None
    other_tenant_id: str | None
    number: int


class NewestGroup(NamedTuple):
    """A group of the newest open orphans.

    Attributes:
        tenant_id: The orphans' tenant.
        provider: The orphans' provider, if it is stored.
        state: The stored state; None if nothing has checked them.
        type: The type of the events.
        is_oversized: True if the documents are too long to be read.
        orphans: The number of orphans.
    """

    tenant_id: str
    provider: str | None
    state: str | None
    type: str
    is_oversized: bool
    orphans: int


class Bounds(NamedTuple):
    """The range of arrival of a list, and the time until which orphans are eligible."""

    from_time: str
    until_time: str
    eligible_until: str

    def parameters(self, after: Cursor) -> dict[str, object]:
        """Return the parameters of the statements that list orphans after a cursor."""
        return self._asdict() | {"place_time": after.arrived_at, "place_event": after.event_id}


class Row(NamedTuple):
    """The stored row of an open orphan in a list.

    Attributes:
        event_id: The event.
        arrived_at: The arrival, as Postgres writes it.
        tenant_id: The event's tenant.
        provider: The event's provider; None until keys are stored, or without a usable one.
        type: The event's type; None if the event was deleted.
        state: `waiting` in its grace, else the stored state, or `unseen`.
        candidate_ids: The stored ids, in order.
    """

    event_id: str
    arrived_at: str
    tenant_id: str
    provider: str | None
    type: str | None
    state: states.OpenState
    candidate_ids: list[str]


class LedgerCursor(NamedTuple):
    """A cursor in the list of expired orphans."""

    tenant_id: str
    inserted_at: str
    event_id: str


FIRST_OF_LEDGER = LedgerCursor("", "-infinity", NIL)


class ExpiredEntry(NamedTuple):
    """An expired orphan of the ledger; `settled` if it is reconciled."""

    orphan: OrphanRow
    settled: bool

    @property
    def cursor(self) -> LedgerCursor:
        """The cursor after which the next entry comes."""
        return LedgerCursor(self.orphan.tenant_id, self.orphan.arrived_at, self.orphan.event_id)


def compute_bounds(
    tx: Transaction,
    eligible: tuple[str, str],
    *,
    waiting: bool | None,
    older: float | None,
    newer: float | None,
) -> Bounds:
    """Return the range of arrival of a list.

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


def find_cursor(tx: Transaction, event_id: str) -> Cursor | None:
    """Return the cursor of an orphan in the order of arrival, or None if the ledger has no such event."""
    row = tx.execute(_CURSOR, {"event_id": event_id}).one_or_none()
    return Cursor(*row) if row else None


def load_newest(tx: Transaction, row_filter: RowFilter, bounds: Bounds, after: Cursor, size: int) -> list[Row]:
    """Return the next *size* open orphans after a cursor, the newest first; also those whose event was deleted."""
    parameters = {**row_filter.parameters(), **bounds.parameters(after), "size": size}
    return list(map(Row._make, tx.execute(_PAGE, parameters)))


def load_oldest_ids(tx: Transaction, tenant_id: str | None, after: str, until: str, size: int) -> list[str]:
    """Return the first *size* open orphans that arrived after one time and until another, the oldest first."""
    parameters = {"tenant_id": tenant_id, "after": after, "until": until, "size": size}
    return list(tx.execute(_OLDEST, parameters).scalars())


def count_causes(tx: Transaction, row_filter: RowFilter, bounds: Bounds, most: int) -> list[Cause]:
    """Count open orphans by cause, the most frequent first; at most *most* are read."""
    parameters = {**row_filter.parameters(), **bounds._asdict(), "most": most}
    return list(map(Cause._make, tx.execute(_CAUSES, parameters)))


def load_newest_groups(tx: Transaction, size: int) -> list[NewestGroup]:
    """Group the newest *size* open orphans that have not expired by tenant, provider, state and type."""
    parameters = {
        "max_age_minutes": tx.settings.max_age_minutes,
        "size": size,
        "suspects": OVERSIZED_SHOWN,
        "document_bytes": ledger.DOCUMENT_BYTES,
    }
    return list(map(NewestGroup._make, tx.execute(_NEWEST, parameters)))


def find_ledger_cursor(tx: Transaction, event_id: str) -> LedgerCursor | None:
    """Return the cursor of an event in the list of expired orphans, or None if the ledger has no such event."""
    row = tx.execute(_LEDGER_CURSOR, {"event_id": event_id}).one_or_none()
    return LedgerCursor(*row) if row else None


def load_expired(
    tx: Transaction,
    after: LedgerCursor,
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
        ExpiredEntry(OrphanRow(event_id, tenant, arrived_at, NO_KEYS), settled)
        for event_id, tenant, arrived_at, settled in tx.execute(_EXPIRED, parameters).all()
    ]
