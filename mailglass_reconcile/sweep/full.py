"""The full sweep: over all that is eligible, or a part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailglass_reconcile import runtime
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.store.runs import Origin
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult


def prepare(
    tenant_id: str | None = None,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    bounds: tuple[str | None, str | None] = (None, None),
    progress: Callable[[SweepResult], None] | None = None,
    origin: Origin = "python",
    would_link: Callable[[Sequence[tuple[str, str]]], None] | None = None,
) -> Sweep:
    """Return a sweep, not yet begun, on this process's settings and Redis; `reconcile` and `Sweep` say the arguments.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        ValueError: *limit* is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    runtime.load_imports(to_read=dry_run)
    return Sweep(
        runtime.get_settings(),
        Publisher(runtime.get_redis()),
        tenant_id=tenant_id,
        limit=limit,
        dry_run=dry_run,
        bounds=bounds,
        progress=progress,
        origin=origin,
        would_link=would_link,
    )


def reconcile(tenant_id: str | None = None, limit: int | None = None) -> SweepResult:
    """Link every eligible orphan whose delivery is there, and broadcast each link; return the counts.

    Takes no lock: any number of sweeps may run at once, in any number of processes.

    Args:
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many; the rest stays open.

    Returns:
        The counts. A sweep that broke off half-way says so in its `status`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a right or the schema is wrong.
        ValueError: *limit* is below 1.
    """
    return prepare(tenant_id, limit).run(runtime.get_engine())
