"""The history of runs, page by page, and who holds the lock of sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops import history
from mailglass_reconcile.store.database import Database, Transaction

if TYPE_CHECKING:
    from mailglass_reconcile.singleton.lock import Holder

TIMEOUT_MS = 10_000

# A full sweep that was cut into ranges has their counts once they have ended. A recent sweep that found nothing to do,
# and a dispatch, which is noted once an hour, say no more than that they run.
_RUNS = """
SELECT r.id, to_json(r.started_at) #>> '{}' || 'Z' AS started_at, to_json(r.finished_at) #>> '{}' || 'Z' AS finished_at,
       r.kind, r.origin, r.tenant_id,
       CASE WHEN r.ranges_done < r.ranges THEN 'partial' ELSE r.status END AS status, r.error, r.runs, r.scanned,
       r.linked, r.unmatched, r.unmatchable, r.ambiguous, r.tenant_mismatch, r.recipient_mismatch, r.skipped, r.failed,
       r.published, r.publish_failed, r.expired, r.events, r.deliveries, r.duration_ms, r.remaining,
       r.ranges, r.ranges_done
  FROM {schema}.mailglass_reconcile_runs AS r
 WHERE r.id < coalesce(CAST(:before AS bigint), 9223372036854775807)
   AND (CAST(:kind AS text) IS NULL OR r.kind = :kind) AND (CAST(:status AS text) IS NULL OR r.status = :status)
   AND (:idle OR r.kind NOT IN ('recent', 'dispatch') OR r.status <> 'ok' OR r.linked > 0 OR r.failed > 0)
 ORDER BY r.id DESC LIMIT :size
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs to list.

    Attributes:
        kind: Of this kind; None is all.
        status: That ended so; None is all.
        idle: Also recent sweeps that had nothing to link, and dispatches.
    """

    kind: str | None = None
    status: str | None = None
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Runs:
    """Some runs, the newest first; `before` is where the next page begins, None at the end."""

    runs: list[dict[str, Any]]
    before: int | None


@dataclass(frozen=True, slots=True)
class LockState:
    """Who holds the lock of the sweeps of all tenants, None if it is free; or why it could not be read.

    `not_configured`: this process has no Redis of its own to ask, and none answers at the default address.
    """

    holder: Holder | None = None
    fault: str | None = None
    not_configured: bool = False


def page(database: Database, wanted: Wanted, *, before: int | None = None, size: int = 50) -> Runs:
    """Return the next *size* runs before the one with the id *before*, or the newest."""
    with database.reading(TIMEOUT_MS) as tx:
        found = newest(tx, wanted, before=before, size=size + 1)
    return Runs(found[:size], found[size - 1]["id"] if len(found) > size else None)


def newest(tx: Transaction, wanted: Wanted, *, before: int | None = None, size: int) -> list[dict[str, Any]]:
    asked = {"kind": wanted.kind, "status": wanted.status, "idle": wanted.idle, "before": before, "size": size}
    return [dict(row) for row in tx.execute(_RUNS, asked).mappings()]


def sweep_lock() -> LockState:
    """Return who holds the lock of the sweeps of all tenants."""
    from mailglass_reconcile.singleton.lock import sweep_holder  # noqa: PLC0415 - loading Redis takes a tenth of a second

    try:
        return LockState(sweep_holder())
    except MailglassReconcileError as error:
        return LockState(fault=str(error), not_configured=not runtime.redis_was_chosen())


def last_success(database: Database) -> dict[str, str]:
    """Return when a run of each kind last ended well, in ISO 8601."""
    with database.reading(TIMEOUT_MS) as tx:
        return history.read(tx).last_success
