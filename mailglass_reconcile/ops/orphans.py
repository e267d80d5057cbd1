"""Open orphans, for people and applications: a page of a list, those of a message, counts by cause, one by one.

States are those that sweeps and writers have stored; what acts on an orphan matches it now.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import runs
from mailglass_reconcile.rules import provider_rules, states, times
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.matching import MATCHED, TENANT_MISMATCH, Keys, spellings_of
from mailglass_reconcile.store import ledger, listing, open_orphans, window
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import (
    STATEMENT_TIMEOUT_MS,
    Database,
    Transaction,
    array_literal,
    trust_statistics,
)
from mailglass_reconcile.store.listing import FIRST_OF_LEDGER, Bounds, Cause, Row, RowFilter
from mailglass_reconcile.store.open_orphans import LAST, Cursor, OrphanRow
from mailglass_reconcile.store.window import Window
from mailglass_reconcile.sweep import matcher
from mailglass_reconcile.sweep.matcher import Decision, OrphanMatch

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

P = TypeVar("P", Cursor, listing.LedgerCursor)

WAITING: Final = "waiting"
EXPIRED: Final = "expired"

MAX_CHUNK = 2_000
MAX_ORPHANS_READ = 20_000
"""Open orphans whose types one page compares, because only the ledger has them: about half a second."""
MAX_COUNTED = 100_000
"""Open orphans that are counted by cause: a quarter of a second, or two if all are tenant mismatches."""
MAX_WITHOUT_KEYS = 2_000
"""Among so many newest open orphans, those that no sweep has checked are matched now."""
TIMEOUT_MS = 24_000
MAX_EVENTS_READ = 5_000
"""Orphans of the ledger, reconciled ones too, that one page of expired ones reads."""
SAMPLED_ORPHANS = 5_000
"""The newest open orphans, among which tenant mismatches are looked for."""
SAMPLED_OF_EACH = 5
"""Orphans of each tenant and provider that are read, and ids and deliveries of each orphan."""

_NEWEST = """
WITH of_message_ids AS (
  SELECT i.event_id
    FROM unnest(CAST(:message_ids AS text[])) AS c (id)
   CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphan_ids WHERE candidate_id = c.id) AS i
   LIMIT :most
-- No index has the recipients, which are there only while an orphan is open; they are stored as they are compared.
), of_recipient AS (
  SELECT event_id FROM {schema}.mailglass_open_orphans WHERE recipient = CAST(:recipient AS text) LIMIT :most
), named AS MATERIALIZED (
  SELECT event_id FROM of_message_ids UNION SELECT event_id FROM of_recipient
   UNION SELECT unnest(CAST(:ids AS uuid[]))
-- Orphans about other addresses are left out.
), newest AS MATERIALIZED (
  SELECT o.*, count(*) OVER () AS number
    FROM named AS n
   CROSS JOIN LATERAL (SELECT event_id, tenant_id, provider, state, arrived_at, recipient
                         FROM {schema}.mailglass_open_orphans WHERE event_id = n.event_id OFFSET 0) AS o
   WHERE (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = CAST(:tenant_id AS text))
     AND (CAST(:recipient AS text) IS NULL OR o.recipient IS NULL OR o.recipient = CAST(:recipient AS text))
   ORDER BY o.arrived_at DESC, o.event_id DESC LIMIT :size
)
SELECT n.event_id::text, n.tenant_id, n.provider, left(e.type, 100) AS type,
       CASE WHEN n.arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) THEN 'waiting'
            WHEN n.arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes) THEN 'expired'
            ELSE coalesce(n.state, 'unseen') END AS state,
       {schema}.mailglass_reconcile_iso_v1(n.arrived_at) AS arrived_at,
       ARRAY(SELECT i.candidate_id FROM {schema}.mailglass_open_orphan_ids AS i
              WHERE i.event_id = n.event_id ORDER BY i.position) AS candidate_ids,
       {schema}.mailglass_reconcile_iso_v1(n.arrived_at + make_interval(mins => :max_age_minutes)) AS expires_at,
       n.number
  FROM newest AS n JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
 ORDER BY n.arrived_at DESC, n.event_id DESC
