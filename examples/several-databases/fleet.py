"""One Celery app for two databases: each has its own queue and workers, and one beat sends to all queues."""

from celery import Celery

from mailglass_reconcile import Settings, make_beat_schedule

redis_url = Settings().redis_url.get_secret_value()  # of MAILGLASS_REDIS_URL, which may name a file

app = Celery("fleet", broker=redis_url, backend=redis_url)
app.autodiscover_tasks(["mailglass_reconcile"])
app.conf.broker_connection_retry_on_startup = True

for region in ("eu", "us"):
    for name, entry in make_beat_schedule(queue=f"mail-{region}").items():
        app.conf.beat_schedule = {**app.conf.beat_schedule, f"{name}-{region}": entry}
