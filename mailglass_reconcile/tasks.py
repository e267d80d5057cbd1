"""The Celery tasks, and what a worker does for them: warnings at its start, connections after a fork, time limits.

`shared_task` puts the tasks into whichever app the process has.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mailglass_reconcile import pubsub, runtime, telemetry
from mailglass_reconcile.errors import MailglassReconcileError, database_errors
from mailglass_reconcile.handlers import dispatcher, registration
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.rules.humanize import pluralize, sanitize_tenant
from mailglass_reconcile.schedule import (
    DISPATCH_EXPIRES_SECONDS,
    DISPATCH_TASK,
    ORIGIN_HEADER,
    PRUNE_EXPIRES_SECONDS,
    PRUNE_TASK,
    RECENT_EXPIRES_SECONDS,
    RECENT_TASK,
    SWEEP_TASK,
    warn_without_celery,
)
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.runs import Kind, Origin, Run
from mailglass_reconcile.store.window import Range
from mailglass_reconcile.sweep import ranges, recent, reconciler, run_log
from mailglass_reconcile.sweep.interruption import ended_by
from mailglass_reconcile.sweep.reconciler import Sweep

try:
    from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
    from celery import Task, current_task, shared_task
    from celery.signals import celeryd_after_setup, worker_process_init, worker_process_shutdown

    from mailglass_reconcile.singleton.task import Hold, SweepTask
except ModuleNotFoundError as error:
    warn_without_celery()
    raise ImportError(
        f"mailglass_reconcile.tasks needs Celery and celery-singleton: {error}", name=error.name
    ) from error

logger = logging.getLogger(__name__)
celerys_logger = logging.getLogger("celery.app.trace")

DISPATCH_SECONDS = 20
"""After this, a task begins no other batch: slow handlers do not fill the worker, and the next task continues."""


@shared_task(bind=True, base=SweepTask, name=SWEEP_TASK, throws=(MailglassReconcileError,))
def reconcile(
    self: SweepTask,
    tenant_id: str | None = None,
    limit: int | None = None,
    fan_out: int | None = None,
    after: str | None = None,
    until: str | None = None,
) -> dict[str, Any]:
    """Sweep, unless the same sweep is queued or running.

    Args:
        self: The task.
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many.
        fan_out: If more orphans than this are eligible, cut them into ranges of arrival with about this many each,
            and send a task for each range. Not with a limit, and not in eager mode.
        after: Sweep only what arrived after this time, in UTC, as Postgres writes it.
        until: Sweep only what arrived until this time.

    Returns:
        The counts of `SweepResult`, or `{"status": "duplicate", "of": <task id>}`. After a soft time limit, the
        counts of what was committed until then, as `partial`. After a fan-out `{"status": "fanned_out", "eligible": …,
        "tasks": [<task id>, …]}`: the counts of these tasks add up to what one sweep would return.

    Raises:
        TypeError: An argument is of another type.
        ValueError: *limit* or *fan_out* is below 1.
        MailglassReconcileError: Nothing was swept.
    """
    with _faults_on_one_line(SWEEP_TASK):
        self.arguments((tenant_id, limit, fan_out, after, until))
        bounds = (after, until)
        with self.held() as hold:
            if hold.duplicate_of is not None:
                return _duplicate(hold.duplicate_of, "full" if bounds == (None, None) else "range", tenant_id)
            if fan_out is not None and hold.key is not None and (limit, *bounds) == (None, None, None):
                eligible, parts = ranges.cut(runtime.database(), tenant_id, fan_out)
                if parts:
                    return _send(hold, tenant_id, eligible, parts)
            registration.register_before_sweep(runtime.database())
            sweep = reconciler.prepare(tenant_id, limit, bounds=bounds, range_of=self.range_of_run, origin=_origin())
            with _ended_by_soft_limit(sweep):
                sweep.run()
        return _reported(sweep)


class _TaskForNow(Task):
    """A task whose requests expire, except for those that are made for later."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if options.get("countdown") or options.get("eta"):
            options.setdefault("expires", None)
        return super().apply_async(args, kwargs, **options)


@shared_task(
    base=_TaskForNow,
    name=RECENT_TASK,
    ignore_result=True,
    expires=RECENT_EXPIRES_SECONDS,
    throws=(MailglassReconcileError,),
)
def reconcile_recent(interval: float = 1.0, tenant_id: str | None = None) -> dict[str, Any]:
    """Sweep what arrived lately; takes no lock, because any number may run at once.

    Args:
        interval: Seconds between two such sweeps, above 0 and at most 60.
        tenant_id: Sweep this tenant's orphans only; None is all tenants.

    Returns:
        The counts of `SweepResult`, which are ignored unless the caller asks for them (`ignore_result=False`).

    Raises:
        ValueError: *interval* is out of bounds.
        MailglassReconcileError: Nothing was swept.
    """
    with _faults_on_one_line(RECENT_TASK, once=True):
        sweep = recent.prepare(interval, tenant_id, origin=_origin())
        with _ended_by_soft_limit(sweep):
            sweep.run()
        return _reported(sweep)


@shared_task(base=_TaskForNow, name=PRUNE_TASK, expires=PRUNE_EXPIRES_SECONDS, throws=(MailglassReconcileError,))
def prune() -> dict[str, Any]:
    """Delete what its retention has outlived, expire old orphans, repair the table of open orphans.

    That is raw webhooks, events, deliveries, finished rows of the outbox and old runs. Return the fields of
    `PruneResult`.
    """
    with _faults_on_one_line(PRUNE_TASK):
        return pruner.prune_with(runtime.database(), _origin()).as_dict()


