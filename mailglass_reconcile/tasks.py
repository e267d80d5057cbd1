"""The Celery tasks, and their hooks in a worker: warnings at startup, connections after a fork, time limits.

`shared_task` puts the tasks into whichever app the process has.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mailglass_reconcile import runtime, telemetry
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
    find_queues,
    warn_without_celery,
)
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.queries.selection import Range
from mailglass_reconcile.store.tables.runs import RUNNING_APP, CeleryApp, Origin, Run, RunKind
from mailglass_reconcile.sweep import ranges, recent, reconciler, run_log
from mailglass_reconcile.sweep.interruption import stop_on_signal
from mailglass_reconcile.sweep.reconciler import Sweep

try:
    from celery import Task, current_task, shared_task
    from celery.schedules import maybe_schedule
    from celery.signals import beat_init, celeryd_after_setup, worker_process_init

    from mailglass_reconcile.singleton.task import LockLease, SweepTask, bind_arguments, options_of_queue
except ModuleNotFoundError as error:
    warn_without_celery()
    raise ImportError(
        f"mailglass_reconcile.tasks needs Celery and celery-singleton: {error}", name=error.name
    ) from error

logger = logging.getLogger(__name__)
celerys_logger = logging.getLogger("celery.app.trace")

DISPATCH_SECONDS = 20
"""After this, a task starts no further batch, so that slow handlers do not occupy the worker; the next task
continues."""


class _CheckedTask(Task):
    """A task that checks its arguments, which `celery call` sends unchecked, and logs an error of ours as one line.

    With *per_outage*, each process logs a repeated error once, until the task succeeds.
    """

    abstract = True
    per_outage = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            return self._run_checked(super().__call__, args, kwargs)
        token = RUNNING_APP.set(CeleryApp(self.app.main or "?", _seconds_until_next(self)))
        try:
            return self._run_checked(self.run, args, kwargs)
        finally:
            RUNNING_APP.reset(token)

    def _run_checked(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _log_error(self.name, per_outage=self.per_outage):
            bind_arguments(self.run, args, kwargs)
            return run(*args, **kwargs)


def _seconds_until_next(task: Task) -> int | None:
    """Return the seconds until the app's schedule starts the next full sweep; None if that cannot be known.

    If it has entries for the queue of this run, the others are for workers of other databases.
    """
    if task.name != SWEEP_TASK:
        return None
    app, queue = task.app, (task.request.delivery_info or {}).get("routing_key")
    try:
        entries = [entry for entry in app.conf.beat_schedule.values() if entry.get("task") == SWEEP_TASK]
        of_queue = [entry for entry in entries if (entry.get("options") or {}).get("queue") == queue]
        schedules = [entry["schedule"] for entry in of_queue or entries]
        waits = [maybe_schedule(when, app=app).remaining_estimate(app.now()) for when in schedules]
        return math.ceil(float(min(waits).total_seconds()))
    except Exception:  # no entry, or an error of an application's own schedule
        return None


class _CheckedSweepTask(_CheckedTask, SweepTask):
    """A sweep that checks its arguments."""

    abstract = True


@shared_task(bind=True, base=_CheckedSweepTask, name=SWEEP_TASK, throws=(MailglassReconcileError,))
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
        limit: Stop after so many links.
        fan_out: If more orphans than this are eligible, divide them into ranges of arrival with about this many each,
            and enqueue a task for each range. Ignored with a limit and in eager mode.
        after: Sweep only what arrived after this time, in UTC, as Postgres writes it.
        until: Sweep only what arrived until this time.

    Returns:
        The counts of `SweepResult`, or `{"status": "duplicate", "of": <task id>}`. After a soft time limit, the
        counts of what was committed until then, as `partial`. After a fan-out `{"status": "fanned_out", "eligible": …,
        "tasks": [<task id>, …]}`: the counts of these tasks add up to what one sweep would return.

    Raises:
        InvalidArgumentError: An argument has another name or type, or is below 1; it is a TypeError and a ValueError.
        MailglassReconcileError: Nothing was swept, or an error ended the sweep; what was committed until then stays.
    """
    bounds = (after, until)
    with self.holding_lock() as lease:
        if lease.duplicate_of is not None:
            return _duplicate(lease.duplicate_of, "full" if bounds == (None, None) else "range", tenant_id)
        if fan_out is not None and lease.key is not None and (limit, *bounds) == (None, None, None):
            eligible, parts = ranges.cut_window(runtime.database(), tenant_id, fan_out)
            if parts:
                return _send_ranges(lease, tenant_id, eligible, parts)
        registration.register_before_sweep(runtime.database())
        sweep = reconciler.prepare(tenant_id, limit, bounds=bounds, range_of=self.range_of_run, origin=_origin())
        with _stop_on_soft_limit(sweep):
            sweep.run()
        return _finish(sweep)


