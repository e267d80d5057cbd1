"""A dry run of a prune: the number of rows that each step would change, and the oldest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mailglass_reconcile.ops import pruner
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.open_orphans import MAX_TENANT_LENGTH

TIMEOUT_MS = 240_000

_WEBHOOKS = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(inserted_at)) FROM {schema}.mailglass_webhook_events
 WHERE status = :status AND inserted_at < now()::timestamp - make_interval(days => :days)
"""

_JOBS = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(finished_at)) FROM {schema}.mailglass_handler_outbox
 WHERE state = :state AND finished_at < now()::timestamp - make_interval(days => :days)
"""

_EXPIRED = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(arrived_at)) FROM {schema}.mailglass_open_orphans
 WHERE arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes)
"""

_SETTLED = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(o.arrived_at)) FROM {schema}.mailglass_open_orphans AS o
 WHERE o.arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
   AND (EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(o.event_id, o.tenant_id) OFFSET 0)
        OR NOT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = o.event_id OFFSET 0))
"""

_MISSING = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(e.inserted_at))
  FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1('') AS t
  JOIN {schema}.mailglass_events AS e
    ON e.tenant_id = t.tenant_id AND e.needs_reconciliation = true
   AND e.inserted_at > now()::timestamp - make_interval(mins => :max_age_minutes)
 WHERE e.delivery_id IS NULL AND length(e.tenant_id) <= :max_tenant_length
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans WHERE event_id = e.id OFFSET 0)
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id) OFFSET 0)
"""

# At most: those of a delivery stay if one of them is newer, or if a handler waits for one.
_EVENTS = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(e.inserted_at))
  FROM {schema}.mailglass_reconcile_tenants_of_events_v1('') AS t
  JOIN {schema}.mailglass_events AS e
    ON e.tenant_id = t.tenant_id AND e.inserted_at < now()::timestamp - make_interval(days => :days)
"""

# At most: those with an event that stays, stay.
_DELIVERIES = """
SELECT count(*), {schema}.mailglass_reconcile_iso_v1(min(d.last_event_at))
  FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1('') AS t
  JOIN {schema}.mailglass_deliveries AS d
    ON d.tenant_id = t.tenant_id AND d.last_event_at < now()::timestamp - make_interval(days => :days)
   AND d.inserted_at < now()::timestamp - make_interval(days => :days)
"""


@dataclass(frozen=True, slots=True)
class Preview:
    """The rows that one step of a prune would change.

    Attributes:
        step: The step, as the fields of `PruneResult` name it.
        rows: The number of rows to delete or, for `added`, to add.
        oldest: The oldest of them, in ISO 8601, UTC; None if there are none.
        days: The retention in days; None if the step has none, or if nothing is deleted because it is not set.
        at_most: True if fewer may be deleted: events and deliveries that something newer needs stay.
    """

    step: str
    rows: int
    oldest: str | None
    days: int | None
    at_most: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `prune --dry-run --json` prints them."""
        return asdict(self)


def preview(database: Database) -> list[Preview]:
    """Count the rows that each step of a prune would change now, in order."""
    settings = database.settings
    bounds = {"max_age_minutes": settings.max_age_minutes}
    with database.reading(TIMEOUT_MS) as tx:
        schema.require_migrated(tx)
        days = pruner.retention_days(settings, made_by_mailglass=schema.is_made_by_mailglass(tx))
        return [
            *(_count_old(tx, name, _WEBHOOKS, days, status=name) for name in ("succeeded", "dead", "failed")),
            _count_old(tx, "jobs_done", _JOBS, days, state="done"),
            _count_old(tx, "jobs_dead", _JOBS, days, state="dead"),
            _count(tx, "expired", _EXPIRED, bounds),
            _count(tx, "settled", _SETTLED, bounds),
            _count(tx, "added", _MISSING, {**bounds, "max_tenant_length": MAX_TENANT_LENGTH}),
            _count_old(tx, "events", _EVENTS, days, at_most=True),
            _count_old(tx, "deliveries", _DELIVERIES, days, at_most=True),
        ]


def _count_old(
    tx: Transaction,
    step: str,
    statement: str,
    days: Mapping[str, int | None],
    *,
    at_most: bool = False,
    **parameters: str,
) -> Preview:
    if days[step] is None:
        return Preview(step, 0, None, None, at_most=False)
    rows, oldest = tx.execute(statement, {"days": days[step], **parameters}).one()
    return Preview(step, rows, oldest, days[step], at_most=at_most and rows > 0)


def _count(tx: Transaction, step: str, statement: str, parameters: Mapping[str, Any]) -> Preview:
    rows, oldest = tx.execute(statement, parameters).one()
    return Preview(step, rows, oldest, None, at_most=False)