@shared_task(
    base=_TaskForNow,
    name=DISPATCH_TASK,
    ignore_result=True,
    expires=DISPATCH_EXPIRES_SECONDS,
    throws=(MailglassReconcileError,),
)
def dispatch() -> dict[str, int]:
    """Run this worker's handlers on the events that are due; return the counts of `DispatchResult`, which are ignored
    unless the caller asks for them (`ignore_result=False`).
    """
    with _faults_on_one_line(DISPATCH_TASK):
        return dispatcher.dispatch_within(DISPATCH_SECONDS, _origin()).as_dict()


def ask_for_dispatch() -> None:
    """Run the handlers of what a sweep has linked now; a broker that is down is not an error."""
    try:
        dispatch.apply_async(retry=False)
    except Exception as error:  # any error of a broker's client
        logger.warning("handlers run at the next dispatch: the broker took no task (%s)", type(error).__name__)


def _reported(sweep: Sweep) -> dict[str, Any]:
    """Ask for the handlers of what a sweep linked, and return its counts as a task's result."""
    if sweep.handed_over:
        ask_for_dispatch()
    result = sweep.result
    return {**result.as_dict(), "tenant_id": result.shown_tenant}


def _duplicate(of: str, kind: Kind, tenant_id: str | None) -> dict[str, Any]:
    """Report a sweep that another task makes already, and return its result."""
    telemetry.count_sweep("duplicate")
    _note(Run(kind, _origin(), sanitize_tenant(tenant_id), "duplicate"))
    return {"status": "duplicate", "of": of}


def _send(hold: Hold, tenant_id: str | None, eligible: int, parts: Sequence[Range]) -> dict[str, Any]:
    """Send a task for each range of a full sweep, and return its result."""
    calls = [{"tenant_id": tenant_id, "after": part.after, "until": part.until} for part in parts]
    # Before its ranges run, which add their counts to this row.
    run_id = _note(Run("full", _origin(), sanitize_tenant(tenant_id), remaining=0, ranges=len(parts)))
    tasks = reconcile.send_ranges(hold, calls, run_id)
    logger.info("cut %s into %s, a task for each", pluralize(eligible, "open orphan"), pluralize(len(tasks), "range"))
    return {"status": "fanned_out", "eligible": eligible, "tasks": tasks}


def _origin() -> Origin:
    """Return who asked for the running task: beat, as its entries say, or another caller."""
    headers = (current_task.request.headers if current_task else None) or {}  # none if it is called as a function
    return "beat" if headers.get(ORIGIN_HEADER) == "beat" else "call"


def _note(run: Run) -> int | None:
    """Leave a row in the history of runs, and return its id; a database that is down now costs that row only."""
    try:
        with runtime.database().connect() as connected:
            return run_log.note(connected, run)
    except MailglassReconcileError as error:
        logger.warning("this sweep is missing from the history of runs: %s", error)
        return None


_last_faults: dict[str, str] = {}
"""What each task that runs all the time has said last, until it works again."""


@contextmanager
def _faults_on_one_line(task_name: str, *, once: bool = False) -> Iterator[None]:
    """Log an error of ours as one line if Celery will not: it logs what a task `throws` at the level INFO.

    With *once*, an error that lasts is logged once by each process.
    """
    try:
        yield
    except MailglassReconcileError as error:
        known = once and _last_faults.get(task_name) == str(error)
        if not known and not celerys_logger.isEnabledFor(logging.INFO):
            logger.error("%s did nothing: %s", task_name, error)
        _last_faults[task_name] = str(error)
        raise
    _last_faults.pop(task_name, None)


@contextmanager
def _ended_by_soft_limit(sweep: Sweep) -> Iterator[None]:
    """Let a soft time limit end *sweep*: at once while it reads, after the batch while it links, and as `partial`."""
    if signal.getsignal(SIG_SOFT_TIMEOUT) is not soft_timeout_sighandler:  # only prefork has limits
        yield
        return
    with ended_by(SIG_SOFT_TIMEOUT, sweep) as interruption:
        yield
    if interruption.came:
        logger.warning("the soft time limit ended a sweep; what was committed until then stays")
        sweep.counters.complete = False


@worker_process_init.connect
def _forget_the_parents_connections(**unused: Any) -> None:
    runtime.after_fork()


@worker_process_shutdown.connect
def _flush(**unused: Any) -> None:
    pubsub.flush()  # billiard ends a child without Python's exit handlers


@celeryd_after_setup.connect
def _warn_of_what_is_missing(instance: Any, **unused: Any) -> None:
    """Say so if a worker starts that leaves one of our tasks out, or that consumes one and cannot run it."""
    app = instance.app
    consumed = app.amqp.queues.consume_from
    names = (SWEEP_TASK, PRUNE_TASK, *([DISPATCH_TASK] if handlers.types() else []))
    queues = {name: app.amqp.router.route({}, name).get("queue") for name in names}
    for name, queue in queues.items():
        if queue is not None and queue.name not in consumed:
            logger.warning("this worker does not consume %r, the queue of %s: some worker has to", queue.name, name)
    if any(queue is None or queue.name in consumed for queue in queues.values()):
        _warn_of_the_database()


def _warn_of_the_database() -> None:
    try:
        with database_errors(), connect(runtime.get_engine()) as connection:
            try:
                with Connected(connection, runtime.get_settings()).reading() as tx:
                    schema.require_migrated(tx)
            finally:
                connection.invalidate()  # a fork would share what an application's pool kept open
    except MailglassReconcileError as error:
        logger.warning("this worker cannot sweep yet: %s", error)
