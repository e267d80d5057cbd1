"""A shop that sends through Amazon SES and receives its events over Amazon SNS, with FastAPI; see README.md."""

import os
import uuid
from typing import Annotated, Any

import boto3
import sqlalchemy as sa
from fastapi import Body, FastAPI, HTTPException, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.tables import deliveries
from mailglass_reconcile.webhooks import webhook_app

engine = create_async_engine(os.environ["MAILGLASS_DATABASE_URL"])
ses = boto3.client("sesv2")
api = FastAPI()
api.mount("/webhooks", webhook_app())


@api.post("/messages", status_code=status.HTTP_202_ACCEPTED)
async def send(to: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
    """Send a message, and record the id that SES answered. A real application checks the caller."""
    answer = await run_in_threadpool(  # boto3 would block the event loop
        ses.send_email,
        FromEmailAddress=os.environ["SHOP_FROM"],
        Destination={"ToAddresses": [to]},
        ConfigurationSetName=os.environ["SHOP_CONFIGURATION_SET"],
        Content={"Simple": {"Subject": {"Data": "Your order"}, "Body": {"Text": {"Data": "It is on its way."}}}},
    )
    sent = [Sent(recipient=to, message_id=answer["MessageId"])]
    async with AsyncSession(engine) as session, session.begin():  # broadcasts by itself when it commits
        recorded = await session.run_sync(record_send, provider="ses", sent=sent)
    return {"delivery_id": recorded[0].delivery_id, "linked": recorded[0].linked}


@api.get("/deliveries/{delivery_id}")
async def show(delivery_id: uuid.UUID) -> dict[str, Any]:
    """Show what SES has reported. A real application checks whether the user may see it."""
    statement = sa.select(deliveries.c.last_event_type).where(deliveries.c.id == delivery_id)
    async with engine.connect() as connection:
        state = await connection.scalar(statement)
    if state is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return {"status": state}
