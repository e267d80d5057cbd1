"""Checks of full sweeps, the prune and beat, based on the history of runs and not on processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

from mailglass_reconcile.errors import with_local_names
from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.rules.humanize import format_duration, pluralize, sanitize
from mailglass_reconcile.rules.thresholds import LATE_SECONDS, PRUNE_LATE_SECONDS

WORKER_CHECKS = ("redis", "broker", "worker", "queues", "schedule")
"""Checks whose errors explain why Celery runs no task."""
DATABASE_CHECKS = ("privileges", "schema", "indexes", "functions", "triggers")
SWEEP = "run `mailglass-reconcile sweep`, which says why"
NOTHING_SWEEPS = f"{SWEEP}; if it succeeds, nothing starts sweeps: start beat, or let cron run it every five minutes"
FIRST_SWEEP = "run `mailglass-reconcile sweep`; then start a worker and beat, or run it every five minutes from cron"
WAIT = "wait for the next time in beat's schedule, or run `mailglass-reconcile sweep`"
BUNDLED_APP = "mailglass_reconcile"


def _ask_worker(app: str | None) -> str:
    """Return the step that finds what has stopped, in the worker's environment, which has its app."""
    imports = f", with the module of your Celery app {sanitize(app)} in MAILGLASS_IMPORTS" if is_own(app) else ""
    return (
        f"run `mailglass-reconcile doctor` where the worker runs{imports}: beat, the broker or the worker has stopped,"
        " or the log of the worker has the reason"
    )


def is_own(app: str | None) -> TypeGuard[str]:
    """Return True if runs were made by an application's own Celery app, of this name."""
    return app not in (None, BUNDLED_APP)


def _beat_steps(app: str | None) -> tuple[str, ...]:
    """Return the remedies of findings whose reason can only be beat where workers are known to wait for tasks."""
    return (_ask_worker(app), f"{_ask_worker(app)}; then {SWEEP}", NOTHING_SWEEPS, FIRST_SWEEP)


@check("sweeps", fast=True)
def sweeps(context: CheckContext) -> Iterator[Finding]:
    """A full sweep has succeeded in time, and the last one has not failed."""
    history = context.history
    allowed = history.late_after(context.max_lag_seconds * 2 / 3)
    because = (*DATABASE_CHECKS, *WORKER_CHECKS)
    if history.success_age is None and history.last is None:
        step = WAIT if _is_beat_in_time(history) else FIRST_SWEEP
        yield error("no full sweep of all tenants has run yet", step, because)
    elif history.last is not None and history.last.status == "failed":
        reason = sanitize(history.last.error or "no error was recorded")
        yield error(f"the last full sweep failed {format_duration(history.last.age)} ago ({reason})", SWEEP, because)
    elif history.success_age is None:
        yield error("no full sweep has ever succeeded", SWEEP, because)
    elif history.success_age > allowed:
        message = (
            f"no full sweep has succeeded for {format_duration(history.success_age)} (limit {format_duration(allowed)})"
        )
        is_beat_late = history.beat_age is not None and not _is_beat_in_time(history)
        step = f"{_ask_worker(history.app)}; then {SWEEP}" if is_beat_late else NOTHING_SWEEPS
        yield error(message, step, because)
    elif history.last is not None and history.last.failed and not history.last.linked:
        refused = pluralize(history.last.failed, "link")
        yield error(f"the database refused all that the last full sweep tried, {refused}", SWEEP, because)
    else:
        yield ok(
            f"a full sweep succeeded {format_duration(history.success_age)} ago, started by {_success_origin(context)}"
        )
    if history.uncovered_seconds > allowed:
        yield error(
            f"full sweeps have not checked everything for {format_duration(history.uncovered_seconds)}: each ends"
            " at its deadline",
            "run them more often, raise MAILGLASS_SWEEP_SECONDS, or use fan_out with more workers",
        )


