"""Orphans, for people and applications: a page of a list, those of a message, counts by cause, one by one.

States are those that sweeps and writers have stored; what acts on an orphan matches it now.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.linking import matcher
from mailglass_reconcile.linking.matcher import EventMatch
from mailglass_reconcile.ops import runs
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.matching import MATCHED, TENANT_MISMATCH, Keys, spellings_of
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import STATEMENT_TIMEOUT_MS, Database, Transaction
from mailglass_reconcile.store.queries import orphan_lists, selection
from mailglass_reconcile.store.queries.orphan_lists import EXPIRED, WAITING, Cause, ListedEvent, ListFilter
from mailglass_reconcile.store.queries.selection import NewerOrphans
from mailglass_reconcile.store.tables import open_orphans
from mailglass_reconcile.store.tables.open_orphans import OrphanRow
from mailglass_reconcile.store.tables.runs import OpenGroup

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

LoadEvents = Callable[[Transaction, ListFilter, str | None, int], list[ListedEvent]]

MAX_CHUNK = 2_000
MAX_WITHOUT_KEYS = 2_000
"""Among so many newest open orphans, those that no sweep has checked are matched now."""
TIMEOUT_MS = 24_000
SAMPLED_ORPHANS = 5_000
"""The newest open orphans, among which tenant mismatches are looked for."""
SAMPLED_OF_EACH = 5
"""Orphans of each tenant and provider that are read, and ids and deliveries of each orphan."""

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
 CROSS JOIN LATERAL (SELECT tenant_id, provider FROM {schema}.mailglass_deliveries
                      WHERE hashtextextended(provider_message_id, 0) = hashtextextended(i.candidate_id, 0)
                        AND provider_message_id = i.candidate_id LIMIT :of_each) AS d
 WHERE s.place <= :of_each AND d.tenant_id <> s.tenant_id
   AND coalesce(CAST(:spellings AS jsonb) ->> lower(btrim(d.provider)), lower(btrim(d.provider)), s.provider)
       = s.provider
 ORDER BY 1, 2, 3
"""


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
        at_least: True if the numbers are lower bounds, because only `Limits.most_counted` orphans were read.
    """

    orphans: list[ListedEvent] = field(default_factory=list)
    after: str | None = None
    looked_at: int = 0
    as_of: str | None = None
    causes: list[Cause] = field(default_factory=list)
    total: int | None = None
    at_least: bool = False


def make_filter(
    *, provider: str | None = None, recipient: str | None = None, message_id: str | None = None, **exact: Any
) -> ListFilter:
    """Return a filter for lists: a provider, a recipient and a message id select theirs in any spelling."""
    return ListFilter(
        **exact,
        provider=provider_rules.canonical(provider) if provider else None,
        recipient=normalize_address(recipient) if recipient else None,
        message_ids=None if message_id is None else spellings_of(message_id),
    )


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
    listed only if the filter asks for them: they are matched now, and come tenant by tenant, the oldest first. With a
    filter by type, a page ends after it has read `Limits.most_orphans_read` open orphans or `Limits.most_events_read`
    rows of the ledger, even if it is not full.

    With *with_counts*, all orphans that pass are counted by cause: from the counts of the last full sweep if they can
    answer the filter, else now, in one pass. A filter by type, which only the ledger has, and expired orphans are not
    counted.

    Raises:
        LookupError: The ledger has no event *after*, after which the page begins.
    """
    runtime.load_imports(only_warn=True)
    with database.reading(timeout_ms) as tx:
        installed.require_migrated(tx)
        if after and not orphan_lists.has_event(tx, after):
            raise LookupError(f"the ledger has no event {after}")
        if filters.state == EXPIRED:
            return _fill_page(tx, filters, limit, after, _load_expired, tx.limits.most_events_read)
        max_ages = (60 * tx.settings.max_age_minutes, filters.max_age_seconds)
        filters = replace(filters, max_age_seconds=min(age for age in max_ages if age is not None))
        page = _fill_page(tx, filters, limit, after, orphan_lists.load_newest, tx.limits.most_orphans_read)
        page.orphans = _match(tx, page.orphans)
        history = runs.load_history(tx)
        page.as_of = history.counted_at
        if with_counts and filters.type is None:
            causes = _count_by_last_sweep(tx, history.groups, filters)
            most = tx.limits.most_counted
            page.causes = orphan_lists.count_causes(tx, filters, most) if causes is None else causes
            page.total = sum(cause.number for cause in page.causes)
            page.at_least = causes is None and page.total >= most
        return page


