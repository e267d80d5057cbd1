"""A page of orphans, each open one with the state that a sweep would give it; nothing here writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import chunks
from mailglass_reconcile.ops.chunks import Chunk
from mailglass_reconcile.ops.listed import EXPIRED, Filters, Listed
from mailglass_reconcile.store import eligible, schema
from mailglass_reconcile.store.reading import reading

EXAMINED_AT_MOST = 20_000
"""Open orphans that one page compares with deliveries: about a second, however few of them pass its filter."""
READ_AT_MOST = 20_000
"""Orphans of the ledger, reconciled ones too, that one page of expired ones reads."""


class Limits(NamedTuple):
    """Open orphans that are compared with deliveries, rows of the ledger that are read, and open orphans passed over.

    The last of these, if it is a number, is not less than the first. `timeout_ms` is what one statement may take.
    """

    examined: int
    read: int
    span: int | None
    timeout_ms: int = 240_000


QUICK = Limits(2_000, 5_000, 50_000, 10_000)
"""For somebody who waits before a screen: a fifth of a second, also if hardly any of a million orphans pass."""


@dataclass(slots=True)
class Page:
    """Orphans in order, and the event after which the next page begins: None at the end.

    `looked_at` orphans were looked at, of which those in `orphans` pass the filter.
    """

    orphans: list[Listed] = field(default_factory=list)
    after: str | None = None
    looked_at: int = 0


def page(
    engine: sa.Engine,
    filters: Filters,
    *,
    limit: int = 50,
    after: str | None = None,
    newest_first: bool = False,
    quick: bool = False,
) -> Page:
    """Return the next *limit* orphans that pass, in order of arrival; those in their grace are among them.

    A page that has looked at `EXAMINED_AT_MOST` open orphans, or `READ_AT_MOST` rows of the ledger, ends there,
    however few have passed; the next page continues there.

    Args:
        engine: Where the ledger is.
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
    settings = runtime.get_settings()
    limits = QUICK if quick else Limits(EXAMINED_AT_MOST, READ_AT_MOST, None)
    with reading(engine, settings, snapshot=True, probes_only=True, statement_timeout_ms=limits.timeout_ms) as tx:
        survey = eligible.survey(tx, settings)
        schema.require_current(survey.version)
        if filters.state == EXPIRED:
            return _filled(filters, limit, limits.read, chunks.expired_ones(tx, survey, filters, after, limit))
        opened = chunks.open_ones(tx, survey, filters, after, limit, newest_first=newest_first, span=limits.span)
        return _filled(filters, limit, limits.examined, opened)


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
