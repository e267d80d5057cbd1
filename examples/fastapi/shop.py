"""A FastAPI application that records what it sends through Postmark, and Postmark's webhooks; see README.md."""

import logging
import os
import secrets
import uuid
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Body, Depends, FastAPI, HTTPException, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from postmark import event_of
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from updates import router

from mailglass_reconcile import (
    InvalidEventError,
    MailglassReconcileError,
    Sent,
    record_send,
    record_webhook,
)

logger = logging.getLogger("uvicorn.error")

url = sa.make_url(os.environ["MAILGLASS_DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, hide_parameters=True)
webhook_login = f"{os.environ['POSTMARK_USER']}:{os.environ['POSTMARK_PASSWORD']}".encode()
api = FastAPI()
api.include_router(router)


async def call_postmark(to: list[str]) -> dict[str, Any]:
    """Stand for `POST https://api.postmarkapp.com/email`: send nothing, log an id, and answer as Postmark does."""
    answer = {"ErrorCode": 0, "Message": "OK", "MessageID": str(uuid.uuid4()), "To": ", ".join(to)}
    logger.info("Postmark took %s", answer["MessageID"])
    return answer


@api.post("/messages", status_code=status.HTTP_202_ACCEPTED)
async def send(to: Annotated[list[str], Body()]) -> dict[str, Any]:
    """Send one message to all of *to*, and record what Postmark answered. A real application checks who asks."""
    answer = await call_postmark(to)
    sent = [Sent(recipient=address, message_id=answer["MessageID"]) for address in to]
    async with AsyncSession(engine) as session, session.begin():
        recorded = await session.run_sync(record_send, provider="postmark", sent=sent)
    return {"message_id": answer["MessageID"], "linked": sum(each.linked for each in recorded)}


def from_postmark(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
    """Refuse callers who do not know the user name and the password of the webhook's URL: Postmark signs nothing."""
    given = f"{credentials.username}:{credentials.password}".encode()
    if not secrets.compare_digest(given, webhook_login):
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, headers={"WWW-Authenticate": "Basic"})


@api.post("/webhooks/postmark", dependencies=[Depends(from_postmark)])
async def postmark(report: dict[str, Any]) -> dict[str, bool]:
    """Record one event, on its delivery or, if that is not there yet, as an orphan."""
    async with AsyncSession(engine) as session, session.begin():
        (recorded,) = await session.run_sync(record_webhook, provider="postmark", events=[event_of(report)])
    return {"orphan": recorded.event_id is not None and recorded.delivery_id is None}


@api.exception_handler(RequestValidationError)
@api.exception_handler(InvalidEventError)
async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 to what can never be recorded, in words that repeat nothing of it."""
    words = str(error) if isinstance(error, InvalidEventError) else "the body is not what this address takes"
    return JSONResponse({"detail": words}, status.HTTP_422_UNPROCESSABLE_CONTENT)


@api.exception_handler(MailglassReconcileError)
async def ask_again(request: Request, error: Exception) -> JSONResponse:
    """Answer 503 if the database is down or refuses: Postmark sends the event again, for hours."""
    logger.error("not recorded: %s", error)
    return JSONResponse({"detail": "try again"}, status.HTTP_503_SERVICE_UNAVAILABLE)
