"""A sweep of selected orphans: a few, found first, counted, and then linked by the sweep's own batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from uuid import UUID

from mailglass_reconcile import runtime
from mailglass_reconcile.mailglass_compat import unchecked_links
from mailglass_reconcile.ops import explanation, orphans
from mailglass_reconcile.ops.orphans import EXPIRED, WAITING, Filters, OpenOrphan
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.listing import NO_KEYS
from mailglass_reconcile.store.open_orphans import Open
from mailglass_reconcile.sweep.counters import SweepCounters
from mailglass_reconcile.sweep.matcher import judge, unchecked
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

MOST = 10_000

_DELIVERY = """
SELECT tenant_id, provider_message_id FROM {schema}.mailglass_deliveries WHERE id = CAST(:delivery_id AS uuid)
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What to link: everything that passes *filters*, or one event, or what belongs to one delivery.

    Attributes:
        filters: As for a page of orphans.
        event_id: This event only.
        delivery_id: Only what would be linked to this delivery.
    """

    filters: Filters = field(default_factory=Filters)
    event_id: UUID | None = None
    delivery_id: UUID | None = None


def find(database: Database, target: Target, limit: int) -> list[OpenOrphan]:
    """Return the orphans of *target* that have a delivery by the sweep's rule, at most *limit*.

    Those in their grace are among them; of one event or one delivery, those that have expired too.
    """
    if target.event_id is not None:
        return _event(database, target.event_id)
    filters = target.filters
    if target.delivery_id is not None:
        filters = _of_delivery(database, target.delivery_id, filters)
    listed = orphans.judged_now(database, filters)
    if target.delivery_id is not None:
        listed = chain(listed, _expired(database, filters))
    wanted = None if target.delivery_id is None else str(target.delivery_id)
    return list(islice((one for one in listed if one.delivery_id and wanted in (None, one.delivery_id)), limit))


def _expired(database: Database, filters: Filters) -> Iterator[OpenOrphan]:
    after = None
    while True:
        read = orphans.page(database, replace(filters, state=EXPIRED), limit=MOST, after=after)
        yield from read.orphans
        after = read.after
        if after is None:
            return


def _event(database: Database, event_id: UUID) -> list[OpenOrphan]:
    known = explanation.explain(database, event_id)
    state = next((one for one in (MATCHED, WAITING, EXPIRED) if one == known.state), None)
    if state is None or known.verdict != MATCHED:
        raise LookupError(f"cannot link event {event_id} ({known.state}): {known.sentence}")
    tenant_id, arrived_at = known.tenant_id or "", known.arrived_at or ""
    ids = tuple(known.candidate_ids)
    return [
        OpenOrphan(known.event_id, tenant_id, known.provider, known.type, state, arrived_at, ids, known.delivery_id)
    ]


def _of_delivery(database: Database, delivery_id: UUID, filters: Filters) -> Filters:
    with database.reading() as tx:
        row = tx.execute(_DELIVERY, {"delivery_id": str(delivery_id)}).one_or_none()
    if row is None or row.provider_message_id is None:
        raise LookupError(f"there is no delivery {delivery_id}" if row is None else f"delivery {delivery_id} has no id")
    return replace(filters, tenant_id=row.tenant_id, message_id=row.provider_message_id)


def would_link(database: Database, found: Sequence[OpenOrphan], tenant_id: str | None = None) -> SweepResult:
    """Return the counts that `link` would have, and write nothing."""
    with database.reading() as tx:
        its = {one.event_id: one for one in open_orphans.read(tx, [one.event_id for one in found])}
        unread = {one.event_id: Open(one.event_id, one.tenant_id, one.arrived_at, 0, NO_KEYS) for one in found}
        noted = unchecked(judge(tx, list((unread | its).values())))
        number = unchecked_links.of_other_writers(tx, noted)
    counters = SweepCounters(tenant_id, dry_run=True)
    counters.would_link(len(found), number)
    counters.complete = True
    return counters.result()


def link(database: Database, found: Sequence[OpenOrphan], tenant_id: str | None = None) -> SweepResult:
    """Link what `find` has found, broadcast it, and note it in the history of runs; *tenant_id* is for the counts."""
    sweep = Sweep(
        database,
        Publisher(runtime.get_redis()),
        kind="targeted",
        tenant_id=tenant_id,
        event_ids=[one.event_id for one in found],
        origin="command",
    )
    with database.connect() as connected:
        expired = [one.event_id for one in found if one.state == EXPIRED]
        if expired:
            with connected.writing() as tx:
                open_orphans.reopen(tx, expired)
        return sweep.run(nullcontext(connected))