"""

_WITHOUT_KEYS = """
SELECT n.event_id::text
  FROM (SELECT event_id, rank FROM {schema}.mailglass_open_orphans ORDER BY arrived_at DESC, event_id DESC
         LIMIT :size) AS n
 WHERE n.rank IS NULL
"""

_OTHER_TENANTS = """
WITH newest AS MATERIALIZED (
  SELECT event_id, tenant_id, provider, state FROM {schema}.mailglass_open_orphans
   ORDER BY arrived_at DESC, event_id DESC LIMIT :read_at_most
), sampled AS (
  SELECT *, row_number() OVER (PARTITION BY tenant_id, provider) AS place FROM newest WHERE state = 'tenant_mismatch'
)
SELECT DISTINCT left(s.tenant_id, 1000) AS tenant_id, s.provider, left(d.tenant_id, 1000) AS theirs
  FROM sampled AS s
 CROSS JOIN LATERAL (SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
                      WHERE k.event_id = s.event_id ORDER BY k.position LIMIT :of_each) AS i
 CROSS JOIN LATERAL (SELECT tenant_id FROM {schema}.mailglass_deliveries
                      WHERE hashtextextended(provider_message_id, 0) = hashtextextended(i.candidate_id, 0)
                        AND provider_message_id = i.candidate_id LIMIT :of_each) AS d
 WHERE s.place <= :of_each AND d.tenant_id <> s.tenant_id
 ORDER BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class ListFilter:
    """A filter for the list of orphans; None is all that are not expired.

    Attributes:
        state: One of `states.OPEN_STATES`; `expired` lists those of the ledger, tenant by tenant, matched now.
        tenant_id: The tenant.
        provider: The provider, in any spelling.
        type: The event's type.
        older: At least this many seconds since it arrived.
        newer: At most this many.
        message_id: A message id, in any spelling, among its candidate ids.
        recipient: An address, in any spelling. It is known for open orphans that this package's writers stored, and for
            those whose raw webhook a sweep has read.
    """

    state: str | None = None
    tenant_id: str | None = None
    provider: str | None = None
    type: str | None = None
    older: float | None = None
    newer: float | None = None
    message_id: str | None = None
    recipient: str | None = None

    def candidate_id_set(self) -> frozenset[str] | None:
        """Return the ids of the message in all spellings, one of which an orphan must have; None without a message."""
        return None if self.message_id is None else spellings_of(self.message_id)

    def row_filter(self) -> RowFilter:
        """Return the filter for stored rows, without `waiting`, which follows from the arrival."""
        provider = provider_rules.canonical(self.provider) if self.provider else None
        stored_state = None if self.state == WAITING else self.state
        recipient = normalize_address(self.recipient) if self.recipient else None
        return RowFilter(self.tenant_id, provider, self.candidate_id_set(), stored_state, recipient)

    def accepts(self, orphan: OpenOrphan, candidate_ids: frozenset[str] | None) -> bool:
        """Return True if an orphan passes the filter; *candidate_ids* are the result of `candidate_id_set()`."""
        return (
            self.state in (None, orphan.state)
            and self.type in (None, orphan.type)
            and (self.provider is None or orphan.provider == provider_rules.canonical(self.provider))
            and (candidate_ids is None or not candidate_ids.isdisjoint(orphan.candidate_ids))
        )


@dataclass(frozen=True, slots=True)
class OpenOrphan:
    """An orphan, without its recipient.

    Attributes:
        event_id: The event.
        tenant_id: The event's tenant.
        provider: The event's provider; None until it is checked, or without a usable one.
        type: The event's type.
        state: One of `states.OPEN_STATES`; for an event that was searched by its id, one of `states.EVENT_STATES`.
        arrived_at: In ISO 8601, UTC.
        candidate_ids: The ids under which its delivery may be stored; none until it is checked.
        delivery_id: The delivery to which a `matched` orphan would be linked now.
        verdict: The result of matching now, for an expired orphan: one of `states.MATCH_STATES`.
        expires_at: When it becomes, or became, too old for every sweep, in ISO 8601; None if that cannot be computed.
    """

    event_id: str
    tenant_id: str
    provider: str | None
    type: str | None
    state: states.EventState
    arrived_at: str
    candidate_ids: tuple[str, ...]
    delivery_id: str | None = None
    expires_at: str | None = None
    verdict: states.MatchState | None = None

    @property
    def summary(self) -> str:
        """The type, the state, and the reason for it, in one sentence."""
        return f"{self.type or '-'}, {self.state}: {states.MEANINGS[self.state].sentence}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the summary by name, as `orphans --json` and `find --json` print them."""
        return {**asdict(self), "summary": self.summary}