class _ExpiringTask(_CheckedTask):
    """A task whose requests expire, except for delayed ones."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if options.get("countdown") or options.get("eta"):
            options.setdefault("expires", None)
        return super().apply_async(args, kwargs, **options)


@shared_task(
    base=_ExpiringTask,
    name=RECENT_TASK,
    ignore_result=True,
    expires=RECENT_EXPIRES_SECONDS,
    per_outage=True,
    throws=(MailglassReconcileError,),
)
def reconcile_recent(interval: float = 1.0, tenant_id: str | None = None) -> dict[str, Any]:
    """Sweep the most recent arrivals. It takes no lock: any number of these sweeps may run at once.

    Args:
        interval: Seconds between two such sweeps, above 0 and at most 60.
        tenant_id: Sweep this tenant's orphans only; None is all tenants.

    Returns:
        The counts of `SweepResult`, which are ignored unless the caller asks for them (`ignore_result=False`).

    Raises:
        InvalidArgumentError: An argument has another name or type, or *interval* is out of bounds; it is a TypeError
            and a ValueError.
        MailglassReconcileError: Nothing was swept, or an error ended the sweep; what was committed until then stays.
    """
    # It opens a connection: a kept one would save 17 of 29 ms, but each process of the pool would hold one. For less
    # there is `follow`, which keeps one.
    sweep = recent.prepare(interval, tenant_id, origin=_origin())
    with _stop_on_soft_limit(sweep):
        sweep.run()
    return _finish(sweep)


@shared_task(base=_ExpiringTask, name=PRUNE_TASK, expires=PRUNE_EXPIRES_SECONDS, throws=(MailglassReconcileError,))
def prune() -> dict[str, Any]:
    """Delete rows that are older than their retention, expire old orphans, and repair the table of open orphans.

    The rows are raw webhooks, events, deliveries and finished handler jobs; old runs are added up.

    Returns:
        The fields of `PruneResult`.
    """
    return pruner.prune_with(runtime.database(), _origin()).as_dict()


@shared_task(
    base=_ExpiringTask,
    name=DISPATCH_TASK,
    ignore_result=True,
    expires=DISPATCH_EXPIRES_SECONDS,
    throws=(MailglassReconcileError,),
)
def dispatch() -> dict[str, int]:
    """Run this worker's handlers on the events that are due.

    Returns:
        The counts of `DispatchResult`, which are ignored unless the caller asks for them (`ignore_result=False`).
    """
    return dispatcher.dispatch_within(DISPATCH_SECONDS, _origin()).as_dict()


def enqueue_dispatch() -> None:
    """Enqueue the task `dispatch` now, for the events that a sweep has linked; log an error of the broker."""
    try:
        dispatch.apply_async(retry=False, **_chosen_queue())
    except Exception as error:  # any error of a broker's client
        logger.warning("handlers run at the next dispatch: the broker took no task (%s)", type(error).__name__)


def _chosen_queue() -> dict[str, Any]:
    """Return the options that send a task to the running task's queue, if its sender chose that, and not the routes."""
    if not current_task:  # a function call
        return {}
    routed = current_task.app.amqp.router.route({}, current_task.name).get("queue")
    routing_key = (current_task.request.delivery_info or {}).get("routing_key")
    is_routed = routed is None or routing_key in (None, routed.name, routed.routing_key)
    return {} if is_routed else options_of_queue(current_task.request)


def _finish(sweep: Sweep) -> dict[str, Any]:
    """Enqueue the handlers of linked events, and return a sweep's counts as the task's result, or raise its error."""
    if sweep.has_jobs:
        enqueue_dispatch()
    if isinstance(sweep.error, Exception):  # a soft time limit is none
        raise sweep.error
    result = sweep.result
    return {**result.as_dict(), "tenant_id": result.shown_tenant}


def _duplicate(of: str, kind: RunKind, tenant_id: str | None) -> dict[str, Any]:
    """Count and record a duplicate of the task *of*, and return the task's result."""
    telemetry.count_sweep("duplicate")
    _add_run(Run(kind, _origin(), sanitize_tenant(tenant_id), "duplicate"))
    return {"status": "duplicate", "of": of}


