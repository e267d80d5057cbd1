"""The deliveries and open orphans of an address, a message or an id, newest first; no record holds an address."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Literal, NamedTuple
from uuid import UUID

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import explanation, history
from mailglass_reconcile.rules import addresses
from mailglass_reconcile.rules.addresses import holds_address
from mailglass_reconcile.rules.matching import is_usable, spellings_of
from mailglass_reconcile.store import open_orphans, personal_data
from mailglass_reconcile.store.database import NIL, Database, Transaction, array_literal, by_statistics
from mailglass_reconcile.store.personal_data import Person
from mailglass_reconcile.sweep import judge

MOST = 100_000
"""Deliveries, and open orphans, of one address or id among which the newest are chosen: about a second."""
UNREAD = 2_000
"""Of the newest open orphans those are judged now that no sweep has looked at."""
TIMEOUT_MS = 24_000

_DELIVERIES = """
-- Recipients as they are stored, because that is what Mailglass's index has.
WITH of_recipients AS (
  SELECT d.id, d.inserted_at
    FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1() AS t
   CROSS JOIN unnest(CAST(:recipients AS text[])) AS s (recipient)
   CROSS JOIN LATERAL (SELECT id, inserted_at FROM {schema}.mailglass_deliveries
                        WHERE tenant_id = t.tenant_id AND recipient = s.recipient) AS d
   WHERE cardinality(CAST(:recipients AS text[])) > 0
     AND (CAST(:tenant_id AS text) IS NULL OR t.tenant_id = CAST(:tenant_id AS text))
   LIMIT :most
), of_message_ids AS (
  SELECT d.id, d.inserted_at
    FROM unnest(CAST(:message_ids AS text[])) AS c (id)
   CROSS JOIN LATERAL (
           SELECT id, inserted_at FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(c.id, 0) AND provider_message_id = c.id
              AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))) AS d
   LIMIT :most
), of_ids AS (
  SELECT d.id, d.inserted_at
    FROM unnest(CAST(:ids AS uuid[])) AS c (id)
   CROSS JOIN LATERAL (
           SELECT id, inserted_at FROM {schema}.mailglass_deliveries
            WHERE id = c.id
              AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))
           OFFSET 0) AS d
-- All of them first: otherwise the planner may walk a tenant's deliveries by time, and meet few that are wanted.
), named AS MATERIALIZED (
  SELECT * FROM of_recipients UNION SELECT * FROM of_message_ids UNION SELECT * FROM of_ids
), newest AS MATERIALIZED (
  SELECT id, inserted_at, count(*) OVER () AS number FROM named ORDER BY inserted_at DESC, id DESC LIMIT :size
)
SELECT d.id::text, left(d.tenant_id, 1000) AS tenant_id,
       -- That of its send, where its row may have none.
       left(coalesce(d.provider,
                     (SELECT CASE jsonb_typeof(e.metadata -> 'provider')
                                  WHEN 'string' THEN e.metadata ->> 'provider' END
                        FROM {schema}.mailglass_events AS e
                       WHERE e.delivery_id = d.id AND e.type IN ('dispatched', 'failed', 'rejected')
                       ORDER BY e.delivery_id, e.occurred_at LIMIT 1)), 512) AS provider,
       left(d.last_event_type, 100) AS state, to_json(d.last_event_at) #>> '{}' || 'Z' AS since, d.terminal AS final,
       to_json(d.inserted_at) #>> '{}' || 'Z' AS at, left(d.mailable, 200) AS mailable,
       left(d.provider_message_id, 512) AS message_id, n.number
  FROM newest AS n JOIN {schema}.mailglass_deliveries AS d ON d.id = n.id
 ORDER BY n.inserted_at DESC, n.id DESC
"""

_OPEN = """
WITH of_message_ids AS (
  SELECT i.event_id
    FROM unnest(CAST(:message_ids AS text[])) AS c (id)
   CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphan_ids WHERE candidate_id = c.id) AS i
   LIMIT :most