@dataclass(slots=True)
class OrphanPage:
    """Orphans in order.

    Attributes:
        orphans: The orphans that pass the filter.
        after: The event after which the next page begins; None at the end.
        looked_at: Number of orphans read to find them.
        as_of: When the last full sweep ended, in ISO 8601: the states are as it left them, or newer. None without one,
            and for expired ones.
        causes: If they were counted: how many orphans pass on all pages, by cause, the most first.
        total: If they were counted: how many orphans pass on all pages.
        at_least: True if the numbers are lower bounds, because only `MAX_COUNTED` orphans were read.
    """

    orphans: list[OpenOrphan] = field(default_factory=list)
    after: str | None = None
    looked_at: int = 0
    as_of: str | None = None
    causes: list[Cause] = field(default_factory=list)
    total: int | None = None
    at_least: bool = False


class Chunk(NamedTuple):
    """The next orphans of the ledger, the number of rows read for them, and the event of the last row.

    `ends`: nothing comes after them.
    """

    orphans: list[OpenOrphan]
    rows: int
    last: str
    ends: bool


def load_page(
    database: Database,
    filters: ListFilter,
    *,
    limit: int = 50,
    after: str | None = None,
    with_counts: bool = False,
    timeout_ms: int = STATEMENT_TIMEOUT_MS,
) -> OrphanPage:
    """Return the next *limit* orphans that pass the filters, the newest first; including those in their grace period.

    States, providers and message ids are as stored; orphans that no sweep has checked have none. Expired orphans are
    matched now, and come tenant by tenant, the oldest first. With a filter by type, a page ends after it has read
    `MAX_ORPHANS_READ` open orphans or `MAX_EVENTS_READ` rows of the ledger, even if it is not full.

    With *with_counts*, all orphans that pass are counted by cause: from the counts of the last full sweep if they can
    answer the filter, else now, in one pass. A filter by type, which only the ledger has, and expired orphans are not
    counted.

    Raises:
        LookupError: The ledger has no event *after*, after which the page begins.
    """
    runtime.load_imports(only_warn=True)
    with database.reading(timeout_ms) as tx:
        snapshot = window.open_window(tx)
        if filters.state == EXPIRED:
            return _fill_page(filters, limit, MAX_EVENTS_READ, _read_expired(tx, snapshot, filters, after, limit))
        page = _fill_page(filters, limit, MAX_ORPHANS_READ, _read_open(tx, snapshot, filters, after, limit))
        page.orphans = _with_deliveries(tx, page.orphans)
        history = runs.load_history(tx)
        page.as_of = history.counted_at
        if (
            with_counts
            and not _count_by_last_sweep(tx, page, history.groups, snapshot, filters)
            and filters.type is None
        ):
            _count(tx, page, filters.row_filter(), _bounds(tx, snapshot, filters))
        return page


def _count(tx: Transaction, page: OrphanPage, row_filter: RowFilter, bounds: Bounds) -> None:
    page.causes = listing.count_causes(tx, row_filter, bounds, MAX_COUNTED)
    page.total = sum(cause.number for cause in page.causes)
    page.at_least = page.total >= MAX_COUNTED


def _count_by_last_sweep(
    tx: Transaction, page: OrphanPage, groups: Sequence[dict[str, Any]] | None, snapshot: Window, filters: ListFilter
) -> bool:
    """Take the counts of the last full sweep, and return True, if they can answer the filter.

    They can for state, tenant and provider, at a cost that does not depend on what is open; orphans in their grace are
    counted now.
    """
    finer_filters = (filters.type, filters.older, filters.newer, filters.message_id, filters.recipient)
    if groups is None or any(value is not None for value in finer_filters):
        return False
    if filters.tenant_id and any(group["tenant_id"] is None for group in groups):  # small groups were added up
        return False
    provider = provider_rules.canonical(filters.provider) if filters.provider else None
    passing = [
        group
        for group in groups
        if filters.state in (None, group["state"])
        and filters.tenant_id in (None, group["tenant_id"])
        and provider in (None, group["provider"])
    ]
    causes = break_down(tx, passing)
    if filters.state in (None, WAITING):
        waiting = replace(filters, state=WAITING)
        causes += listing.count_causes(tx, waiting.row_filter(), _bounds(tx, snapshot, waiting), MAX_COUNTED)
    page.causes = sorted(causes, key=lambda cause: -cause.number)
    page.total = sum(cause.number for cause in causes)
    return True


