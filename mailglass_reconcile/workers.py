"""What a Celery worker does beside the tasks: warnings at its start, connections after a fork, soft time limits."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
from celery.signals import celeryd_after_setup, worker_process_init

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError, database_errors
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.schedule import DISPATCH_TASK, PRUNE_TASK, SWEEP_TASK
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.sweep.reconciler import Sweep

logger = logging.getLogger(__name__)


class _SoftLimit(KeyboardInterrupt):
    """The soft time limit, as psycopg takes it: it cancels its statement and leaves a usable connection.

    Celery's own exception would leave a statement running; the failure to roll back would then take its place, and
    be retried as a lost connection.
    """


@contextmanager
def ended_by_soft_limit(sweep: Sweep) -> Iterator[None]:
    """Let a soft time limit end *sweep*: at once while it reads, after the batch while it links, and as `partial`."""
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
def _warn_of_what_is_missing(instance: Any, **unused: Any) -> None:
    """Say so if a worker starts that leaves one of our tasks out, or that consumes one and cannot run it."""
    app = instance.app
    consumed = app.amqp.queues.consume_from
    names = (SWEEP_TASK, PRUNE_TASK, *([DISPATCH_TASK] if _has_hooks() else []))
    queues = {name: app.amqp.router.route({}, name).get("queue") for name in names}
    for name, queue in queues.items():
        if queue is not None and queue.name not in consumed:
            logger.warning("this worker does not consume %r, the queue of %s: some worker has to", queue.name, name)
    if any(queue is None or queue.name in consumed for queue in queues.values()):
        _warn_of_the_database()


def _has_hooks() -> bool:
    try:
        return bool(handlers.recorded_types(runtime.get_settings().hook_types))
    except MailglassReconcileError:  # the warning of the database names the setting
        return False


def _warn_of_the_database() -> None:
    try:
        with database_errors(), connect(runtime.get_engine()) as connection:
            try:
                with Connected(connection, runtime.get_settings()).reading() as tx:
                    schema.require_current(tx.execute(schema.READ_VERSION).scalar_one())
            finally:
                connection.invalidate()  # a fork would share what an application's pool kept open
    except MailglassReconcileError as error:
        logger.warning("this worker cannot sweep yet: %s", error)
