"""Queries for lists of orphans: open ones by arrival, expired ones by tenant; a filter costs one pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from mailglass_reconcile.rules import provider_rules, states
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Transaction, array_literal, trust_statistics
from mailglass_reconcile.store.tables import ledger

OVERSIZED_SHOWN = 50
"""Documents of the newest open orphans that are measured at most: each may have megabytes."""
WAITING: Final = "waiting"
EXPIRED: Final = "expired"

# Along the index of arrival, or with ids each by primary key, because one id may name a hundred thousand orphans. The
# inner query chooses the page from stored columns; types and candidate ids are looked up for that page alone.
_NEWEST = """
-- An orphan linked since keeps its place, if its session wrote UTC; one without an event is still in our table.
WITH last_read AS MATERIALIZED (
  SELECT coalesce(o.arrived_at, e.inserted_at, 'infinity') AS arrived_at
    FROM (SELECT CAST(:after AS uuid) AS id) AS k
    LEFT JOIN {schema}.mailglass_events AS e ON e.id = k.id
    LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.id
), selected (selected_id) AS MATERIALIZED (
  SELECT event_id FROM {schema}.mailglass_open_orphan_ids WHERE candidate_id = ANY (CAST(:message_ids AS text[]))
   UNION SELECT unnest(CAST(:event_ids AS uuid[]))
)
SELECT p.event_id::text, p.tenant_id, p.provider,
       (SELECT left(e.type, 100) FROM {schema}.mailglass_events AS e WHERE e.id = p.event_id) AS type,
       CASE WHEN p.arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) THEN 'waiting'
            WHEN p.arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes) THEN 'expired'
            ELSE coalesce(p.state, 'unseen') END AS state,
       {schema}.mailglass_reconcile_iso_v1(p.arrived_at) AS arrived_at,
       {schema}.mailglass_reconcile_iso_v1(p.arrived_at + make_interval(mins => :max_age_minutes)) AS expires_at,
       ARRAY(SELECT i.candidate_id FROM {schema}.mailglass_open_orphan_ids AS i
              WHERE i.event_id = p.event_id ORDER BY i.position) AS candidate_ids
  FROM (SELECT event_id, tenant_id, provider, state, arrived_at
          FROM (SELECT false AS by_id, event_id, tenant_id, provider, state, arrived_at, recipient
                  FROM {schema}.mailglass_open_orphans
                 UNION ALL
                SELECT true, o.*
                  FROM selected AS s
                 CROSS JOIN LATERAL (SELECT event_id, tenant_id, provider, state, arrived_at, recipient
                                       FROM {schema}.mailglass_open_orphans
                                      WHERE event_id = s.selected_id OFFSET 0) AS o) AS o
         WHERE by_id = CAST(:by_id AS boolean)
           AND (arrived_at, event_id) < ((SELECT arrived_at FROM last_read),
                                         coalesce(CAST(:after AS uuid), 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
           AND arrived_at > coalesce(now()::timestamp - make_interval(secs => CAST(:max_age_seconds AS float8)),
                                  '-infinity')
           AND arrived_at <= coalesce(now()::timestamp - make_interval(secs => CAST(:min_age_seconds AS float8)),
                                   'infinity')
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = CAST(:tenant_id AS text))
           AND (CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text))
           AND (CAST(:state AS text) IS NULL OR coalesce(state, 'unseen') = CAST(:state AS text))
           AND (CAST(:recipient AS text) IS NULL OR recipient = CAST(:recipient AS text))
           AND (recipient IS NULL OR NOT CAST(:unknown_recipient AS boolean))
         ORDER BY arrived_at DESC, event_id DESC LIMIT :size) AS p
 ORDER BY p.arrived_at DESC, p.event_id DESC
