"""The beat schedule with the schedulers that keep it in memory, in a file and in a database."""

import datetime as dt
import json
import os
import pickle
from pathlib import Path

import pytest
from celery import Celery, _state
from celery.beat import PersistentScheduler, Scheduler

import processes
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.schedule import PRUNE_TASK, SWEEP_TASK, make_beat_schedule

pytestmark = pytest.mark.version_independent

BEATING = """
import json
import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django_celery_beat"],
    USE_TZ=True,
)
django.setup()
call_command("migrate", verbosity=0)

from django_celery_beat.schedulers import DatabaseScheduler
from mailglass_reconcile import make_beat_schedule, tasks
from waiting import PATIENCE

app = Celery("adopter", broker="memory://")
app.conf.beat_schedule = make_beat_schedule(recent=1.0)
scheduler = DatabaseScheduler(app=app)
entries = [entry for name, entry in scheduler.schedule.items() if name.startswith("mailglass")]
assert len(entries) == 4 and not any("expires" in entry.options for entry in entries)
for entry in entries:
    scheduler.apply_async(entry, advance=False)
with app.connection_for_write() as connection:
    queue = connection.SimpleQueue("celery")
    headers = [queue.get(timeout=PATIENCE).headers for _ in entries]
print(json.dumps({message["task"].rpartition(".")[2]: message["expires"] is not None for message in headers}))
"""


@pytest.mark.slow
def test_tasks_expire_even_if_the_scheduler_drops_the_entries_expiry():
    """django-celery-beat does not store `expires` of an entry's options."""
    pytest.importorskip("django_celery_beat")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    support = {"PYTHONPATH": str(Path(processes.__file__).parent)}
    result = processes.run(["-c", BEATING], {**environment, **support})
    assert json.loads(result.stdout) == dict.fromkeys(("reconcile", "reconcile_recent", "prune", "dispatch"), True)


@pytest.mark.parametrize(("kind", "own"), [(PersistentScheduler, 6), (Scheduler, 0)])
def test_only_a_stored_schedule_runs_what_is_due_less_often_than_beat_restarts(kind, own, tmp_path, monkeypatch):
    """Celery's default stores when an entry ran; in memory, only our entries by the clock are sent nonetheless."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {"own": {"task": "own", "schedule": 90.0}, **make_beat_schedule(dispatch=False)}
    clock = [dt.datetime(2026, 1, 1, 2, 55, 10, tzinfo=dt.UTC)]
    monkeypatch.setattr(app, "now", lambda: clock[0])
    monkeypatch.setattr(_state._tls, "current_app", app)  # whose clock the stored entries read
    sent: list[str] = []
    monkeypatch.setattr(kind, "apply_entry", lambda scheduler, entry, producer=None: sent.append(entry.task))
    for _ in range(20):
        scheduler = kind(app=app, schedule_filename=str(tmp_path / "schedule"))
        for _ in range(30):
            clock[0] += dt.timedelta(seconds=1)
            while scheduler.tick() == 0:
                pass
        scheduler.close()
    assert {task: sent.count(task) for task in ("own", SWEEP_TASK, PRUNE_TASK)} == {
        "own": own, SWEEP_TASK: 2, PRUNE_TASK: 1
    }  # fmt: skip


def test_beat_dispatches_every_ten_seconds_if_it_has_a_handler_and_once_a_minute_if_not(monkeypatch):
    """Celery logs three lines for each request; a worker may have handlers that beat does not know."""
    monkeypatch.setattr(handlers, "_registered", {})
    entry = pickle.loads(pickle.dumps(make_beat_schedule()["mailglass-reconcile-dispatch"]))  # noqa: S301 - as beat does
    when, sent_at = entry["schedule"], dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def is_due(seconds: float) -> bool:
        when.nowfun = lambda: sent_at + dt.timedelta(seconds=seconds)
        return when.is_due(sent_at).is_due

    assert [seconds for seconds in (5, 11, 59, 61) if is_due(seconds)] == [61]
    handlers.on_event("bounced", name="suppress")(lambda connection, event: None)
    assert [seconds for seconds in (5, 11, 59, 61) if is_due(seconds)] == [11, 59, 61]
