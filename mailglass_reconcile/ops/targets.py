"""A sweep of what somebody points at: a few orphans, found first, counted, and then linked by the sweep's own batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import database_errors, translated
from mailglass_reconcile.ops import explanation
from mailglass_reconcile.ops.listed import EXPIRED, WAITING, Filters, Listed
from mailglass_reconcile.ops.page import page
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import transaction
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.reading import reading
from mailglass_reconcile.sweep import history, match, report
from mailglass_reconcile.sweep.batch import link_batch
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
        include_expired: Also what is older than the maximum age.
    """

    filters: Filters = field(default_factory=Filters)
    event_id: UUID | None = None
    delivery_id: UUID | None = None
    include_expired: bool = False


def find(engine: sa.Engine, target: Target, limit: int) -> list[Listed]:
    """Return the orphans of *target* that have a delivery by the sweep's rule, in their grace or not; at most *limit*.

    Raises:
        LookupError: There is no such delivery, or no such orphan; the message says what there is instead.
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    if target.event_id is not None:
        return _event(engine, target.event_id, expired=target.include_expired)
    filters = target.filters
    if target.delivery_id is not None:
        filters = _of_delivery(engine, target.delivery_id, filters)
    found: list[Listed] = []
    for state in (None, EXPIRED) if target.include_expired else (None,):
        after: str | None = ""
        while after is not None and len(found) < limit:
            read = page(engine, replace(filters, state=state), limit=MOST, after=after or None)
            found += [one for one in read.orphans if one.delivery_id in _wanted(target, one)]
            after = read.after
    return found[:limit]


def _wanted(target: Target, one: Listed) -> tuple[str, ...]:
    """Return the delivery that an orphan has to have: the target's, or any."""
    if target.delivery_id is not None:
        return (str(target.delivery_id),)
    return (one.delivery_id,) if one.delivery_id else ()


def _event(engine: sa.Engine, event_id: UUID, *, expired: bool) -> list[Listed]:
    known = explanation.explain(engine, event_id)
    state = next((one for one in (match.MATCHED, WAITING, EXPIRED) if one == known.state), None)
    if state is None or known.verdict != match.MATCHED or (state == EXPIRED and not expired):
        raise LookupError(f"event {event_id} is not linked by this: {known.state}; {known.sentence}")
    tenant_id, arrived_at = known.tenant_id or "", known.arrived_at or ""
    ids = tuple(known.candidate_ids)
    return [Listed(known.event_id, tenant_id, known.provider, known.type, state, arrived_at, ids, known.delivery_id)]


def _of_delivery(engine: sa.Engine, delivery_id: UUID, filters: Filters) -> Filters:
    with reading(engine, runtime.get_settings(), probes_only=True) as tx:
        row = tx.execute(_DELIVERY, {"delivery_id": str(delivery_id)}).one_or_none()
    if row is None or row.provider_message_id is None:
        raise LookupError(f"there is no delivery {delivery_id}" if row is None else f"delivery {delivery_id} has no id")
    return replace(filters, tenant_id=row.tenant_id, message_id=row.provider_message_id)


def link(engine: sa.Engine, found: Sequence[Listed], tenant_id: str | None = None) -> SweepResult:
    """Link what `find` has found, broadcast it, and leave a row in the history of runs; *tenant_id* is for its counts.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached; what was committed before stays.
    """
    settings, result, began = runtime.get_settings(), SweepResult(tenant_id=tenant_id), time.monotonic()
    publisher = Publisher(runtime.get_redis())
    as_run = partial(history.run_of, result, "range", "command")
    with report.reported("range", as_run), database_errors(), connect(engine) as connection:
        expired = [one.event_id for one in found if one.state == EXPIRED]
        if expired:
            with transaction(connection, settings) as tx:
                open_orphans.reopen(tx, expired)
        pairs = [(one.event_id, one.delivery_id) for one in found if one.delivery_id]
        for start in range(0, len(pairs), settings.batch_size):
            outcome = link_batch(connection, settings, pairs[start : start + settings.batch_size], lambda: False)
            result.add(outcome, projector.broadcast(outcome.links, publisher.publish))
            if outcome.outage is not None:
                raise translated(outcome.outage)
        result.settle(len(pairs), len(pairs) - result.linked, complete=False)
        result.duration_ms = round((time.monotonic() - began) * 1000)
        history.note(connection, settings, as_run())
    return result
