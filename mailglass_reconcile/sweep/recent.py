"""The recent sweep: what is new, and what is due again."""

from __future__ import annotations

from mailglass_reconcile import runtime
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.store.runs import Origin
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

LOOK_BACK_SECONDS = 2.0
"""A recent sweep looks at what arrived during the last two seconds, or three ticks if that is longer."""
DUE_AGES = (4, 8, 16, 32, 64, 128, 256)
"""Seconds after its arrival at which a recent sweep looks at an orphan again: at 256, full sweeps have taken over."""
DUE_TICKS = 2
"""So that a tick may come a whole interval late, and nothing that became due meanwhile is missed."""
AHEAD_SECONDS = 300.0
"""How far ahead of the database's clock an arrival may be: the trigger's own tolerance."""
MAX_INTERVAL_SECONDS = 60


def reconcile_recent(interval: float = 1.0, tenant_id: str | None = None) -> SweepResult:
    """Link recent events, even in their grace period, and broadcast each link; return the counts.

    Call it once per *interval*. It checks events when they arrive, and again when they are 4, 8, … 256 seconds old. If
    a call is late or missing, they are checked at the next of these ages, or by the full sweep.

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
    publisher = Publisher(runtime.get_redis())
    database, seconds = runtime.database(), max(LOOK_BACK_SECONDS, interval)  # a burst is left to the next ones
    return Sweep(
        database, publisher, kind="recent", tenant_id=tenant_id, ages=due_ages(interval), seconds=seconds, origin=origin
    )


def due_ages(interval: float) -> list[tuple[float, float]]:
    """Return the ages at which orphans are new or due again, as ranges: the older end, the younger end, in seconds.

    They are disjoint, and the oldest comes first.
    """
    ranges = [(max(LOOK_BACK_SECONDS, 3 * interval), -AHEAD_SECONDS)]
    for age in DUE_AGES:
        older, younger = ranges[-1]
        if age <= older:
            ranges[-1] = (max(older, age + DUE_TICKS * interval), younger)
        else:
            ranges.append((age + DUE_TICKS * interval, age))
    return ranges[::-1]


def require_interval(interval: float) -> None:
    """Refuse an interval, in seconds, that no recent sweep can have."""
    if not 0 < interval <= MAX_INTERVAL_SECONDS:
        raise ValueError(f"the interval of recent sweeps must be above 0 and at most {MAX_INTERVAL_SECONDS} seconds")
