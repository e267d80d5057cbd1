"""An application with its own Celery app, which also sweeps; its README says how to run it.

The environment has MAILGLASS_DATABASE_URL and MAILGLASS_REDIS_URL; `mailglass-reconcile migrate` makes the tables.
"""

import os

from celery import Celery

from mailglass_reconcile import beat_schedule

app = Celery("shop", broker=os.environ["MAILGLASS_REDIS_URL"], backend=os.environ["MAILGLASS_REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True
app.conf.beat_schedule = {
    "count-stock": {"task": "shop.count_stock", "schedule": 3_600.0},
    **beat_schedule,
}
app.autodiscover_tasks(["mailglass_reconcile"])


@app.task
def count_stock() -> int:
    """Stand for what the application does itself."""
    return 42