-- No index has the recipients, which are there only while an orphan is open.
), of_recipients AS (
  SELECT event_id FROM {schema}.mailglass_open_orphans
   WHERE cardinality(CAST(:recipients AS text[])) > 0 AND recipient = ANY (CAST(:recipients AS text[]))
   LIMIT :most
), named AS MATERIALIZED (
  SELECT event_id FROM of_message_ids UNION SELECT event_id FROM of_recipients
   UNION SELECT unnest(CAST(:ids AS uuid[]))
-- Of an address, what is about another one is left out.
), newest AS MATERIALIZED (
  SELECT o.*, count(*) OVER () AS number
    FROM named AS n
   CROSS JOIN LATERAL (SELECT event_id, tenant_id, provider, state, arrived_at, recipient
                         FROM {schema}.mailglass_open_orphans WHERE event_id = n.event_id OFFSET 0) AS o
   WHERE (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = CAST(:tenant_id AS text))
     AND (cardinality(CAST(:recipients AS text[])) = 0 OR o.recipient IS NULL
          OR o.recipient = ANY (CAST(:recipients AS text[])))
   ORDER BY o.arrived_at DESC, o.event_id DESC LIMIT :size
)
SELECT n.event_id::text AS id, n.tenant_id, n.provider, left(e.type, 100) AS type,
       CASE WHEN n.arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) THEN 'waiting'
            WHEN n.arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes) THEN 'expired'
            ELSE coalesce(n.state, 'unseen') END AS state,
       to_json(n.arrived_at) #>> '{}' || 'Z' AS at,
       to_json(n.arrived_at + make_interval(mins => :max_age_minutes)) #>> '{}' || 'Z' AS expires_at, n.number
  FROM newest AS n JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
 ORDER BY n.arrived_at DESC, n.event_id DESC
"""

_UNREAD = """
SELECT n.event_id::text
  FROM (SELECT event_id, rule FROM {schema}.mailglass_open_orphans ORDER BY arrived_at DESC, event_id DESC
         LIMIT :size) AS n
 WHERE n.rule IS NULL
"""


class What(NamedTuple):
    """What is looked for, checked.

    Attributes:
        text: As it was given, trimmed.
        address: The address that it may be, as addresses are compared; None if it holds none. Then it is never shown.
        id: The event's or delivery's id that it may be.
        tenant_id: In this tenant only; None is all.
    """

    text: str
    address: str | None
    id: UUID | None
    tenant_id: str | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A delivery or an event that was found.

    Attributes:
        kind: `delivery`, or `event`: an open orphan, or the event whose id was looked for.
        id: Its id.
        tenant_id: Its tenant.
        provider: Its provider, if known.
        type: Of an event, its type.
        state: Of a delivery, the type of its last event, such as `delivered`; of an event, one of
            `states.EVENT_STATES`.
        at: When a delivery was stored, or an event arrived, in ISO 8601, UTC; the order of the hits.
        since: Of a delivery, when its last event happened.
        final: Of a delivery, whether it has come to an end: delivered, bounced and so on.
        mailable: Of a delivery, what was sent; None if that could hold an address.
        expires_at: Of an open orphan, when it becomes too old to be linked.
    """

    kind: Literal["delivery", "event"]
    id: str
    tenant_id: str
    provider: str | None
    type: str | None
    state: str
    at: str
    since: str | None = None
    final: bool | None = None
    mailable: str | None = None
    expires_at: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `find --json` prints them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        hits: The newest, newest first.
        deliveries: How many deliveries there are, those that are not among the hits too.
        events: The same of events.
        more: Whether there are more than the hits.
        at_least: Whether the two numbers are lower bounds, because only `MOST` of either kind are read.
        as_of: When the last full sweep ended, in ISO 8601: the states of open orphans are as it left them, or newer.
    """

    hits: tuple[Hit, ...]
    deliveries: int
    events: int
    more: bool
    at_least: bool
    as_of: str | None


def check(text: str, tenant_id: str | None = None) -> What:
    """Check what is looked for, and see what it may be: an address, an id, or in any case a message id.

    Raises:
        ValueError: Nothing has such an address or id; the message does not repeat it.
    """
    given = text.strip()
    if not is_usable(given):
        raise ValueError(
            "give an address, a message id or the id of an event or a delivery: 1 to 512 characters in one line"
        )
    try:
        id_ = UUID(given) if len(given) == 36 else None
    except ValueError:
        id_ = None
    return What(given, addresses.address(given) if holds_address(given) else None, id_, tenant_id)


def find(database: Database, what: What, *, scan: bool = False, limit: int = 50) -> Found:
    """Return the deliveries and open orphans of an address, a message or an id.

    With what a delivery carries, the open orphans that name its message id are found too, in every tenant. An address
    is looked up as it was given, in lower case, and with its domain as an A-label and in Unicode, at the cost of a few
    index probes for each tenant; the recipients of open orphans are read in one pass.

    Args:
        database: Where the tables are.
        what: What to look for.
        scan: Compare the address of every delivery instead: about a second per million.
        limit: At most this many hits.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    runtime.load_imports(to_read=True)
    recipients = addresses.usual_spellings(what.text) if what.address else frozenset()
    message_ids = {what.text, *spellings_of(what.text)}
    hits, ids = _of_id(database, what)
    with database.reading(TIMEOUT_MS) as tx:
        if scan and what.address:
            ids |= _scanned(tx, what.address, what.tenant_id)
        rows = _newest(tx, _DELIVERIES, what, recipients, message_ids, ids, limit)
        message_ids |= {row.message_id for row in rows if row.message_id}
        unread, all_read = _unread(tx, recipients, message_ids)
        with by_statistics(tx):  # a pass over the open orphans
            orphans = _newest(tx, _OPEN, what, recipients, message_ids, unread, limit)
        as_of = history.read(tx).counted_at
    number = rows[0].number if rows else 0
    opened = orphans[0].number if orphans else 0
    hits = {row.id: _of_delivery(row) for row in rows} | {row.id: _of_open(row) for row in orphans} | hits
    newest = sorted(hits.values(), key=attrgetter("at", "id"), reverse=True)[:limit]
    events = max(opened, sum(one.kind == "event" for one in hits.values()))
    at_least = number >= MOST or opened >= MOST or not all_read
    return Found(tuple(newest), number, events, number + events > len(newest), at_least, as_of)


