"""The Celery tasks; `shared_task` puts them into whichever app the process has."""

from __future__ import annotations

import logging
from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import celeryd_after_setup, worker_process_init

from mailglass_reconcile import runtime
from mailglass_reconcile.lock import SweepTask
from mailglass_reconcile.schedule import PRUNE_EXPIRES_SECONDS, PRUNE_TASK, SWEEP_EXPIRES_SECONDS, SWEEP_TASK

logger = logging.getLogger(__name__)


@shared_task(bind=True, base=SweepTask, name=SWEEP_TASK, expires=SWEEP_EXPIRES_SECONDS)
def reconcile(self: SweepTask, tenant_id: str | None = None, limit: int | None = None) -> dict[str, Any]:
    """Sweep, unless the same sweep is queued or running.

    Args:
        self: The task.
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many.

    Returns:
        The counts of `SweepResult`, or `{"status": "duplicate", "of": <task id>}`. After a soft time limit, the
        counts of what was committed until then, as `partial`.

    Raises:
        TypeError: An argument is of another type.
        MailglassReconcileError: Nothing was swept.
    """
    if not isinstance(tenant_id, str | None) or not isinstance(limit, int | None) or isinstance(limit, bool):
        raise TypeError("tenant_id must be a text and limit an integer, or None")
    with self.held() as holder:
        if holder != self.request.id:
            return {"status": "duplicate", "of": holder}
        sweep = runtime.sweep(tenant_id, limit)
        try:
            sweep.run(runtime.get_engine())
        except SoftTimeLimitExceeded:
            logger.warning("the soft time limit ended a sweep; what was committed until then stays")
            sweep.result.status = "partial"
        return sweep.result.as_dict()


@shared_task(name=PRUNE_TASK, expires=PRUNE_EXPIRES_SECONDS)
def prune() -> dict[str, int]:
    """Delete old raw webhooks, and mend the open set; return the counts of `PruneResult`."""
    return runtime.prune().as_dict()


@worker_process_init.connect
def _forget_the_parents_connections(**unused: Any) -> None:
    runtime.after_fork()


@celeryd_after_setup.connect
def _warn_of_queues_without_consumer(instance: Any, **unused: Any) -> None:
    """Say so where a worker starts that leaves one of our tasks out: nobody else may consume its queue."""
    app = instance.app
    consumed = app.amqp.queues.consume_from
    for name in (SWEEP_TASK, PRUNE_TASK):
        queue = app.amqp.router.route({}, name)["queue"].name
        if queue not in consumed:
            logger.warning("this worker does not consume %r, the queue of %s: some worker has to", queue, name)
