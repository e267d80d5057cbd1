"""Checks of full sweeps, the prune and beat, based on the history of runs and not on processes."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.errors import with_local_names
from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.rules.humanize import format_duration, pluralize, sanitize
from mailglass_reconcile.rules.thresholds import LATE_SECONDS, PRUNE_LATE_SECONDS

WORKER_CHECKS = ("redis", "broker", "worker", "queues", "schedule")
"""Checks whose errors explain why Celery runs no task."""
DATABASE_CHECKS = ("privileges", "schema", "indexes", "functions", "triggers")
ASK_WORKER = (
    "run `mailglass-reconcile doctor` where the worker runs: beat, the broker or the worker has stopped, or the log of"
    " the worker has the reason"
)
SWEEP = "run `mailglass-reconcile sweep`, which says why"
NOTHING_SWEEPS = f"{SWEEP}; if it succeeds, nothing starts sweeps: start beat, or let cron run it every five minutes"
FIRST_SWEEP = "run `mailglass-reconcile sweep`; then start a worker and beat, or run it every five minutes from cron"
ASK_WORKER_FIRST = f"{ASK_WORKER}; then {SWEEP}"
BEAT_STEPS = (ASK_WORKER, ASK_WORKER_FIRST, NOTHING_SWEEPS, FIRST_SWEEP)
"""Remedies of findings that only beat can be the reason for where workers are known to wait for tasks."""


@check("sweeps", fast=True)
def sweeps(context: CheckContext) -> Iterator[Finding]:
    """A full sweep has succeeded in time, and the last one has not failed."""
    history, allowed = context.history, context.max_lag_seconds * 2 / 3
    because = (*DATABASE_CHECKS, *WORKER_CHECKS)
    if history.success_age is None and history.last is None:
        yield error("no full sweep of all tenants has run yet", FIRST_SWEEP, because)
    elif history.last is not None and history.last.status == "failed":
        reason = sanitize(history.last.error or "no error was recorded")
        yield error(f"the last full sweep failed {format_duration(history.last.age)} ago ({reason})", SWEEP, because)
    elif history.success_age is None:
        yield error("no full sweep has ever succeeded", SWEEP, because)
    elif history.success_age > allowed:
        message = (
            f"no full sweep has succeeded for {format_duration(history.success_age)} (limit {format_duration(allowed)})"
        )
        is_beat_late = history.beat_age is not None and history.beat_age > LATE_SECONDS
        yield error(message, ASK_WORKER_FIRST if is_beat_late else NOTHING_SWEEPS, because)
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
    in_time = history.success_age is not None and history.success_age <= LATE_SECONDS
    if history.beat_age is None or history.beat_age <= LATE_SECONDS:
        yield ok(
            "beat has never queued a run"
            if history.beat_age is None
            else f"a run {format_duration(history.beat_age)} ago"
        )
    elif in_time:
        yield ok(
            f"beat last queued a run {format_duration(history.beat_age)} ago;"
            f" full sweeps are started by {_success_origin(context)}"
        )
    else:
        yield error(
            f"no run that beat queued has ended for {format_duration(history.beat_age)}",
            ASK_WORKER,
            (*WORKER_CHECKS, "sweeps"),
        )


def name_beat(finding: Finding, start: str) -> Finding:
    """Return a finding with the remedy that starts beat, if workers that wait for tasks leave no other reason."""
    if finding.remedy not in [with_local_names(step) for step in BEAT_STEPS]:
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
    if history.beat_age is not None and history.beat_age <= LATE_SECONDS:
        return False
    if history.beat_age is not None or is_scheduled:
        return history.other_quarters == 4
    in_time = history.success_age is not None and history.success_age <= LATE_SECONDS
    return in_time and history.success_origin not in ("beat", "call")
