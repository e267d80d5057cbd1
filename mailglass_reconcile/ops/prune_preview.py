"""A dry run of a prune: the number of rows that each step would change, and the oldest of them.

Each statement has the predicate of the step itself, a function of the schema or a statement beside the step's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mailglass_reconcile.mailglass_compat import raw_webhooks
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.tables import handler_jobs, retention

TIMEOUT_MS = 240_000

_EXPIRED = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(arrived_at)) AS oldest
  FROM {schema}.mailglass_open_orphans
 WHERE {schema}.mailglass_reconcile_is_expired_v1(arrived_at, CAST(:max_age_minutes AS integer))
"""

_SETTLED = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(o.arrived_at)) AS oldest
  FROM {schema}.mailglass_open_orphans AS o
 WHERE NOT {schema}.mailglass_reconcile_is_expired_v1(o.arrived_at, CAST(:max_age_minutes AS integer))
   AND EXISTS (SELECT FROM {schema}.mailglass_reconcile_settled_v1(o.event_id, o.tenant_id) OFFSET 0)
"""

# OFFSET 0, here and below, so that tenants come first: with stale statistics, the rest looks like a single row.
_MISSING = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(a.arrived_at)) AS oldest
  FROM {schema}.mailglass_reconcile_tenants_of_orphans_v1(CAST('' AS text)) AS t
 CROSS JOIN LATERAL (
         SELECT id, tenant_id, inserted_at FROM {schema}.mailglass_events
          WHERE tenant_id = t.tenant_id AND needs_reconciliation = true AND delivery_id IS NULL
            AND inserted_at >= now()::timestamp - make_interval(days => 1, mins => :max_age_minutes)
         OFFSET 0) AS e
 CROSS JOIN LATERAL {schema}.mailglass_reconcile_arrival_of_v1(e.id, e.inserted_at) AS a
 WHERE NOT {schema}.mailglass_reconcile_is_expired_v1(a.arrived_at, CAST(:max_age_minutes AS integer))
   AND EXISTS (SELECT FROM {schema}.mailglass_reconcile_missing_v1(e.id, e.tenant_id) OFFSET 0)
"""

# At most: those of a delivery stay if one of them is newer, or if a handler waits for one.
_EVENTS = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(e.inserted_at)) AS oldest
  FROM {schema}.mailglass_events AS e
 WHERE {schema}.mailglass_reconcile_is_old_event_v1(e.id, e.inserted_at, CAST(:days AS integer))
"""

# At most: those with an event that stays, stay.
_DELIVERIES = """
SELECT count(*) AS rows, {schema}.mailglass_reconcile_iso_v1(min(d.inserted_at)) AS oldest
  FROM {schema}.mailglass_reconcile_senders_v1(CAST('' AS text), CAST('' AS text)) AS s
 CROSS JOIN LATERAL (
         SELECT inserted_at FROM {schema}.mailglass_deliveries
          WHERE tenant_id = s.tenant_id AND coalesce(provider, '') = s.provider
            AND {schema}.mailglass_reconcile_is_old_delivery_v1(inserted_at, last_event_at, CAST(:days AS integer))
         OFFSET 0) AS d
"""

_FUNCTIONS = {"events": retention.EVENTS, "deliveries": retention.DELIVERIES}
"""The functions that delete, by which the tables' owner limits what other roles may delete."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The rows that one step of a prune would change.

    Attributes:
        step: The step, as the fields of `PruneResult` name it.
        rows: The number of rows to delete or, for `added`, to add.
        oldest: The oldest of them, in ISO 8601, UTC; None if there are none.
        days: The retention in days; None if the step has none, or if it is not set.
        is_kept: True if nothing is deleted because the retention is not set.
        at_most: True if fewer may be deleted: events and deliveries that something newer needs stay.
        refused: The reason why a prune by this role would delete none, with the remedy; None if it may.
    """

    step: str
    rows: int
    oldest: str | None
    days: int | None
    is_kept: bool
    at_most: bool
    refused: str | None = None


def preview(database: Database) -> list[Preview]:
    """Count the rows that each step of a prune would change now, in order."""
    max_age = {"max_age_minutes": database.settings.max_age_minutes}
    with database.reading(TIMEOUT_MS) as tx:
        installed.require_migrated(tx)
        days = pruner.retention_days(database.settings, made_by_mailglass=installed.is_made_by_mailglass(tx))
        webhooks = (
            (status, raw_webhooks.COUNT_OLD, {"status": status, "days": days[status]})
            for status in ("succeeded", "dead", "failed")
        )
        steps: list[tuple[str, str, Mapping[str, Any]]] = [
            *webhooks,
            ("jobs_done", handler_jobs.COUNT_OLD, {"state": "done", "days": days["jobs_done"]}),
            ("jobs_dead", handler_jobs.COUNT_OLD, {"state": "dead", "days": days["jobs_dead"]}),
            ("expired", _EXPIRED, max_age),
            ("settled", _SETTLED, max_age),
            ("added", _MISSING, max_age),
            ("events", _EVENTS, {"days": days["events"]}),
            ("deliveries", _DELIVERIES, {"days": days["deliveries"]}),
        ]
        return [_count(tx, *step) for step in steps]


def _count(tx: Transaction, step: str, statement: str, parameters: Mapping[str, Any]) -> Preview:
    days = parameters.get("days")
    if "days" in parameters and days is None:
        return Preview(step, 0, None, None, is_kept=True, at_most=False)
    rows, oldest = tx.execute(statement, parameters).one()
    if step not in _FUNCTIONS:
        return Preview(step, rows, oldest, days, is_kept=False, at_most=False)
    problem = retention.find_problem(tx, _FUNCTIONS[step], parameters["days"])
    refused = None if problem is None else str(problem)
    return Preview(step, rows, oldest, days, is_kept=False, at_most=rows > 0, refused=refused)