"""

# The cause of a tenant mismatch is the tenant that has the delivery: one of the event's provider or of none. Of a
# wide id, only so many are read.
_CAUSES = """
WITH selected (selected_id) AS MATERIALIZED (
  SELECT event_id FROM {schema}.mailglass_open_orphan_ids WHERE candidate_id = ANY (CAST(:message_ids AS text[]))
   UNION SELECT unnest(CAST(:event_ids AS uuid[]))
), passed AS MATERIALIZED (
  SELECT event_id, tenant_id, provider,
         CASE WHEN arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) THEN 'waiting'
              WHEN arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes) THEN 'expired'
              ELSE coalesce(state, 'unseen') END AS state
    FROM (SELECT false AS by_id, event_id, tenant_id, provider, state, arrived_at, recipient
            FROM {schema}.mailglass_open_orphans
           UNION ALL
          SELECT true, o.*
            FROM selected AS s
           CROSS JOIN LATERAL (SELECT event_id, tenant_id, provider, state, arrived_at, recipient
                                 FROM {schema}.mailglass_open_orphans
                                WHERE event_id = s.selected_id OFFSET 0) AS o) AS o
   WHERE by_id = CAST(:by_id AS boolean)
     AND arrived_at > coalesce(now()::timestamp - make_interval(secs => CAST(:max_age_seconds AS float8)), '-infinity')
     AND arrived_at <= coalesce(now()::timestamp - make_interval(secs => CAST(:min_age_seconds AS float8)), 'infinity')
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = CAST(:tenant_id AS text))
     AND (CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text))
     AND (CAST(:state AS text) IS NULL OR coalesce(state, 'unseen') = CAST(:state AS text))
     AND (CAST(:recipient AS text) IS NULL OR recipient = CAST(:recipient AS text))
     AND (recipient IS NULL OR NOT CAST(:unknown_recipient AS boolean))
   LIMIT :read_limit
)
SELECT p.state, left(p.tenant_id, 1000), p.provider, left(d.tenant_id, 1000), count(*)
  FROM passed AS p
  LEFT JOIN LATERAL (
         SELECT named.tenant_id
           FROM {schema}.mailglass_open_orphan_ids AS i
          CROSS JOIN LATERAL (
                  SELECT tenant_id, provider FROM {schema}.mailglass_deliveries
                   WHERE hashtextextended(provider_message_id, 0) = hashtextextended(i.candidate_id, 0)
                     AND provider_message_id = i.candidate_id LIMIT 100) AS named
          WHERE p.state = 'tenant_mismatch' AND i.event_id = p.event_id AND named.tenant_id <> p.tenant_id
            AND coalesce(CAST(:spellings AS jsonb) ->> lower(btrim(named.provider)), lower(btrim(named.provider)),
                         p.provider) = p.provider
          LIMIT 1) AS d ON true
 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4
"""

# What matching may let pass: by its keys as they are stored, or because they are not current, and are computed then.
# Only an event without keys may have a document that is too long to be read; few of them are read for that.
_NEWEST_GROUPS = """
WITH newest AS MATERIALIZED (
  SELECT event_id, tenant_id, provider, state, arrived_at FROM {schema}.mailglass_open_orphans
   WHERE arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
   ORDER BY arrived_at DESC, event_id DESC LIMIT :size
-- Orphans of a wrong tenant whose delivery has a later event of the same type: attached, or linked, which has the type
-- of its orphan. Of a wide id and of a busy delivery, only so many rows are read.
), repeated AS MATERIALIZED (
  SELECT n.event_id
    FROM newest AS n
    JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
   WHERE n.state = 'tenant_mismatch'
     AND EXISTS (
           SELECT FROM (SELECT d.id
                          FROM {schema}.mailglass_open_orphan_ids AS k
                          JOIN {schema}.mailglass_deliveries AS d
                            ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                           AND d.provider_message_id = k.candidate_id AND d.tenant_id <> n.tenant_id
                         WHERE k.event_id = n.event_id LIMIT 5) AS d
           CROSS JOIN LATERAL (SELECT type, idempotency_key FROM {schema}.mailglass_events
                                WHERE delivery_id = d.id AND inserted_at > e.inserted_at
                                ORDER BY occurred_at DESC LIMIT 20) AS r
            LEFT JOIN {schema}.mailglass_events AS o
              ON o.id = {schema}.mailglass_reconcile_orphan_of_v1(r.type, r.idempotency_key)
           WHERE coalesce(o.type, r.type) = e.type)
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
       r.event_id IS NOT NULL AS is_repeated,
       count(*)::integer AS orphans,
       extract(epoch FROM now()::timestamp - min(n.arrived_at))::float8 AS age_seconds
  FROM newest AS n
  JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
  LEFT JOIN suspect AS s ON s.event_id = n.event_id
  LEFT JOIN repeated AS r ON r.event_id = n.event_id
 GROUP BY 1, 2, 3, 4, 5, 6
"""

# Only the ledger still has these. Tenant by tenant, because its index of orphans begins with the tenant; the next one
# is probed for. A row that was reconciled is passed over by the caller, so that a page ends after so many rows.
_EXPIRED = """
WITH last_read AS MATERIALIZED (
  SELECT coalesce(e.tenant_id, '') AS tenant_id, coalesce(e.inserted_at, '-infinity') AS inserted_at,
         coalesce(k.id, '00000000-0000-0000-0000-000000000000') AS id
    FROM (SELECT CAST(:after AS uuid) AS id) AS k LEFT JOIN {schema}.mailglass_events AS e ON e.id = k.id
), tenants AS (
  SELECT t.tenant_id
    FROM last_read AS l
   CROSS JOIN LATERAL {schema}.mailglass_reconcile_tenants_of_orphans_v1(
                        greatest(CAST(:tenant_id AS text), l.tenant_id)) AS t
   LIMIT CASE WHEN CAST(:tenant_id AS text) IS NOT NULL THEN 1 END
)
SELECT e.id::text AS event_id, e.tenant_id, NULL AS provider, left(e.type, 100) AS type,
       CASE WHEN EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id)) THEN 'linked'
            ELSE 'expired' END AS state,
       {schema}.mailglass_reconcile_iso_v1(e.inserted_at) AS arrived_at,
       {schema}.mailglass_reconcile_iso_v1(e.inserted_at + make_interval(mins => :max_age_minutes)) AS expires_at,
       CAST('{}' AS text[]) AS candidate_ids
  FROM tenants AS t
 CROSS JOIN last_read AS l
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_events
          WHERE tenant_id = t.tenant_id AND needs_reconciliation = true AND delivery_id IS NULL
            AND inserted_at >= CASE WHEN t.tenant_id = l.tenant_id THEN l.inserted_at ELSE '-infinity' END
            AND (t.tenant_id <> l.tenant_id OR (inserted_at, id) > (l.inserted_at, l.id))
            AND inserted_at <= least(now()::timestamp - make_interval(mins => :max_age_minutes),
                                     now()::timestamp - make_interval(secs => CAST(:min_age_seconds AS float8)))
            AND inserted_at > coalesce(now()::timestamp - make_interval(secs => CAST(:max_age_seconds AS float8)),
                                       '-infinity')
          ORDER BY inserted_at, id LIMIT :size) AS e
 WHERE CAST(:tenant_id AS text) IS NULL OR t.tenant_id = CAST(:tenant_id AS text)
 LIMIT :size
