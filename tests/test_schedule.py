"""The beat schedule with a scheduler that keeps it in a database."""

import json
import os
from pathlib import Path

import pytest

import processes

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
