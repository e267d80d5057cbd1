"""A shop that sends through Postmark and receives its webhooks, with FastAPI and asyncpg; see README.md."""

import logging
import os
import uuid
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Body, FastAPI, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from updates import router

from mailglass_reconcile import InvalidEventError, MailglassReconcileError, Sent, record_send
from mailglass_reconcile.webhooks import webhook_app

logger = logging.getLogger("uvicorn.error")

url = sa.make_url(os.environ["MAILGLASS_DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, hide_parameters=True)
api = FastAPI()
api.include_router(router)
api.mount("/webhooks", webhook_app())


async def call_postmark(to: list[str]) -> dict[str, Any]:
    """Stand for `POST https://api.postmarkapp.com/email`: send nothing, log an id, and answer as Postmark does."""
    answer = {"ErrorCode": 0, "Message": "OK", "MessageID": str(uuid.uuid4()), "To": ", ".join(to)}
    logger.info("Postmark took %s", answer["MessageID"])
    return answer


@api.post("/messages", status_code=status.HTTP_202_ACCEPTED)
async def send(to: Annotated[list[str], Body()]) -> dict[str, Any]:
    """Send one message to all of *to*, and record what Postmark answered. A real application checks the caller."""
    answer = await call_postmark(to)
    sent = [Sent(recipient=address, message_id=answer["MessageID"]) for address in to]
    async with AsyncSession(engine) as session, session.begin():
        recorded = await session.run_sync(record_send, provider="postmark", sent=sent)
    return {"message_id": answer["MessageID"], "linked": sum(delivery.linked for delivery in recorded)}


@api.exception_handler(RequestValidationError)
@api.exception_handler(InvalidEventError)
async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 to what can never be recorded, in words that repeat nothing of it."""
    words = str(error) if isinstance(error, InvalidEventError) else "the body is not what this URL takes"
    return JSONResponse({"detail": words}, status.HTTP_422_UNPROCESSABLE_CONTENT)


@api.exception_handler(MailglassReconcileError)
async def ask_again(request: Request, error: Exception) -> JSONResponse:
    """Answer 503 if the database is down or refuses: the message was sent, but is not recorded yet."""
    logger.error("not recorded: %s", error)
    return JSONResponse({"detail": "try again"}, status.HTTP_503_SERVICE_UNAVAILABLE)