"""

_EXISTS = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = CAST(:event_id AS uuid))
    OR EXISTS (SELECT FROM {schema}.mailglass_open_orphans WHERE event_id = CAST(:event_id AS uuid))
"""


@dataclass(frozen=True, slots=True)
class ListFilter:
    """A filter for lists of orphans; None is all of any age.

    Attributes:
        state: One of `states.OPEN_STATES`; `expired` lists those of the ledger, tenant by tenant, matched now.
        tenant_id: The tenant.
        provider: The provider, in its canonical spelling.
        type: The event's type, which the ledger alone has: `accepts` compares it.
        min_age_seconds: At least this many seconds since it arrived.
        max_age_seconds: Fewer than this many.
        recipient: The normalized recipient. It is known for open orphans that this package's writers stored, and for
            those whose raw webhook a sweep has read.
        unknown_recipient: True for those alone whose recipient is unknown.
        message_ids: Candidate ids, of which an orphan must have one, unless its own id is in `event_ids`.
        event_ids: Ids of events.
    """

    state: str | None = None
    tenant_id: str | None = None
    provider: str | None = None
    type: str | None = None
    min_age_seconds: float | None = None
    max_age_seconds: float | None = None
    recipient: str | None = None
    unknown_recipient: bool = False
    message_ids: frozenset[str] | None = None
    event_ids: frozenset[str] | None = None

    def accepts(self, event: ListedEvent) -> bool:
        """Return True if an event passes; without a type, it was deleted."""
        return (
            event.type is not None
            and self.state in (None, event.state)
            and self.type in (None, event.type)
            and self.provider in (None, event.provider)
            and (self.message_ids is None or not self.message_ids.isdisjoint(event.candidate_ids))
        )

    def parameters(self, settings: Settings) -> dict[str, object]:
        """Return the parameters of the statements that list open orphans; a state limits the age too."""
        min_ages, max_ages = [self.min_age_seconds], [self.max_age_seconds]
        if self.state == WAITING:
            max_ages.append(settings.grace_seconds)
        elif self.state is not None:
            min_ages.append(settings.grace_seconds)
            max_ages.append(60 * settings.max_age_minutes)
        return {
            "tenant_id": self.tenant_id,
            "provider": self.provider,
            "state": None if self.state == WAITING else self.state,
            "recipient": self.recipient,
            "unknown_recipient": self.unknown_recipient,
            "message_ids": array_literal(self.message_ids or ()),
            "event_ids": array_literal(self.event_ids or ()),
            "by_id": self.message_ids is not None or self.event_ids is not None,
            "min_age_seconds": max((age for age in min_ages if age is not None), default=None),
            "max_age_seconds": min((age for age in max_ages if age is not None), default=None),
            "grace_seconds": settings.grace_seconds,
            "max_age_minutes": settings.max_age_minutes,
        }


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """An event of a list, without its recipient: an open or an expired orphan, or any event searched by its id.

    Attributes:
        event_id: The event.
        tenant_id: The event's tenant.
        provider: The event's provider; None until it is checked, or without a usable one.
        type: The event's type; None if the event was deleted.
        state: One of `states.OPEN_STATES`; for an event that was searched by its id, one of `states.EVENT_STATES`.
        arrived_at: In ISO 8601, UTC.
        expires_at: When it becomes, or became, too old for every sweep, in ISO 8601.
        candidate_ids: The ids under which its delivery may be stored; none until it is checked.
        delivery_id: The delivery to which it is linked, or would be linked now.
        verdict: The result of matching now, for an expired orphan: one of `states.MATCH_STATES`.
    """

    event_id: str
    tenant_id: str
    provider: str | None
    type: str | None
    state: states.EventState
    arrived_at: str
    expires_at: str | None
    candidate_ids: tuple[str, ...]
    delivery_id: str | None = None
    verdict: states.MatchState | None = None

    @property
    def summary(self) -> str:
        """The type, the state, and the reason for it, in one sentence."""
        return f"{self.type or '-'}, {self.state}: {states.MEANINGS[self.state].sentence}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the summary by name, as `orphans --json` and `find --json` print them."""
        return {**asdict(self), "summary": self.summary}


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
        is_repeated: True if they have a wrong tenant, and a later event of their type has reached the delivery.
        orphans: The number of orphans.
        age_seconds: Seconds since the first of them arrived.
    """

    tenant_id: str
    provider: str | None
    state: str | None
    type: str
    is_oversized: bool
    is_repeated: bool
    orphans: int
    age_seconds: float


def has_event(tx: Transaction, event_id: str) -> bool:
    """Return True if the ledger, or the table of open orphans, has an event."""
    return bool(tx.execute(_EXISTS, {"event_id": event_id}).scalar_one())


def load_newest(tx: Transaction, filters: ListFilter, after: str | None, size: int) -> list[ListedEvent]:
    """Return the next *size* open orphans after an event, the newest first; also those whose event was deleted.

    The filter's `type` is not compared, and expired orphans are those that no prune has removed yet.
    """
    parameters = {**filters.parameters(tx.settings), "after": after, "size": size}
    stored = (filters.tenant_id, filters.provider, filters.recipient, parameters["state"])
    # Hardly any may pass, and no index has what is stored.
    with trust_statistics(tx) if any(stored) and not parameters["by_id"] else nullcontext():
        return _to_events(tx, _NEWEST, parameters)


def load_expired(tx: Transaction, filters: ListFilter, after: str | None, size: int) -> list[ListedEvent]:
    """Return the next *size* expired orphans of the ledger after an event, by tenant and time; linked ones too.

    Of the filter, tenant and age are compared.
    """
    parameters: dict[str, object] = {
        "tenant_id": filters.tenant_id,
        "min_age_seconds": filters.min_age_seconds,
        "max_age_seconds": filters.max_age_seconds,
        "max_age_minutes": tx.settings.max_age_minutes,
        "after": after,
        "size": size,
    }
    return _to_events(tx, _EXPIRED, parameters)


def _to_events(tx: Transaction, statement: str, parameters: dict[str, object]) -> list[ListedEvent]:
    rows = tx.execute(statement, parameters)
    return [ListedEvent(**{**row._mapping, "candidate_ids": tuple(row.candidate_ids)}) for row in rows]


def count_causes(tx: Transaction, filters: ListFilter, read_limit: int) -> list[Cause]:
    """Count open orphans by cause, the most frequent first; at most *read_limit* are read."""
    parameters = {
        **filters.parameters(tx.settings),
        "read_limit": read_limit,
        "spellings": provider_rules.spellings_as_json(),
    }
    return list(map(Cause._make, tx.execute(_CAUSES, parameters)))


def load_newest_groups(tx: Transaction, size: int) -> list[NewestGroup]:
    """Group the newest *size* open orphans that have not expired by tenant, provider, state and type."""
    parameters = {
        "max_age_minutes": tx.settings.max_age_minutes,
        "size": size,
        "suspects": OVERSIZED_SHOWN,
        "document_bytes": ledger.DOCUMENT_BYTES,
    }
    return list(map(NewestGroup._make, tx.execute(_NEWEST_GROUPS, parameters)))