def _fill_page(filters: ListFilter, limit: int, at_most: int, chunks: Iterator[Chunk]) -> OrphanPage:
    """Return a page of the orphans that pass; it names a next page only if that may have some."""
    page, candidate_ids = OrphanPage(), filters.candidate_id_set()
    for chunk in chunks:
        page.looked_at += chunk.rows
        for orphan in chunk.orphans:
            if not filters.accepts(orphan, candidate_ids):
                continue
            if len(page.orphans) == limit:
                page.after = page.orphans[-1].event_id
                return page
            page.orphans.append(orphan)
        if page.looked_at >= at_most and not chunk.ends:
            page.after = chunk.last
            return page
    return page


def _read_open(tx: Transaction, snapshot: Window, filters: ListFilter, after: str | None, size: int) -> Iterator[Chunk]:
    """Yield chunks of open orphans as stored, the newest first."""
    cursor = _require(listing.find_cursor(tx, after), after) if after else LAST
    row_filter, bounds = filters.row_filter(), _bounds(tx, snapshot, filters)
    for batch_size in _sizes(size + 1):
        # Hardly any may pass, and no index has what is stored.
        with trust_statistics(tx) if row_filter != RowFilter() else nullcontext():
            rows = listing.load_newest(tx, row_filter, bounds, cursor, batch_size)
        if rows:
            cursor = Cursor(rows[-1].arrived_at, rows[-1].event_id)
            existing = [row for row in rows if row.type is not None]  # None if the event was deleted
            yield Chunk([_from_row(tx, row) for row in existing], len(rows), cursor.event_id, len(rows) < batch_size)
        if len(rows) < batch_size:
            return


class NewestOrphans(NamedTuple):
    """The newest open orphans of a search, and their number, which is a lower bound if `at_least` is true."""

    orphans: list[OpenOrphan]
    number: int
    at_least: bool


def find_newest(
    tx: Transaction,
    *,
    recipient: str | None = None,
    message_ids: Collection[str] = (),
    tenant_id: str | None = None,
    limit: int,
    read_limit: int = MAX_COUNTED,
) -> NewestOrphans:
    """Return the open orphans that name one of the message ids or recipients, the newest first.

    States are as they are stored. Of the newest `MAX_WITHOUT_KEYS` orphans, those without stored ids are matched now.

    Args:
        tx: A reading transaction; the adopter's rules must be loaded.
        recipient: A normalized address; orphans about other addresses are left out.
        message_ids: Ids of messages, in each spelling.
        tenant_id: Only this tenant; None is all tenants.
        limit: At most this many are returned.
        read_limit: At most this many of each kind are read.
    """
    unread_ids, all_read = _find_without_keys(tx, recipient, message_ids)
    parameters = {
        "tenant_id": tenant_id,
        "recipient": recipient,
        "message_ids": array_literal(sorted(message_ids)),
        "ids": array_literal(sorted(unread_ids)),
        "grace_seconds": tx.settings.grace_seconds,
        "max_age_minutes": tx.settings.max_age_minutes,
        "most": read_limit,
        "size": limit,
    }
    with trust_statistics(tx):  # a pass over the open orphans
        rows = tx.execute(_NEWEST, parameters).all()
    orphans = [
        OpenOrphan(
            row.event_id,
            row.tenant_id,
            row.provider,
            row.type,
            row.state,
            row.arrived_at,
            tuple(row.candidate_ids),
            expires_at=row.expires_at,
        )
        for row in rows
    ]
    number = rows[0].number if rows else 0
    return NewestOrphans(_with_deliveries(tx, orphans), number, number >= read_limit or not all_read)


