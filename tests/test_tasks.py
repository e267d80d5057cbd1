"""The tasks in an application's own Celery app: what its runs store of it, and what the doctor then says."""

import datetime as dt

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from diagnosing import worst_finding
from mailglass_reconcile import tasks
from mailglass_reconcile.ops.checks import ERROR, OK
from mailglass_reconcile.schedule import ORIGIN_HEADER, PRUNE_TASK, SWEEP_TASK, make_beat_schedule

STORED = "SELECT kind, origin, app, interval_seconds FROM mailglass_reconcile_runs ORDER BY id"
AGED = "UPDATE mailglass_reconcile_runs SET finished_at = finished_at - make_interval(mins => :minutes)"


class Unusable(schedule):
    """A schedule of an application's own that fails."""

    def remaining_estimate(self, last_run_at):
        raise ValueError


def run_by_beat(name: str, when: object = None) -> None:
    """Run a task as beat requests it, in an app whose schedule has full sweeps at *when*."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {
        "own": {"task": "own", "schedule": 7.0},
        **(make_beat_schedule(sweep=when) if when else {}),
    }
    app.tasks[name].apply(headers={ORIGIN_HEADER: "beat"}).get()


@pytest.mark.parametrize(
    ("when", "seconds"),
    [
        (1_800.0, (1_800, 1_800)),
        (dt.timedelta(hours=1), (3_600, 3_600)),
        (crontab(minute="*/30"), (1, 1_800)),
        (None, None),
        (Unusable(60), None),
    ],
    ids=["seconds", "an interval", "a crontab", "no entry", "an unusable one"],
)
def test_a_run_stores_the_app_and_when_its_schedule_sweeps_next(db, when, seconds):
    run_by_beat(SWEEP_TASK, when)
    run_by_beat(PRUNE_TASK, when)
    (*sweep, interval), prune = db.rows(STORED)
    assert sweep == ["full", "beat", "shop"]
    assert interval is None if seconds is None else seconds[0] <= interval <= seconds[1]
    assert tuple(prune) == ("prune", "beat", "shop", None)


def test_a_run_stores_when_the_schedule_sweeps_its_own_queue_next(db):
    """Another database's entry, in another queue of the same beat, has a shorter interval."""
    app = Celery("fleet", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {
        "eu": make_beat_schedule(sweep=300.0, queue="mail-eu")["mailglass-reconcile"],
        "us": make_beat_schedule(sweep=3_600.0, queue="mail-us")["mailglass-reconcile"],
    }
    for queue in ("mail-eu", "mail-us", "celery"):
        app.tasks[SWEEP_TASK].apply(routing_key=queue).get()
    assert [row.interval_seconds for row in db.rows(STORED)] == [300, 3_600, 300]


def test_a_python_call_in_the_same_process_is_of_no_app(db):
    run_by_beat(SWEEP_TASK)
    tasks.reconcile()
    assert [row.app for row in db.rows(STORED)] == ["shop", None]


@pytest.mark.parametrize(("minutes", "level"), [(34, OK), (36, ERROR)])
def test_a_sweep_every_half_hour_is_late_after_more_than_half_an_hour(db, minutes, level):
    run_by_beat(SWEEP_TASK, 1_800.0)
    db.run(AGED, minutes=minutes)
    finding = worst_finding("sweeps")
    assert finding.status == level
    if level == ERROR:
        assert "no full sweep has succeeded for 36 minutes (limit 35 minutes)" in finding.message
        assert "with the module of your Celery app shop in MAILGLASS_IMPORTS" in finding.remedy
    else:
        assert worst_finding("beat").status == OK


def test_a_schedule_that_has_stopped_does_not_make_others_sweeps_late(db):
    """Cron sweeps now, every five minutes."""
    run_by_beat(SWEEP_TASK, 86_400.0)
    db.run(AGED, minutes=3 * 1_440)
    tasks.reconcile()
    db.run(AGED, minutes=11)
    assert worst_finding("sweeps").status == ERROR


def test_beat_that_has_queued_a_run_need_not_be_started_for_the_first_sweep(db):
    run_by_beat(PRUNE_TASK)
    assert worst_finding("sweeps").remedy == (
        "wait for the next time in beat's schedule, or run `mailglass-reconcile sweep`"
    )
