"""A Celery app that sweeps Mailglass's tables; its README says how to run it.

The environment has MAILGLASS_DATABASE_URL, MAILGLASS_DATABASE_SCHEMA and MAILGLASS_REDIS_URL.
"""

import os

from celery import Celery

from mailglass_reconcile import make_beat_schedule

app = Celery("sweeper", broker=os.environ["MAILGLASS_REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True
app.conf.beat_schedule = {**app.conf.beat_schedule, **make_beat_schedule(recent=1.0, dispatch=False)}
app.autodiscover_tasks(["mailglass_reconcile"])
