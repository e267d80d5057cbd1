"""The bundled Celery app, configured from the environment: `celery -A mailglass_reconcile worker`.

Celery itself reads `CELERY_BROKER_URL`, which takes precedence over the `broker_url` set here.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from celery import Celery
from kombu.entity import Exchange, Queue
from pydantic import SecretStr

from mailglass_reconcile import runtime
from mailglass_reconcile.schedule import DISPATCH_TASK, PRUNE_TASK, RECENT_TASK, SWEEP_TASK, make_beat_schedule

SWEEP_QUEUE = "mailglass_reconcile"
PRUNE_QUEUE = "mailglass_maintenance"
HANDLER_QUEUE = "mailglass_handlers"
RESULT_SECONDS = 86_400

_settings = runtime.get_settings()


def _make_celery_url(secret: SecretStr) -> str:
    """Return a Redis URL for Celery: with certificate checks, and the password where `celery report` hides it."""
    url = secret.get_secret_value()
    if url.startswith("rediss://") and "ssl_cert_reqs=" not in url:
        url = f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if "password" not in query:
        return url
    user, password = (quote(query.pop(name, ""), safe="") for name in ("username", "password"))
    netloc = f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query)))


app = Celery("mailglass_reconcile", include=["mailglass_reconcile.tasks"])
app.conf.update(
    broker_url=_make_celery_url(_settings.redis_url),
    broker_connection_retry_on_startup=True,
    result_backend=_make_celery_url(_settings.redis_url),
    result_expires=RESULT_SECONDS,
    beat_schedule=make_beat_schedule(),
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in (SWEEP_QUEUE, PRUNE_QUEUE, HANDLER_QUEUE)],
    task_default_queue=SWEEP_QUEUE,
    task_routes={
        **{name: {"queue": SWEEP_QUEUE} for name in (SWEEP_TASK, RECENT_TASK)},
        PRUNE_TASK: {"queue": PRUNE_QUEUE},
        DISPATCH_TASK: {"queue": HANDLER_QUEUE},
    },
    task_ignore_result=False,
    worker_prefetch_multiplier=1,
    timezone="UTC",
)
