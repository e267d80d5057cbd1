"""The recent sweep: links within a second or so what arrived lately, without keeping any state between its ticks."""

from __future__ import annotations

from mailglass_reconcile import runtime
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.runs import Origin
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

MAX_INTERVAL_SECONDS = 60


def reconcile_recent(interval: float = 1.0, tenant_id: str | None = None) -> SweepResult:
    """Link what arrived lately, in its grace period or not, and broadcast each link; return the counts.

    Call it once per *interval*. It looks at the orphans that arrived during the last two seconds, or three intervals
    if that is longer, and at those that have just become 4, 8, … 256 seconds old. If a call
    comes late or not at all, its orphans wait for the next power of two, or for the full sweep.

    Args:
        interval: Seconds between two calls, above 0 and at most 60.
        tenant_id: Sweep this tenant's orphans only; None is all tenants.

    Returns:
        The counts of what was looked at. After two seconds, or the interval if that is longer, it ends as `partial`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a right or the schema is wrong.
        ValueError: *interval* is out of bounds.
    """
    return prepare(interval, tenant_id).run(runtime.get_engine())


def prepare(
    interval: float,
    tenant_id: str | None = None,
    *,
    settings: Settings | None = None,
    publisher: Publisher | None = None,
    origin: Origin = "python",
) -> Sweep:
    """Return a recent sweep, not yet begun; `reconcile_recent` says what it does.

    Args:
        interval: Seconds between two recent sweeps.
        tenant_id: As for `reconcile_recent`.
        settings: Those of this process if None, which are read again each time.
        publisher: One of this process's Redis if None.
        origin: Who asked for it, for the history of runs.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        ValueError: *interval* is out of bounds.
    """
    require_interval(interval)
    runtime.load_imports()
    return Sweep(
        settings or runtime.get_settings(),
        publisher or Publisher(runtime.get_redis()),
        tenant_id=tenant_id,
        recent=interval,
        origin=origin,
    )


def require_interval(interval: float) -> None:
    """Refuse an interval, in seconds, that no recent sweep can have.

    Raises:
        ValueError: It is not above 0, or above 60.
    """
    if not 0 < interval <= MAX_INTERVAL_SECONDS:
        raise ValueError(f"the interval of recent sweeps must be above 0 and at most {MAX_INTERVAL_SECONDS} seconds")
