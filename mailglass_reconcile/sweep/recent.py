"""The recent sweep: it links events that arrived during the last minute."""

from __future__ import annotations

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import InvalidArgumentError
from mailglass_reconcile.store.tables.runs import Origin
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

LOOK_BACK_SECONDS = 60.0
"""A recent sweep matches events that arrived during the last minute, or three intervals if that is longer."""
LEAST_SECONDS = 2.0
"""The time limit of a recent sweep, unless its interval is longer."""
AHEAD_SECONDS = 300.0
"""An arrival may be this far ahead of the database's clock; the trigger has the same tolerance."""
MAX_INTERVAL_SECONDS = 60


def reconcile_recent(interval: float = 1.0, tenant_id: str | None = None) -> SweepResult:
    """Link recent events, even in their grace period, and broadcast each link; return the counts.

    Call it once per *interval*. Each call checks what arrived during the last minute, or during three intervals if that
    is longer, the newest first; of what was checked before, at most 2,000 events.

    Args:
        interval: Seconds between two calls, above 0 and at most 60.
        tenant_id: Only this tenant; None is all tenants.

    Returns:
        The counts. After two seconds, or the interval if that is longer, it ends as `partial`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a privilege or the schema is wrong.
        ValueError: *interval* is out of bounds.
    """
    return prepare(interval, tenant_id).run()


def prepare(interval: float, tenant_id: str | None = None, *, origin: Origin = "python") -> Sweep:
    """Return a recent sweep, not yet begun; `reconcile_recent` describes it."""
    require_interval(interval)
    runtime.load_imports()
    publisher = runtime.create_publisher()
    database, seconds = runtime.database(), max(LEAST_SECONDS, interval)  # a burst is left to the next ones
    ages = (max(LOOK_BACK_SECONDS, 3 * interval), -AHEAD_SECONDS)
    return Sweep(database, publisher, kind="recent", tenant_id=tenant_id, ages=ages, seconds=seconds, origin=origin)


def require_interval(interval: float) -> None:
    """Refuse an interval, in seconds, that no recent sweep can have."""
    if not 0 < interval <= MAX_INTERVAL_SECONDS:
        raise InvalidArgumentError(
            f"the interval of recent sweeps must be above 0 and at most {MAX_INTERVAL_SECONDS} seconds"
        )
