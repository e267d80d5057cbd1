"""Orphans to look at: pages of them with the state that a sweep would give each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from mailglass_reconcile import runtime
from mailglass_reconcile.rules import providers, states
from mailglass_reconcile.rules.matching import (
    AMBIGUOUS,
    MATCHED,
    RECIPIENT_MISMATCH,
    TENANT_MISMATCH,
    UNMATCHABLE,
    spellings_of,
)
from mailglass_reconcile.store import ledger, listing, open_orphans, windows
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.listing import FIRST_OF_LEDGER, Entry, Wanted
from mailglass_reconcile.store.open_orphans import FIRST, LAST, Place
from mailglass_reconcile.store.windows import Survey
from mailglass_reconcile.sweep import judge
from mailglass_reconcile.sweep.judge import Judged

P = TypeVar("P", Place, listing.LedgerPlace)

WAITING: Final = "waiting"
EXPIRED: Final = "expired"
NAMING = (MATCHED, AMBIGUOUS, TENANT_MISMATCH, RECIPIENT_MISMATCH)
"""States of orphans with an id that names a delivery, of any tenant."""

CHUNK_AT_MOST = 2_000
JUDGED_AT_MOST = 20_000
"""Open orphans that one page compares with deliveries: about a second, however few of them pass its filter."""
READ_AT_MOST = 20_000
"""Orphans of the ledger, reconciled ones too, that one page of expired ones reads."""


class Limits(NamedTuple):
    """Open orphans that are compared with deliveries, rows of the ledger that are read, and open orphans passed over.

    The last of these, if it is a number, is not less than the first. `timeout_ms` is what one statement may take.
    """

    judged: int
    read: int
    span: int | None
    timeout_ms: int = 240_000


QUICK = Limits(2_000, 5_000, 50_000, 10_000)
"""For a person at a screen: a fifth of a second, even if hardly any of a million orphans pass."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which orphans to list; None is all that are not expired.

    Attributes:
        state: One of `states.OPEN_STATES`; `expired` lists those of the ledger, tenant by tenant.
        tenant_id: The tenant.
        provider: The provider, in any spelling.
        type: The event's type.
        older: At least this many seconds since it arrived.
        newer: At most this many.
        message_id: A message id, in any spelling, among its candidate ids.
    """

    state: str | None = None
    tenant_id: str | None = None
    provider: str | None = None
    type: str | None = None
    older: float | None = None
    newer: float | None = None
    message_id: str | None = None

    def ids(self) -> frozenset[str] | None:
        """Return the candidate ids of which an orphan must have one, or None."""
        return None if self.message_id is None else spellings_of(self.message_id)

    def accept(self, one: Listed, ids: frozenset[str] | None) -> bool:
        """Whether an orphan passes, with its state and its keys as they are now; *ids* are those of `ids()`."""
        return (
            self.state in (None, one.state)
            and self.type in (None, one.type)
            and (self.provider is None or one.provider == providers.canonical(self.provider))
            and (ids is None or not ids.isdisjoint(one.candidate_ids))
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """An orphan of a page; `arrived_at` in ISO 8601, UTC; `delivery_id` is what the next sweep would link it to."""

    event_id: str
    tenant_id: str
    provider: str | None
    type: str | None
    state: states.OpenState
    arrived_at: str
    candidate_ids: tuple[str, ...]
    delivery_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `orphans --json` prints them."""
        return asdict(self)


@dataclass(slots=True)
class Page:
    """Orphans in order, and the event after which the next page begins: None at the end.

    `looked_at` orphans were looked at; those in `orphans` pass the filter.
    """

    orphans: list[Listed] = field(default_factory=list)
    after: str | None = None
    looked_at: int = 0


class Chunk(NamedTuple):
    """The next orphans, how many rows it took to find them, and the event of the last of those."""

    listed: list[Listed]
    rows: int
    last: str


