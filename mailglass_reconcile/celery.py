"""The runnable app: `celery -A mailglass_reconcile worker -B`; configured from the environment."""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue

from mailglass_reconcile import runtime
from mailglass_reconcile.schedule import PRUNE_TASK, SWEEP_TASK, make_beat_schedule

SWEEP_QUEUE = "mailglass_reconcile"
PRUNE_QUEUE = "mailglass_maintenance"
RESULT_SECONDS = 86_400

_settings = runtime.get_settings()

app = Celery("mailglass_reconcile", include=["mailglass_reconcile.tasks"])
app.conf.update(
    broker_url=(_settings.broker_url or _settings.redis_url).get_secret_value(),
    broker_connection_retry_on_startup=True,
    result_backend=_settings.redis_url.get_secret_value(),
    result_expires=RESULT_SECONDS,
    beat_schedule=make_beat_schedule(),
    task_queues=[Queue(SWEEP_QUEUE), Queue(PRUNE_QUEUE)],
    task_default_queue=SWEEP_QUEUE,
    task_routes={SWEEP_TASK: {"queue": SWEEP_QUEUE}, PRUNE_TASK: {"queue": PRUNE_QUEUE}},
    task_ignore_result=False,
    worker_prefetch_multiplier=1,
    timezone="UTC",
)