def _count_by_last_sweep(
    tx: Transaction, groups: Sequence[OpenGroup] | None, filters: ListFilter
) -> list[Cause] | None:
    """Return the counts of the last full sweep, if they can answer the filter.

    They can for state, tenant and provider, at a cost that does not depend on what is open; orphans in their grace are
    counted now.
    """
    if groups is None or filters != ListFilter(
        filters.state, filters.tenant_id, filters.provider, max_age_seconds=60 * tx.settings.max_age_minutes
    ):
        return None
    if filters.tenant_id and any(group["tenant_id"] is None for group in groups):  # small groups were added up
        return None
    passing = [
        group
        for group in groups
        if filters.state in (None, group["state"])
        and filters.tenant_id in (None, group["tenant_id"])
        and filters.provider in (None, group["provider"])
    ]
    causes = break_down(tx, passing)
    if filters.state in (None, WAITING):
        causes += orphan_lists.count_causes(tx, replace(filters, state=WAITING), tx.limits.most_counted)
    return sorted(causes, key=lambda cause: -cause.number)


def _fill_page(
    tx: Transaction, filters: ListFilter, limit: int, after: str | None, load: LoadEvents, read_limit: int
) -> OrphanPage:
    """Return a page of the orphans that pass; it names a next page only if that may have some."""
    page, size = OrphanPage(), limit + 1
    while True:
        chunk = load(tx, filters, after, size := min(size, MAX_CHUNK))
        page.looked_at += len(chunk)
        for orphan in filter(filters.accepts, chunk):
            if len(page.orphans) == limit:
                page.after = page.orphans[-1].event_id
                return page
            page.orphans.append(orphan)
        if len(chunk) < size:
            return page
        after, size = chunk[-1].event_id, 2 * size
        if page.looked_at >= read_limit:
            page.after = after
            return page


def _load_expired(tx: Transaction, filters: ListFilter, after: str | None, size: int) -> list[ListedEvent]:
    return _match(tx, orphan_lists.load_expired(tx, filters, after, size))


def _match(tx: Transaction, events: list[ListedEvent]) -> list[ListedEvent]:
    """Return *events*, the matched and the expired ones with the ids and the delivery of now."""
    event_ids = [event.event_id for event in events if event.state in (MATCHED, EXPIRED)]
    if not event_ids:
        return events
    matches = matcher.match_orphans(tx.reading, open_orphans.read_of_any_age(tx.reading, event_ids))
    matches_by_id = {match.orphan.event_id: match for match in matches}
    return [
        replace(
            event,
            provider=match.keys.provider,
            candidate_ids=match.keys.candidate_ids,
            delivery_id=match.result.delivery_id,
            verdict=match.result.state if event.state == EXPIRED else None,
        )
        if (match := matches_by_id.get(event.event_id))
        else event
        for event in events
    ]


class NewestOrphans(NamedTuple):
    """The newest open orphans of a search, and their number, which is a lower bound if `at_least` is true."""

    orphans: list[ListedEvent]
    number: int
    at_least: bool


def find_newest(
    tx: Transaction,
    *,
    recipient: str | None = None,
    message_ids: Collection[str] = (),
    tenant_id: str | None = None,
    limit: int,
    read_limit: int | None = None,
) -> NewestOrphans:
    """Return the open orphans that name one of the message ids or the recipient, the newest first.

    States are as they are stored. Of the newest `MAX_WITHOUT_KEYS` orphans, those without stored ids are matched now.

    Args:
        tx: A reading transaction; the adopter's rules must be loaded.
        recipient: A normalized address; orphans about other addresses are left out.
        message_ids: Ids of messages, in each spelling.
        tenant_id: Only this tenant; None is all tenants.
        limit: At most this many are returned.
        read_limit: At most this many are counted; None is `Limits.most_counted`.
    """
    read_limit = read_limit or tx.limits.most_counted
    unread_ids, all_read = _find_without_keys(tx, recipient, message_ids)
    selections = [
        ListFilter(
            tenant_id=tenant_id,
            message_ids=frozenset(message_ids),
            event_ids=unread_ids,
            unknown_recipient=recipient is not None,
        )
    ]
    if recipient is not None:
        selections.append(ListFilter(tenant_id=tenant_id, recipient=recipient))
    orphans: list[ListedEvent] = []
    number = 0
    for filters in selections:
        newest = orphan_lists.load_newest(tx, filters, None, limit + 1)
        orphans += [orphan for orphan in newest if orphan.type is not None]
        causes = orphan_lists.count_causes(tx, filters, read_limit) if len(newest) > limit else []
        number += sum(cause.number for cause in causes) or len(newest)
    orphans.sort(key=lambda orphan: (orphan.arrived_at.removesuffix("Z"), orphan.event_id), reverse=True)
    return NewestOrphans(_match(tx, orphans[:limit]), number, number >= read_limit or not all_read)