def find_by_message(database: Database, message_id: str, *, limit: int) -> NewestOrphans:
    """Return the open orphans that name a message, in any spelling and in all tenants, the newest first."""
    runtime.load_imports(only_warn=True)
    with database.reading(TIMEOUT_MS) as tx:
        return find_newest(tx, message_ids=spellings_of(message_id), limit=limit)


def _find_without_keys(tx: Transaction, recipient: str | None, message_ids: Collection[str]) -> tuple[set[str], bool]:
    """Search the newest orphans without stored ids; return the ids that match, and whether all were read."""
    orphans = load_without_keys(tx)
    wanted_ids = set(message_ids)
    matching = {
        orphan.event_id
        for orphan, keys in orphans
        if (recipient is not None and keys.recipient == recipient) or not wanted_ids.isdisjoint(keys.candidate_ids)
    }
    return matching, len(orphans) < MAX_WITHOUT_KEYS


def load_without_keys(tx: Transaction) -> list[tuple[OrphanRow, Keys]]:
    """Return the newest open orphans without stored keys, at most `MAX_WITHOUT_KEYS`, each with its keys of now."""
    orphans = open_orphans.read(tx.reading, list(tx.execute(_WITHOUT_KEYS, {"size": MAX_WITHOUT_KEYS}).scalars()))
    return list(zip(orphans, matcher.current_keys(tx.reading, orphans), strict=True)) if orphans else []


def _with_deliveries(tx: Transaction, orphans: list[OpenOrphan]) -> list[OpenOrphan]:
    """Return *orphans* with the delivery that each matched one would get now."""
    if not any(orphan.state == MATCHED for orphan in orphans):
        return orphans
    matched = open_orphans.read(tx.reading, [orphan.event_id for orphan in orphans if orphan.state == MATCHED])
    matches = matcher.match_orphans(tx.reading, matched)
    delivery_ids = {match.orphan.event_id: match.result.delivery_id for match in matches}
    return [replace(orphan, delivery_id=delivery_ids.get(orphan.event_id)) for orphan in orphans]


def _bounds(tx: Transaction, snapshot: Window, filters: ListFilter) -> Bounds:
    waiting = None if filters.state is None else filters.state == WAITING
    eligible = (snapshot.after, snapshot.until)
    return listing.compute_bounds(tx, eligible, waiting=waiting, older=filters.older, newer=filters.newer)


def _from_row(tx: Transaction, row: Row) -> OpenOrphan:
    event_id, arrived_at, tenant_id, provider, type_, state, ids = row
    expires_at = times.add_minutes(arrived_at, tx.settings.max_age_minutes)
    return OpenOrphan(
        event_id, tenant_id, provider, type_, state, times.from_postgres(arrived_at), tuple(ids), None, expires_at
    )


def _read_expired(
    tx: Transaction, snapshot: Window, filters: ListFilter, after: str | None, size: int
) -> Iterator[Chunk]:
    """Yield chunks of expired orphans that are not reconciled, by tenant and time."""
    cursor = _require(listing.find_ledger_cursor(tx, after), after) if after else FIRST_OF_LEDGER
    for batch_size in _sizes(size + 1):
        entries = listing.load_expired(
            tx,
            cursor,
            batch_size,
            tenant_id=filters.tenant_id,
            eligible_after=snapshot.after,
            older=filters.older,
            newer=filters.newer,
        )
        if entries:
            cursor = entries[-1].cursor
            unsettled = [entry for entry in entries if not entry.settled]
            types = ledger.load_types(tx, [entry.orphan.event_id for entry in unsettled])
            matches = matcher.match_orphans(tx.reading, [entry.orphan for entry in unsettled])
            orphans = [_to_open_orphan(tx, match, types, EXPIRED) for match in matches]
            yield Chunk(orphans, len(entries), cursor.event_id, len(entries) < batch_size)
        if len(entries) < batch_size:
            return


def _to_open_orphan(tx: Transaction, match: OrphanMatch, types: dict[str, str], state: states.OpenState) -> OpenOrphan:
    orphan, keys = match.orphan, match.keys
    return OpenOrphan(
        orphan.event_id,
        orphan.tenant_id,
        keys.provider,
        types.get(orphan.event_id),
        state,
        times.from_postgres(orphan.arrived_at),
        keys.candidate_ids,
        match.result.delivery_id,
        times.add_minutes(orphan.arrived_at, tx.settings.max_age_minutes),
        match.result.state if state == EXPIRED else None,
    )