def _send_ranges(lease: LockLease, tenant_id: str | None, eligible: int, parts: Sequence[Range]) -> dict[str, Any]:
    """Enqueue a task for each range of a full sweep, and return the task's result."""
    calls = [{"tenant_id": tenant_id, "after": part.after, "until": part.until} for part in parts]
    # Before the ranges run, because they add their counts to this row.
    covered_until = parts[-1].until
    run_id = _add_run(
        Run("full", _origin(), sanitize_tenant(tenant_id), remaining=0, ranges=len(parts), covered_until=covered_until)
    )
    tasks = reconcile.send_ranges(lease, calls, run_id)
    logger.info("cut %s into %s, a task for each", pluralize(eligible, "open event"), pluralize(len(tasks), "range"))
    return {"status": "fanned_out", "eligible": eligible, "tasks": tasks}


def _origin() -> Origin:
    """Return who enqueued the running task: beat, whose entries have a header, or another caller."""
    headers = (current_task.request.headers if current_task else None) or {}  # no task if it is called as a function
    return "beat" if headers.get(ORIGIN_HEADER) == "beat" else "call"


def _add_run(run: Run) -> int | None:
    """Add a row to the run history, and return its id; if the database is down now, only this row is lost."""
    try:
        with runtime.database().connect() as connected:
            return run_log.add_run(connected, run)
    except MailglassReconcileError as error:
        logger.warning("this sweep is missing from the history of runs: %s", error)
        return None


_last_errors: dict[str, str] = {}
"""The last error of each frequent task, until it succeeds again."""


@contextmanager
def _log_error(task_name: str, *, per_outage: bool) -> Iterator[None]:
    """Log an error of ours as one line if Celery does not: it logs the errors in `throws` at the level INFO."""
    try:
        yield
    except MailglassReconcileError as error:
        is_repeated = per_outage and _last_errors.get(task_name) == str(error)
        if not is_repeated and not celerys_logger.isEnabledFor(logging.INFO):
            logger.error("%s failed: %s", task_name, error)
        _last_errors[task_name] = str(error)
        raise
    _last_errors.pop(task_name, None)


@contextmanager
def _stop_on_soft_limit(sweep: Sweep) -> Iterator[None]:
    """End *sweep* at Celery's soft time limit, at once while it reads and after the batch while it links.

    The sweep is then `partial`.
    """
    if _worker_pid in (None, os.getpid()):  # only the processes of the pool prefork have limits
        yield
        return
    with stop_on_signal(signal.SIGUSR1, sweep) as interruption:  # documented by Celery as that of the soft limit
        yield
    if interruption.received:
        logger.warning("the soft time limit ended a sweep; what was committed until then stays")


@beat_init.connect
@celeryd_after_setup.connect
def _load_imports(**unused: Any) -> None:
    with suppress(MailglassReconcileError):  # the worker warns of it, below
        runtime.load_imports(only_warn=True)


@worker_process_init.connect
def _reset_connections(**unused: Any) -> None:
    runtime.dispose_after_fork()


_worker_pid: int | None = None
"""The process of the worker that runs this one's tasks: itself, or with the pool prefork its parent."""


@celeryd_after_setup.connect
def _remember_worker(**unused: Any) -> None:
    global _worker_pid  # noqa: PLW0603 - inherited by the processes that the worker forks
    _worker_pid = os.getpid()


@celeryd_after_setup.connect
def _warn_at_startup(instance: Any, **unused: Any) -> None:
    """Warn if the worker does not consume the queue of one of our tasks, or consumes one and cannot sweep."""
    app = instance.app
    consumed = set(app.amqp.queues.consume_from)
    names = (SWEEP_TASK, PRUNE_TASK, *([DISPATCH_TASK] if handlers.types_with_handlers() else []))
    queues = {name: find_queues(app, name) for name in names}
    missing = [name for name in names if queues[name] and consumed.isdisjoint(queues[name])]
    for name in missing:
        shown = " or ".join(map(repr, queues[name]))
        logger.warning("this worker does not consume %s, the queue of %s: some worker has to", shown, name)
    if len(missing) < len(names):
        _warn_if_not_migrated()


def _warn_if_not_migrated() -> None:
    """Warn if the database cannot be used: it cannot be reached, or its schema is outdated."""
    try:
        with database_errors(), connect(runtime.get_engine()) as connection:
            try:
                with OpenConnection(connection, runtime.get_settings()).reading() as tx:
                    installed.require_migrated(tx)
            finally:
                connection.invalidate()  # a fork would share a connection in an application's pool
    except MailglassReconcileError as error:
        logger.warning("this worker cannot sweep yet: %s", error)