def find_by_message(database: Database, message_id: str, *, limit: int) -> NewestOrphans:
    """Return the open orphans that name a message, in any spelling and in all tenants, the newest first."""
    runtime.load_imports(only_warn=True)
    with database.reading(TIMEOUT_MS) as tx:
        return find_newest(tx, message_ids=spellings_of(message_id), limit=limit)


def _find_without_keys(
    tx: Transaction, recipient: str | None, message_ids: Collection[str]
) -> tuple[frozenset[str], bool]:
    """Search the newest orphans without stored ids; return the ids that match, and whether all were read."""
    orphans = load_without_keys(tx)
    wanted_ids = set(message_ids)
    matching_ids = frozenset(
        orphan.event_id
        for orphan, keys in orphans
        if (recipient is not None and keys.recipient == recipient) or not wanted_ids.isdisjoint(keys.candidate_ids)
    )
    return matching_ids, len(orphans) < MAX_WITHOUT_KEYS


def load_without_keys(tx: Transaction) -> list[tuple[OrphanRow, Keys]]:
    """Return the newest open orphans without stored keys, at most `MAX_WITHOUT_KEYS`, each with its keys of now."""
    orphans = open_orphans.read(tx.reading, list(tx.execute(_WITHOUT_KEYS, {"size": MAX_WITHOUT_KEYS}).scalars()))
    return list(zip(orphans, matcher.current_keys(tx.reading, orphans), strict=True)) if orphans else []


def load_newer(database: Database, covered_until: str, tenant_id: str | None = None) -> NewerOrphans:
    """Return what has arrived after the window of a sweep and is open, of one tenant or, with None, of all."""
    with database.reading() as tx:
        return selection.load_newer(tx, covered_until, tenant_id)


def break_down(tx: Transaction, groups: Sequence[OpenGroup]) -> list[Cause]:
    """Return the groups that a sweep has counted as causes, tenant mismatches with a tenant that has the deliveries.

    The tenant of small groups that were added up is an empty string.
    """
    other_tenants: dict[tuple[str | None, str | None], str] = {}
    if any(group["state"] == TENANT_MISMATCH for group in groups):
        sample = {
            "read_at_most": SAMPLED_ORPHANS,
            "of_each": SAMPLED_OF_EACH,
            "spellings": provider_rules.spellings_as_json(),
        }
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
    """An open event that a sweep would check, with its recipient.

    Attributes:
        event_id: Its id in the ledger.
        tenant_id: Its tenant.
        arrived_at: When it arrived, in UTC.
        provider: Its provider, or None without a usable one.
        candidate_ids: The message ids under which its delivery may be stored, in order.
        recipient: Its recipient, if known.
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
    """Return the open events that a full sweep would check, the newest first.

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
        eligible = ListFilter(
            tenant_id=tenant_id,
            min_age_seconds=tx.settings.grace_seconds,
            max_age_seconds=60 * tx.settings.max_age_minutes,
        )
        newest = orphan_lists.load_newest(tx, eligible, None, limit)
        orphans = open_orphans.read(tx.reading, [orphan.event_id for orphan in newest if orphan.type is not None])
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


def attempt_link(connection: sa.Connection | Session, orphan: Orphan) -> EventMatch:
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
        return matcher.match_event(tx.reading, str(orphan.event_id), orphan.tenant_id, keys)
