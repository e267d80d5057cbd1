"""A shop that sends through Amazon SES and receives its events over Amazon SNS, with FastAPI; see README.md."""

import os
import uuid
from typing import Annotated, Any

import boto3
import sqlalchemy as sa
from fastapi import Body, FastAPI, HTTPException, status

from mailglass_reconcile import Sent, broadcast, record_send
from mailglass_reconcile.webhooks import webhook_app

engine = sa.create_engine(sa.make_url(os.environ["MAILGLASS_DATABASE_URL"]).set(drivername="postgresql+psycopg"))
ses = boto3.client("sesv2")
api = FastAPI()
api.mount("/webhooks", webhook_app())


@api.post("/messages", status_code=status.HTTP_202_ACCEPTED)
def send(to: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
    """Send a message, and record the id that SES answered. A real application checks the caller."""
    answer = ses.send_email(
        FromEmailAddress=os.environ["SHOP_FROM"],
        Destination={"ToAddresses": [to]},
        ConfigurationSetName=os.environ["SHOP_CONFIGURATION_SET"],
        Content={"Simple": {"Subject": {"Data": "Your order"}, "Body": {"Text": {"Data": "It is on its way."}}}},
    )
    with engine.begin() as connection:
        sent = [Sent(recipient=to, message_id=answer["MessageId"])]
        recorded = record_send(connection, provider="ses", sent=sent)
    broadcast(recorded)
    return {"delivery_id": recorded[0].delivery_id, "linked": recorded[0].linked}


@api.get("/deliveries/{delivery_id}")
def show(delivery_id: uuid.UUID) -> dict[str, Any]:
    """Show what SES has reported. A real application checks whether the user may see it."""
    statement = sa.text("SELECT last_event_type FROM mailglass_deliveries WHERE id = :id")
    with engine.connect() as connection:
        state = connection.scalar(statement, {"id": delivery_id})
    if state is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return {"status": state}
