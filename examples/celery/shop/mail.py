"""The tasks that send and count."""

import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import InvalidEventError, Sent, record_send
from shop.celery import app
from shop.models import Suppressed, engine


def call_postmark(to: str) -> str:
    """Stand for `POST https://api.postmarkapp.com/email`: send nothing, and return the id of the answer."""
    return str(uuid.uuid4())


@app.task
def send_receipt(to: str) -> str | None:
    """Send a receipt unless the address is suppressed, and return the message id; a retry would send a second mail."""
    with Session(engine) as session, session.begin():
        if session.get(Suppressed, to):
            return None
    message_id = call_postmark(to)
    record_receipt.delay(to, message_id)
    return message_id


@app.task(
    autoretry_for=(Exception,),
    dont_autoretry_for=(InvalidEventError,),
    retry_backoff=True,
    max_retries=None,
    acks_late=True,
)
def record_receipt(to: str, message_id: str) -> None:
    """Record what Postmark answered, however often that fails; a send is recorded once."""
    with Session(engine) as session, session.begin():
        record_send(session, provider="postmark", sent=[Sent(recipient=to, message_id=message_id)])


@app.task
def list_suppressed() -> list[str]:
    """Return the addresses that get no more mail."""
    with Session(engine) as session:
        return list(session.scalars(sa.select(Suppressed.address).order_by(Suppressed.address)))