def _of_id(database: Database, what: What) -> tuple[dict[str, Hit], set[str]]:
    """Return the event that has the id, if one has, and the ids that deliveries may have."""
    if what.id is None:
        return {}, set()
    known = explanation.explain(database, what.id)
    if known.state == "unknown" or what.tenant_id not in (None, known.tenant_id):
        return {}, {str(what.id)}
    hit = Hit(
        "event",
        known.event_id,
        known.tenant_id or "",
        known.provider,
        known.type,
        known.state,
        known.arrived_at or "",
        expires_at=known.expires_at,
    )
    return {hit.id: hit}, {str(what.id), *filter(None, [known.delivery_id])}


def _scanned(tx: Transaction, address: str, tenant_id: str | None) -> set[str]:
    """Return the deliveries to an address in any spelling, as `erase` looks them up."""
    person = Person(addresses.index_key(address), addresses.rough_part(address), tenant_id)
    rows = personal_data.deliveries(tx, person, NIL, MOST)
    return {id_ for id_, recipient in rows if addresses.address(recipient) == address}


def _newest(
    tx: Transaction,
    statement: str,
    what: What,
    recipients: Iterable[str],
    message_ids: Iterable[str],
    ids: Iterable[str],
    size: int,
) -> list[Any]:
    """Return the newest that have one of the recipients, message ids or ids; each row has the number of all."""
    parameters = {
        "tenant_id": what.tenant_id,
        "recipients": array_literal(sorted(recipients)),
        "message_ids": array_literal(sorted(message_ids)),
        "ids": array_literal(sorted(ids)),
        "grace_seconds": tx.settings.grace_seconds,
        "max_age_minutes": tx.settings.max_age_minutes,
        "most": MOST,
        "size": size,
    }
    return list(tx.execute(statement, parameters))


def _unread(tx: Transaction, recipients: frozenset[str], message_ids: set[str]) -> tuple[set[str], bool]:
    """Return those of the newest open orphans without stored ids that are meant, and whether those are all."""
    event_ids = list(tx.execute(_UNREAD, {"size": UNREAD}).scalars())
    orphans = open_orphans.read(tx, event_ids)
    keys = judge.current_keys(tx, orphans) if orphans else []
    found = {
        orphan.event_id
        for orphan, its in zip(orphans, keys, strict=True)
        if its.recipient in recipients or not message_ids.isdisjoint(its.candidate_ids)
    }
    return found, len(event_ids) < UNREAD


def _of_delivery(row: Any) -> Hit:
    mailable = None if row.mailable is None or holds_address(row.mailable) else row.mailable
    return Hit("delivery", row.id, row.tenant_id, row.provider, None, row.state, row.at, row.since, row.final, mailable)


def _of_open(row: Any) -> Hit:
    return Hit("event", row.id, row.tenant_id, row.provider, row.type, row.state, row.at, expires_at=row.expires_at)
