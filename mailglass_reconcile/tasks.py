"""The Celery tasks; `shared_task` puts them into whichever app the process has."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.schedule import (
    PRUNE_TASK,
    SWEEP_TASK,
    warn_without_celery,
)
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.reconciler import Sweep

try:
    from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
    from celery import shared_task
    from celery.signals import celeryd_after_setup, worker_process_init

    from mailglass_reconcile.singleton.task import SweepTask
except ModuleNotFoundError as error:
    warn_without_celery()
    raise ImportError(
        f"mailglass_reconcile.tasks needs Celery and celery-singleton: {error}", name=error.name
    ) from error

logger = logging.getLogger(__name__)


@shared_task(bind=True, base=SweepTask, name=SWEEP_TASK)
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
    self.generate_lock(self.name, (tenant_id, limit))
    with self.held() as other:
        if other is not None:
            return {"status": "duplicate", "of": other}
        sweep = reconciler.prepare(tenant_id, limit)
        with _ended_by_soft_limit(sweep):
            sweep.run(runtime.get_engine())
        return sweep.result.as_dict()


@shared_task(name=PRUNE_TASK)
def prune() -> dict[str, int]:
    """Delete old raw webhooks, and mend the open set; return the counts of `PruneResult`."""
    return pruner.prune().as_dict()


class _SoftLimit(KeyboardInterrupt):
    """The soft time limit, as psycopg takes it: it cancels its statement and leaves a usable connection.

    Celery's own exception would leave a statement running; the failure to roll back would then take its place, and
    be retried as a lost connection.
    """


@contextmanager
def _ended_by_soft_limit(sweep: Sweep) -> Iterator[None]:
    """Let a soft time limit end *sweep*: at once where it reads, after the batch where it links, and as `partial`."""
    if signal.getsignal(SIG_SOFT_TIMEOUT) is not soft_timeout_sighandler:  # only prefork has soft limits
        yield
        return
    reached = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal reached
        reached = True
        sweep.stop()
        if not sweep.in_batch:
            raise _SoftLimit

    try:
        signal.signal(SIG_SOFT_TIMEOUT, end)
        yield
    except _SoftLimit:
        pass
    finally:
        signal.signal(SIG_SOFT_TIMEOUT, soft_timeout_sighandler)
    if reached:
        logger.warning("the soft time limit ended a sweep; what was committed until then stays")
        sweep.result.status = "partial"


@worker_process_init.connect
def _forget_the_parents_connections(**unused: Any) -> None:
    runtime.after_fork()


@celeryd_after_setup.connect
def _warn_of_queues_without_consumer(instance: Any, **unused: Any) -> None:
    """Say so where a worker starts that leaves one of our tasks out: nobody else may consume its queue."""
    app = instance.app
    consumed = app.amqp.queues.consume_from
    for name in (SWEEP_TASK, PRUNE_TASK):
        queue = app.amqp.router.route({}, name).get("queue")
        if queue is not None and queue.name not in consumed:
            logger.warning("this worker does not consume %r, the queue of %s: some worker has to", queue.name, name)