def _sizes(size: int) -> Iterator[int]:
    while True:
        yield min(size, MAX_CHUNK)
        size *= 2


def _require(place: P | None, event_id: str) -> P:
    if place is None:
        raise LookupError(f"the ledger has no event {event_id}")
    return place


def count_waiting(database: Database, tenant_id: str | None = None) -> int:
    """Count the open orphans in their grace, of one tenant or, with None, of all."""
    with database.reading() as tx:
        return window.count_waiting(tx, tenant_id)


def break_down(tx: Transaction, groups: Sequence[dict[str, Any]]) -> list[Cause]:
    """Return the groups that a sweep has counted as causes, tenant mismatches with a tenant that has the deliveries.

    The tenant of small groups that were added up is an empty string.
    """
    other_tenants: dict[tuple[str, str | None], str] = {}
    if any(group["state"] == TENANT_MISMATCH for group in groups):
        sample = {"read_at_most": SAMPLED_ORPHANS, "of_each": SAMPLED_OF_EACH}
        for row in tx.execute(_OTHER_TENANTS, sample):
            other_tenants.setdefault((row.tenant_id, row.provider), row.theirs)
    return [
        Cause(
            group["state"],
            group["tenant_id"] or "",
            group["provider"],
            other_tenants.get((group["tenant_id"], group["provider"])) if group["state"] == TENANT_MISMATCH else None,
            group["orphans"],
        )
        for group in groups
    ]


@dataclass(frozen=True, slots=True)
class Orphan:
    """An open orphan.

    Attributes:
        event_id: Its id in the ledger.
        tenant_id: Its tenant.
        arrived_at: When the ledger took it, in UTC.
        provider: Its provider, or None without a usable one.
        candidate_ids: The message ids under which its delivery may be stored, in order.
        recipient: The recipient it is about, if known.
        recipient_lost: True if its recipient is no longer known; then it stays ambiguous.
    """

    event_id: UUID
    tenant_id: str
    arrived_at: dt.datetime
    provider: str | None
    candidate_ids: tuple[str, ...]
    recipient: str | None = field(repr=False)
    recipient_lost: bool = False


def find_orphans(
    connection: sa.Connection | Session,
    *,
    tenant_id: str | None = None,
    limit: int = 100,
) -> list[Orphan]:
    """Return open orphans past the grace and within the maximum age, oldest first; write nothing.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction; its settings are as before afterwards.
        tenant_id: Only this tenant; None is all tenants.
        limit: At most this many.

    Raises:
        MailglassReconcileError: The database refused.
        TypeError: *connection* is something else.
    """
    runtime.load_imports(only_warn=True)
    with use_caller_transaction(connection, runtime.get_settings()) as tx:
        eligible = window.open_window(tx)
        oldest_ids = listing.load_oldest_ids(tx, tenant_id, eligible.after, eligible.until, limit)
        orphans = open_orphans.read(tx.reading, oldest_ids)
        return [_orphan(*pair) for pair in zip(orphans, matcher.current_keys(tx.reading, orphans), strict=True)]


def _orphan(row: OrphanRow, keys: Keys) -> Orphan:
    return Orphan(
        UUID(row.event_id),
        row.tenant_id,
        dt.datetime.fromisoformat(row.arrived_at).replace(tzinfo=dt.UTC),
        keys.provider,
        keys.candidate_ids,
        keys.recipient,
        keys.lost,
    )


def attempt_link(connection: sa.Connection | Session, orphan: Orphan) -> Decision:
    """Preview the link of *orphan*, from `find_orphans`: its delivery, or why it would not link. Nothing is written.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction; its settings are as before afterwards.
        orphan: One that `find_orphans` returned.

    Raises:
        MailglassReconcileError: The database refused.
        TypeError: *connection* is something else.
    """
    runtime.load_imports(only_warn=True)
    keys = Keys(orphan.provider, orphan.candidate_ids, orphan.recipient, lost=orphan.recipient_lost)
    with use_caller_transaction(connection, runtime.get_settings()) as tx:
        return matcher.decide(tx.reading, str(orphan.event_id), orphan.tenant_id, keys)
