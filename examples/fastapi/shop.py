"""A FastAPI application that takes Postmark's webhooks, and the Celery app that sweeps what came too early.

`uvicorn shop:api` and `celery -A shop worker -B -s ~/.shop-beat`; the environment has MAILGLASS_DATABASE_URL and
MAILGLASS_REDIS_URL. A real application checks who calls: Postmark's webhooks can carry a user name and a password.
"""

import datetime as dt
import os
from typing import Any

import sqlalchemy as sa
from celery import Celery
from fastapi import FastAPI

from mailglass_reconcile import Settings, WebhookEvent, beat_schedule, broadcast, configure, record_webhook
from mailglass_reconcile.tasks import reconcile

settings = Settings()
url = sa.make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+psycopg")
engine = sa.create_engine(url, pool_pre_ping=True)
configure(engine=engine, settings=settings)

app = Celery("shop", broker=os.environ["MAILGLASS_REDIS_URL"], backend=os.environ["MAILGLASS_REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True
app.conf.beat_schedule = beat_schedule
app.conf.imports = ["mailglass_reconcile.tasks"]
app.set_default()  # requests are served in other threads, which must find this app too

api = FastAPI()

TYPES = {"Delivery": "delivered", "Bounce": "bounced", "SpamComplaint": "complained", "Open": "opened"}


@api.post("/tenants/{tenant_id}/webhooks/postmark")
def postmark(tenant_id: str, report: dict[str, Any]) -> dict[str, bool]:
    """Record one event, on its delivery or as an orphan."""
    kind = report["RecordType"]
    event = WebhookEvent(
        type=TYPES.get(kind, "unknown"),
        occurred_at=dt.datetime.fromisoformat(report.get("DeliveredAt") or report["ReceivedAt"]),
        provider_event_id=f"{kind}:{report['MessageID']}",
        message_id=report["MessageID"],
        recipient=report.get("Recipient"),
    )
    with engine.begin() as connection:
        (recorded,) = record_webhook(connection, tenant_id=tenant_id, provider="postmark", events=[event])
    broadcast([recorded])
    return {"orphan": recorded.delivery_id is None}


@api.post("/tenants/{tenant_id}/sweeps", status_code=202)
def sweep(tenant_id: str) -> dict[str, str]:
    """Ask for a sweep of this tenant now; where one is queued or running already, that is the one."""
    return {"task_id": reconcile.delay(tenant_id=tenant_id).id}
