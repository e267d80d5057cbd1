"""A Celery application that records webhooks in a task, without our tasks."""

import datetime as dt
import os

from celery import Celery
from sqlalchemy.orm import Session

from mailglass_reconcile import Settings, WebhookEvent, record_webhook, runtime

redis_url = Settings().redis_url.get_secret_value()
app = Celery("adopter", broker=redis_url, backend=redis_url)
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)


@app.task(name="record")
def record(message_id: str) -> int:
    """Record an event as the last action of this process, and return its id."""
    event = WebhookEvent(
        type="delivered", occurred_at=dt.datetime.now(dt.UTC), provider_event_id=message_id, message_id=message_id
    )
    with Session(runtime.get_engine()) as session:
        record_webhook(session, tenant_id="acme", provider="postmark", events=[event])
        session.commit()
    return os.getpid()
