"""Orphans chunk by chunk, each chunk twice as large as the one before, for pages that a few of them fill."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from mailglass_reconcile.ops.listed import EXPIRED, NAMING, WAITING, Filters, Listed
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.rules.states import OpenState
from mailglass_reconcile.store import expired, listing
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.eligible import Survey
from mailglass_reconcile.store.listing import Wanted
from mailglass_reconcile.store.model import Open, Place
from mailglass_reconcile.sweep import examination, match

logger = logging.getLogger(__name__)

P = TypeVar("P")

CHUNK_AT_MOST = 2_000


class Chunk(NamedTuple):
    """The next orphans, how many rows it took to find them, and the event of the last of those."""

    listed: list[Listed]
    rows: int
    last: str


def open_ones(
    tx: Transaction,
    survey: Survey,
    filters: Filters,
    after: str | None,
    size: int,
    *,
    newest_first: bool,
    span: int | None = None,
) -> Iterator[Chunk]:
    """Yield open orphans in order of arrival, each examined as a sweep does; the filter is narrowed down, not applied.

    With *span*, the last chunk may have no orphan: so many rows of the table were passed over, and there are more.

    Raises:
        LookupError: The ledger has no event *after*.
    """
    wanted = _wanted(filters)
    waiting = None if filters.state is None else filters.state == WAITING
    eligible = (survey.after, survey.until)
    within = listing.bounds(tx, eligible, waiting=waiting, older=filters.older, newer=filters.newer)
    place = listing.LAST if newest_first else listing.FIRST
    if after:
        place = _known(listing.place_of(tx, after), after)
    for number in _sizes(size):
        began = place
        rows = listing.next_open(tx, wanted, within, began, number, newest_first=newest_first, span=span)
        if rows:
            place = Place(rows[-1].arrived_at, rows[-1].event_id)
            yield Chunk(_examined(tx, rows, raw_webhooks=survey.raw_webhooks), len(rows), place.event_id)
        if len(rows) < number:
            end = listing.ahead(tx, within, began, span, newest_first=newest_first) if span else None
            if end:
                yield Chunk([], (span or 0) - len(rows), end.event_id)
            return


def expired_ones(tx: Transaction, survey: Survey, filters: Filters, after: str | None, size: int) -> Iterator[Chunk]:
    """Yield orphans of the ledger that nothing has reconciled and that are too old, by tenant and time.

    Raises:
        LookupError: The ledger has no event *after*.
    """
    place = _known(expired.place_of(tx, after), after) if after else expired.FIRST
    for number in _sizes(size):
        rows = expired.next_ones(
            tx,
            place,
            number,
            tenant_id=filters.tenant_id,
            eligible_after=survey.after,
            older=filters.older,
            newer=filters.newer,
        )
        if rows:
            place = expired.LedgerPlace(rows[-1].tenant_id, rows[-1].arrived_at, rows[-1].event_id)
            unsettled = [row for row in rows if not row.settled]
            yield Chunk(_expired(tx, unsettled, raw_webhooks=survey.raw_webhooks), len(rows), place.event_id)
        if len(rows) < number:
            return


def _wanted(filters: Filters) -> Wanted:
    rules, any_provider = examination.marks()
    return Wanted(
        filters.tenant_id,
        providers.canonical(filters.provider) if filters.provider else None,
        filters.type,
        filters.ids(),
        filters.state in NAMING,
        filters.state == match.UNMATCHABLE,
        {any_provider, *rules.values()},
        any_provider,
        [provider for provider, mark in rules.items() if mark != any_provider],
    )


def _sizes(size: int) -> Iterator[int]:
    while True:
        yield min(size, CHUNK_AT_MOST)
        size *= 2


def _known(place: P | None, event_id: str) -> P:
    if place is None:
        raise LookupError(f"the ledger has no event {event_id}")
    return place


def _examined(tx: Transaction, rows: Sequence[sa.Row[Any]], *, raw_webhooks: bool) -> list[Listed]:
    found = examination.examine(tx, [_open(row) for row in rows], raw_webhooks=raw_webhooks, complain=logger.error)
    return [
        _listed(row, one.keys, WAITING if row.waiting else one.verdict.state, one.verdict.delivery_id)
        for row, one in zip(rows, found, strict=True)
    ]


def _expired(tx: Transaction, rows: Sequence[sa.Row[Any]], *, raw_webhooks: bool) -> list[Listed]:
    if not rows:
        return []
    found = examination.examine(tx, [_open(row) for row in rows], raw_webhooks=raw_webhooks, complain=logger.error)
    return [_listed(row, one.keys, EXPIRED, one.verdict.delivery_id) for row, one in zip(rows, found, strict=True)]


def _open(row: sa.Row[Any]) -> Open:
    known = Keys(row.provider, tuple(row.ids), row.recipient, row.rule, row.recipient_lost)
    # Without ids, they are computed.
    known = known if examination.is_current(known) else known._replace(candidate_ids=())
    return Open(row.event_id, row.tenant_id, row.arrived_at, known)


def _listed(row: sa.Row[Any], its: Keys, state: OpenState, delivery_id: str | None) -> Listed:
    at = row.at if row.at.endswith("infinity") else f"{row.at}Z"
    return Listed(row.event_id, row.tenant_id, its.provider, row.type, state, at, its.candidate_ids, delivery_id)
