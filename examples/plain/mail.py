"""Send a message, record it, and record what the provider reports, in one script; see README.md."""

import datetime as dt
import os
import uuid

import sqlalchemy as sa

from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook
from mailglass_reconcile.tables import deliveries

engine = sa.create_engine(os.environ["MAILGLASS_DATABASE_URL"])


def call_postmark(*to: str) -> str:
    """Stand for Postmark's API: send nothing, and answer with a new message id."""
    print("Postmark takes a message to", *to)
    return str(uuid.uuid4())


def send(message_id: str, *to: str) -> None:
    """Record what Postmark has answered: one delivery for each recipient."""
    sent = [Sent(recipient=address, message_id=message_id) for address in to]
    with engine.begin() as connection:
        recorded = record_send(connection, provider="postmark", sent=sent)
    broadcast(recorded)
    for address, delivery in zip(to, recorded, strict=True):
        events = "event" if delivery.linked == 1 else "events"
        print(f"recorded: the delivery to {address}, {delivery.linked} waiting {events} linked")


def webhook(kind: str, message_id: str, address: str) -> None:
    """Record what Postmark reports; the event's id is what a retry shares with it."""
    event = WebhookEvent(
        type=kind,
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id=f"{kind} {message_id} {address}",
        message_id=message_id,
        recipient=address,
    )
    with engine.begin() as connection:
        recorded = record_webhook(connection, provider="postmark", events=[event])
    broadcast(recorded)
    (became,) = recorded
    how = "known already" if not became.event_id else "on its delivery" if became.delivery_id else "waits for its send"
    print(f"webhook: {address} {kind}: {how}")


ADA, BOB = "ada@example.com", "bob@example.com"
ID = call_postmark(ADA, BOB)
webhook("delivered", ID, ADA)  # too early: the send is not recorded yet
send(ID, ADA, BOB)
webhook("bounced", ID, BOB)
webhook("opened", ID, ADA)
webhook("opened", ID, ADA)  # a retry

with engine.connect() as connection:
    query = sa.select(deliveries.c.recipient, deliveries.c.last_event_type).order_by(deliveries.c.recipient)
    for recipient, last in connection.execute(query.where(deliveries.c.provider_message_id == ID)):
        print(f"{recipient}: {last}")