@check("beat", fast=True)
def beat(context: CheckContext) -> Iterator[Finding]:
    """Runs that beat enqueued end in time, or full sweeps are started in another way.

    The history has finished runs only, so it cannot show whether beat, the broker or the worker has stopped.
    """
    history = context.history
    if history.beat_age is None or _is_beat_in_time(history):
        yield ok(
            "beat has never queued a run"
            if history.beat_age is None
            else f"a run {format_duration(history.beat_age)} ago"
        )
    elif _has_swept_in_time(history):
        yield ok(
            f"beat last queued a run {format_duration(history.beat_age)} ago;"
            f" full sweeps are started by {_success_origin(context)}"
        )
    else:
        yield error(
            f"no run that beat queued has ended for {format_duration(history.beat_age)}",
            _ask_worker(history.app),
            (*WORKER_CHECKS, "sweeps"),
        )


def _is_beat_in_time(history: RunHistory) -> bool:
    """Return True if a run that beat queued has ended in time."""
    return history.beat_age is not None and history.beat_age <= history.late_after(LATE_SECONDS)


def _has_swept_in_time(history: RunHistory) -> bool:
    """Return True if a full sweep has succeeded in time."""
    return history.success_age is not None and history.success_age <= history.late_after(LATE_SECONDS)


def name_beat(finding: Finding, start: str, app: str | None) -> Finding:
    """Return a finding with the remedy that starts beat, if workers that wait for tasks leave no other reason.

    *app* is the Celery app that ran the last task.
    """
    if finding.remedy not in [with_local_names(step) for step in _beat_steps(app)]:
        return finding
    if finding.remedy == with_local_names(FIRST_SWEEP):  # nothing has run yet: beat may have started a minute ago
        step = f"beat sweeps at each fifth minute; if it has not by then, start it, exactly once: `{start}`"
    else:
        step = f"beat does not run, because worker, broker and queues are well: start it: `{start}`"
    return finding._replace(remedy=step)


def _success_origin(context: CheckContext) -> str:
    return {"call": "a call of the task", "python": "Python"}.get(str(context.history.success_origin)) or str(
        context.history.success_origin
    )


@check("prune", fast=True)
def prune(context: CheckContext) -> Iterator[Finding]:
    """Something was pruned within two days."""
    history = context.history
    if history.unpruned_seconds > PRUNE_LATE_SECONDS:
        yield error(
            f"nothing was pruned for {format_duration(history.unpruned_seconds)}: tables grow, and expired events"
            " stay in the table of open ones",
            "run `mailglass-reconcile prune`, and let beat or cron run it daily",
            (*DATABASE_CHECKS, *WORKER_CHECKS, "beat"),
        )
    else:
        yield ok(
            f"the last prune was {format_duration(history.unpruned_seconds)} ago"
            if history.pruned
            else "nothing to prune yet"
        )


@check("broadcasts", fast=True)
def broadcasts(context: CheckContext) -> Iterator[Finding]:
    """Redis accepted the messages of the last full sweep."""
    last = context.history.last
    if last is not None and last.publish_failed and not last.published:
        yield error(
            f"Redis accepted none of the {pluralize(last.publish_failed, 'broadcast')} of the last full sweep",
            "check MAILGLASS_REDIS_URL",
            ("redis", "redis_privileges"),
        )
    else:
        yield ok("the last full sweep lost no broadcast")


def ran_with_celery(history: RunHistory) -> bool:
    """Return True if Celery has ever run a full sweep."""
    return history.beat_age is not None or history.success_origin in ("beat", "call")


def runs_without_celery(history: RunHistory, *, is_scheduled: bool) -> bool:
    """Return True if full sweeps run in time although Celery gets no tasks.

    Where beat has queued runs or should, they must have done so for an hour: someone may have swept while Celery is
    down or not yet up.

    Args:
        history: The history of runs.
        is_scheduled: True if the application's own schedule has an entry for sweeps.
    """
    if _is_beat_in_time(history):
        return False
    if history.beat_age is not None or is_scheduled:
        return history.other_quarters == 4
    return _has_swept_in_time(history) and history.success_origin not in ("beat", "call")
