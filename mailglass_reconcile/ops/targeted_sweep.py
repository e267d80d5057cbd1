"""A sweep of selected orphans: of one event, or of those that a delivery, a provider and a span of time select."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops import deliveries, explanation, orphans
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.matching import spellings_of
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries.orphan_lists import EXPIRED
from mailglass_reconcile.store.queries.selection import EVERYTHING, OrphanFilter
from mailglass_reconcile.sweep.recent import AHEAD_SECONDS
from mailglass_reconcile.sweep.reconciler import Sweep

PAGE_ORPHANS = 10_000


@dataclass(frozen=True, slots=True)
class Target:
    """The orphans to sweep, including those in their grace.

    Attributes:
        tenant_id: This tenant's only.
        provider: This provider's only, in any spelling.
        max_age_seconds: At most this many seconds old.
        min_age_seconds: At least this many.
        event_id: This event only, of any age; nothing else is set then.
        delivery_id: Only what names this delivery and matches no other, of any age; its tenant is the delivery's.
    """

    tenant_id: str | None = None
    provider: str | None = None
    max_age_seconds: float | None = None
    min_age_seconds: float | None = None
    event_id: UUID | None = None
    delivery_id: UUID | None = None


def prepare(target: Target, limit: int | None = None, *, dry_run: bool = False) -> Sweep:
    """Return a sweep of *target*, not yet begun, on this process's settings and Redis.

    Raises:
        MailglassReconcileError: There is no such delivery, or it has no message id.
    """
    runtime.load_imports(only_warn=dry_run)
    database, tenant_id, orphan_filter = runtime.database(), target.tenant_id, EVERYTHING
    provider = None if target.provider is None else provider_rules.canonical(target.provider)
    event_ids: list[str] = []
    if target.event_id is not None:
        event_ids = [str(target.event_id)]
    elif target.delivery_id is not None:
        tenant_id, message_id = _read_delivery(database, target.delivery_id)
        orphan_filter = OrphanFilter(provider, spellings_of(message_id), str(target.delivery_id))
        event_ids = _find_expired(database, target, tenant_id, message_id)
    else:
        orphan_filter = OrphanFilter(provider)
    oldest = database.settings.max_age_minutes * 60 if target.max_age_seconds is None else target.max_age_seconds
    return Sweep(
        database,
        runtime.create_publisher(),
        kind="targeted",
        tenant_id=tenant_id,
        limit=limit,
        dry_run=dry_run,
        ages=(oldest, -AHEAD_SECONDS if target.min_age_seconds is None else target.min_age_seconds),
        only=orphan_filter,
        event_ids=event_ids,
        origin="command",
    )


def require_linked(sweep: Sweep, target: Target) -> None:
    """Raise an error that says why the one event of a target was not linked."""
    if target.event_id is None or sweep.result.linked or sweep.result.status != "ok":
        return
    event = explanation.explain(sweep.database, target.event_id)
    raise MailglassReconcileError(f"cannot link event {event.event_id} ({event.state}): {event.sentence}")


def _read_delivery(database: Database, delivery_id: UUID) -> tuple[str, str]:
    with database.reading() as tx:
        rows = deliveries.load_deliveries(tx, [str(delivery_id)])
    if not rows:
        raise MailglassReconcileError(f"there is no delivery {delivery_id}")
    if rows[0].message_id is None:
        raise MailglassReconcileError(f"delivery {delivery_id} has no message id")
    return rows[0].tenant_id, rows[0].message_id


def _find_expired(database: Database, target: Target, tenant_id: str, message_id: str) -> list[str]:
    """Return the expired events that match a target's delivery; only the ledger has them."""
    filters = orphans.make_filter(
        state=EXPIRED,
        tenant_id=tenant_id,
        provider=target.provider,
        min_age_seconds=target.min_age_seconds,
        max_age_seconds=target.max_age_seconds,
        message_id=message_id,
    )
    event_ids: list[str] = []
    after: str | None = None
    while True:
        page = orphans.load_page(database, filters, limit=PAGE_ORPHANS, after=after)
        event_ids += [orphan.event_id for orphan in page.orphans if orphan.delivery_id == str(target.delivery_id)]
        after = page.after
        if after is None:
            return event_ids