def page(
    database: Database,
    filters: Filters,
    *,
    limit: int = 50,
    after: str | None = None,
    newest_first: bool = False,
    quick: bool = False,
) -> Page:
    """Return the next *limit* orphans that pass, in order of arrival; those in their grace are among them.

    A page that has judged `JUDGED_AT_MOST` open orphans, or read `READ_AT_MOST` rows of the ledger, ends there,
    however few have passed; the next page continues there.

    Args:
        database: Where the ledger is.
        filters: Which ones.
        limit: At most this many.
        after: The id of the event after which to begin.
        newest_first: Whether the one that arrived last comes first; not for expired ones.
        quick: Whether it ends earlier, as `QUICK` says.

    Raises:
        LookupError: The ledger has no event *after*.
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    runtime.load_imports(to_read=True)
    limits = QUICK if quick else Limits(JUDGED_AT_MOST, READ_AT_MOST, None)
    with database.reading(limits.timeout_ms) as tx:
        survey = windows.survey(tx)
        if filters.state == EXPIRED:
            return _filled(filters, limit, limits.read, _expired(tx, survey, filters, after, limit))
        opened = _open(tx, survey, filters, after, limit, newest_first=newest_first, span=limits.span)
        return _filled(filters, limit, limits.judged, opened)


def _filled(filters: Filters, limit: int, at_most: int, read: Iterator[Chunk]) -> Page:
    found, ids = Page(), filters.ids()
    for chunk in read:
        found.looked_at += chunk.rows
        for one in chunk.listed:
            if filters.accept(one, ids):
                found.orphans.append(one)
            if len(found.orphans) == limit:
                found.after = one.event_id
                return found
        if found.looked_at >= at_most:
            found.after = chunk.last
            return found
    return found


def _open(
    tx: Transaction,
    survey: Survey,
    filters: Filters,
    after: str | None,
    size: int,
    *,
    newest_first: bool,
    span: int | None,
) -> Iterator[Chunk]:
    """Yield open orphans in order of arrival, judged as a sweep does; the filter is narrowed down, not applied.

    With *span*, the last chunk may have no orphan: so many rows of the table were passed over, and there are more.
    """
    wanted = Wanted(
        filters.tenant_id,
        providers.canonical(filters.provider) if filters.provider else None,
        filters.type,
        filters.ids(),
        filters.state in NAMING,
        filters.state == UNMATCHABLE,
    )
    waiting = None if filters.state is None else filters.state == WAITING
    eligible = (survey.afters[0], survey.untils[-1])
    within = listing.bounds(tx, eligible, waiting=waiting, older=filters.older, newer=filters.newer)
    place = LAST if newest_first else FIRST
    if after:
        place = _known(listing.place_of(tx, after), after)
    for number in _sizes(size):
        began = place
        entries = listing.next_open(tx, wanted, within, began, number, newest_first=newest_first, span=span)
        if entries:
            place = entries[-1].place
            yield Chunk(_judged(tx, entries), len(entries), place.event_id)
        if len(entries) < number:
            end = listing.ahead(tx, within, began, span, newest_first=newest_first) if span else None
            if end:
                yield Chunk([], (span or 0) - len(entries), end.event_id)
            return


def _expired(tx: Transaction, survey: Survey, filters: Filters, after: str | None, size: int) -> Iterator[Chunk]:
    """Yield orphans of the ledger that nothing has reconciled and that are too old, by tenant and time."""
    place = _known(listing.ledger_place_of(tx, after), after) if after else FIRST_OF_LEDGER
    for number in _sizes(size):
        entries = listing.next_expired(
            tx,
            place,
            number,
            tenant_id=filters.tenant_id,
            eligible_after=survey.afters[0],
            older=filters.older,
            newer=filters.newer,
        )
        if entries:
            place = entries[-1].place
            left = [one for one in entries if not one.settled]
            types = ledger.types_of(tx, [one.orphan.event_id for one in left])
            found = judge.judge(tx, [one.orphan for one in left])
            listed = [_listed(each, types, EXPIRED, one.at) for each, one in zip(found, left, strict=True)]
            yield Chunk(listed, len(entries), place.event_id)
        if len(entries) < number:
            return


def _judged(tx: Transaction, entries: list[Entry]) -> list[Listed]:
    known = {one.event_id: one for one in entries}
    types = ledger.types_of(tx, known)  # one whose event is gone has none
    return [
        _listed(one, types, WAITING if entry.waiting else one.verdict.state, entry.at)
        for one in judge.judge(tx, open_orphans.read(tx, [one for one in known if one in types]))
        for entry in [known[one.orphan.event_id]]
    ]


def _listed(one: Judged, types: dict[str, str], state: states.OpenState, at: str) -> Listed:
    orphan, its = one.orphan, one.keys
    arrived_at = at if at.endswith("infinity") else f"{at}Z"
    return Listed(
        orphan.event_id,
        orphan.tenant_id,
        its.provider,
        types.get(orphan.event_id),
        state,
        arrived_at,
        its.candidate_ids,
        one.verdict.delivery_id,
    )


def _sizes(size: int) -> Iterator[int]:
    while True:
        yield min(size, CHUNK_AT_MOST)
        size *= 2


def _known(place: P | None, event_id: str) -> P:
    if place is None:
        raise LookupError(f"the ledger has no event {event_id}")
    return place
