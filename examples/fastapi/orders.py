"""Orders in a table of the shop's own, joined with the deliveries of their mails; see README.md."""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Body, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.tables import deliveries

engine = create_async_engine(os.environ["MAILGLASS_DATABASE_URL"])
metadata = sa.MetaData()
orders = sa.Table(
    "orders", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("delivery_id", sa.Uuid, nullable=False)
)


@asynccontextmanager
async def make_tables(_: FastAPI) -> AsyncIterator[None]:
    """Make the shop's table; your migrations do that."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield
    await engine.dispose()


api = FastAPI(lifespan=make_tables)


@api.post("/orders", status_code=201)
async def confirm(to: Annotated[str, Body()]) -> dict[str, str]:
    """Send a confirmation, and store its delivery with a new order. A real application checks the caller."""
    message_id = str(uuid.uuid4())  # call your provider's API here
    async with AsyncSession(engine) as session, session.begin():
        sent = [Sent(recipient=to, message_id=message_id)]
        recorded = await session.run_sync(record_send, provider="postmark", sent=sent)
        await session.execute(orders.insert().values(delivery_id=recorded[0].delivery_id))
    return {"message_id": message_id}


@api.get("/orders")
async def list_orders() -> list[dict[str, Any]]:
    """Show what became of each order's mail."""
    joined = orders.outerjoin(deliveries, deliveries.c.id == orders.c.delivery_id)
    statement = sa.select(orders.c.id, deliveries.c.last_event_type, deliveries.c.last_event_at).select_from(joined)
    async with engine.connect() as connection:
        rows = await connection.execute(statement.order_by(orders.c.id))
        return [{"order": order, "status": status, "since": since} for order, status, since in rows]
