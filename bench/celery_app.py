"""The Celery app of the benchmark: ours, with a recent sweep every second."""

from mailglass_reconcile import make_beat_schedule
from mailglass_reconcile.celery import app

app.conf.beat_schedule = make_beat_schedule(recent=1.0)
