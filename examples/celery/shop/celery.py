"""The Celery app: the shop's own queues, routes and schedule, with the tasks of sweeps beside them."""

import os

from celery import Celery

from mailglass_reconcile import beat_schedule

app = Celery("shop", broker=os.environ["MAILGLASS_REDIS_URL"], backend=os.environ["MAILGLASS_REDIS_URL"])
app.autodiscover_tasks(["mailglass_reconcile"])
app.conf.update(
    include=["shop.mail"],
    broker_connection_retry_on_startup=True,
    task_default_queue="shop",
    task_routes={
        "shop.mail.*": {"queue": "mail"},
        "mailglass_reconcile.tasks.dispatch": {"queue": "handlers"},
        "mailglass_reconcile.tasks.*": {"queue": "sweeps"},
    },
    beat_schedule={"list-suppressed": {"task": "shop.mail.list_suppressed", "schedule": 3_600.0}, **beat_schedule},
)
