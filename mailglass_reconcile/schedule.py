"""The beat schedule, and the warning that replaces it without Celery."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypeAlias, TypedDict
from zoneinfo import ZoneInfo

from mailglass_reconcile.errors import with_local_names
from mailglass_reconcile.rules.handlers import types_with_handlers
from mailglass_reconcile.rules.thresholds import SWEEP_INTERVAL_SECONDS
from mailglass_reconcile.runtime import available

if TYPE_CHECKING:
    from celery import Celery
    from celery.schedules import BaseSchedule

When: TypeAlias = "BaseSchedule | dt.timedelta | float"
"""A Celery schedule such as a `crontab`, an interval, or one in seconds."""

logger = logging.getLogger(__name__)

SWEEP_TASK = "mailglass_reconcile.tasks.reconcile"
RECENT_TASK = "mailglass_reconcile.tasks.reconcile_recent"
PRUNE_TASK = "mailglass_reconcile.tasks.prune"
DISPATCH_TASK = "mailglass_reconcile.tasks.dispatch"
ORIGIN_HEADER = "mailglass_origin"
"""Header by which the run history distinguishes beat's requests from others."""
PRUNE_EXPIRES_SECONDS = 3_600
RECENT_EXPIRES_SECONDS = 60
DISPATCH_EXPIRES_SECONDS = 60
"""The tasks have these expiries themselves, because a schedule stored in a database drops those of its entries."""
DISPATCH_SECONDS = 10.0
IDLE_DISPATCH_SECONDS = 60.0
"""Interval while beat has no handler; a worker may have some."""


def __getattr__(name: str) -> Any:
    """Make `beat_schedule`, the default entries, on first access, because it logs a warning without Celery."""
    if name != "beat_schedule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, make_beat_schedule())


class BeatEntry(TypedDict):
    """One entry of a Celery app's `beat_schedule`."""

    task: str
    schedule: When
    kwargs: NotRequired[dict[str, float]]
    options: dict[str, Any]


beat_schedule: dict[str, BeatEntry]


def make_beat_schedule(
    *,
    sweep: When | None = None,
    prune: When | None = None,
    recent: float | None = None,
    fan_out: int | None = None,
    dispatch: When | Literal[False] | None = None,
    queue: str | None = None,
) -> dict[str, BeatEntry]:
    """Return new entries for an app's `beat_schedule`; without Celery, log one warning and return an empty dict.

    *sweep*, *prune* and *dispatch* are Celery schedules or seconds. Entries expire, so a worker that was down finds one
    pending sweep, not a backlog.

    Args:
        sweep: When to sweep; by default every five minutes.
        prune: When to prune; by default daily at 03:00 UTC.
        recent: Seconds between recent sweeps, above 0 and at most 60; by default there are none.
        fan_out: If more open events than this are eligible, they are divided into ranges of about this many, one task
            for each; by default never.
        dispatch: When to run handlers; by default every ten seconds, or once a minute if the process of beat has no
            handler; False for never.
        queue: The queue of all entries; by default the app's routes decide.

    Raises:
        ValueError: *recent* or *fan_out* is out of bounds.
    """
    if recent is not None:
        from mailglass_reconcile.sweep.recent import require_interval  # noqa: PLC0415 - loading it takes long

        require_interval(recent)
    if fan_out is not None and fan_out < 1:
        raise ValueError("fan_out must be at least 1")
    if not available():
        warn_without_celery()
        return {}
    from celery.schedules import crontab  # noqa: PLC0415 - Celery may be missing

    route = {"headers": {ORIGIN_HEADER: "beat"}, **({} if queue is None else {"queue": queue})}
    entries: dict[str, BeatEntry] = {
        "mailglass-reconcile": {
            "task": SWEEP_TASK,
            "schedule": crontab(minute=f"*/{SWEEP_INTERVAL_SECONDS // 60}") if sweep is None else sweep,
            "options": {"expires": SWEEP_INTERVAL_SECONDS, **route},
        },
        "mailglass-reconcile-prune": {
            "task": PRUNE_TASK,
            "schedule": daily_at_three_utc() if prune is None else prune,
            "options": {"expires": PRUNE_EXPIRES_SECONDS, **route},
        },
    }
    if fan_out is not None:
        entries["mailglass-reconcile"]["kwargs"] = {"fan_out": fan_out}
    if recent is not None:
        entries["mailglass-reconcile-recent"] = {
            "task": RECENT_TASK,
            "schedule": recent,
            "kwargs": {"interval": recent},
            "options": {"expires": recent, "ignore_result": True, **route},
        }
    if dispatch is not False:
        entries["mailglass-reconcile-dispatch"] = {
            "task": DISPATCH_TASK,
            "schedule": every_ten_seconds() if dispatch is None else dispatch,
            "options": {"expires": DISPATCH_EXPIRES_SECONDS, **route},
        }
    return entries


def scheduled_options(app: Celery, task: str) -> list[Mapping[str, Any]]:
    """Return the options of each entry of an app's beat schedule that has a task."""
    return [entry.get("options") or {} for entry in app.conf.beat_schedule.values() if entry.get("task") == task]


def find_queues(app: Celery, task: str) -> list[str]:
    """Return the queues of a task: from its entries in the app's beat schedule, or from its route."""
    routes = [app.amqp.router.route(dict(options), task) for options in scheduled_options(app, task) or [{}]]
    return sorted({queue for route in routes if (queue := queue_name(route))})


def queue_name(route: Mapping[str, Any]) -> str | None:
    """Return the name of a route's queue, if it has one."""
    queue = route.get("queue")
    return None if queue is None else str(getattr(queue, "name", queue))


def daily_at_three_utc() -> BaseSchedule:
    """Return a schedule for 03:00 UTC daily.

    Celery's crontab uses the app's time zone, and drops another one when it is pickled.
    """
    from celery.schedules import crontab  # noqa: PLC0415 - Celery may be missing

    class InUTC(crontab):
        tz = ZoneInfo("UTC")

        def __reduce__(self) -> Any:  # beat pickles its entries
            return daily_at_three_utc, ()

    return InUTC(hour="3", minute="0")


def every_ten_seconds() -> BaseSchedule:
    """Return a schedule of ten seconds, and of a minute in a process without handlers, whose log it would fill."""
    from celery.schedules import schedule  # noqa: PLC0415 - Celery may be missing

    class IfHandled(schedule):
        def is_due(self, last_run_at: dt.datetime) -> Any:
            if types_with_handlers():
                return super().is_due(last_run_at)
            return schedule(IDLE_DISPATCH_SECONDS, nowfun=self.now).is_due(last_run_at)

        def __reduce__(self) -> Any:  # beat pickles its entries
            return every_ten_seconds, ()

    return IfHandled(DISPATCH_SECONDS)


@cache
def warn_without_celery() -> None:
    """Log once per process which commands replace the tasks if Celery is not installed."""
    logger.warning(
        with_local_names(
            "Celery cannot be imported: there is no beat schedule and no task; run `mailglass-reconcile sweep` every"
            " five minutes and `mailglass-reconcile prune` daily from cron or a systemd timer"
        )
    )
