"""A shop that sends through Brevo and receives its webhooks, with Flask. Its README says how to run it."""

import os
import uuid

import sqlalchemy as sa
from flask import Flask, request

from mailglass_reconcile import InvalidEventError, MailglassReconcileError, Sent, broadcast, record_send
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, receive

engine = sa.create_engine(sa.make_url(os.environ["MAILGLASS_DATABASE_URL"]).set(drivername="postgresql+psycopg"))
app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 5 * 1024 * 1024  # a larger body is answered with 413 before it is read


@app.post("/messages")
def send() -> tuple[dict[str, str], int]:
    """Send a message, and record it under the `messageId` that Brevo returns; this one is made up."""
    sent = Sent(recipient=request.get_json()["to"], message_id=f"<{uuid.uuid4()}@smtp-relay.mailin.fr>")
    with engine.begin() as connection:
        recorded = record_send(connection, provider="brevo", sent=[sent])
    broadcast(recorded)
    return {"message_id": str(sent.message_id)}, 202


@app.post("/webhooks/<any(brevo):provider>")  # each provider that has a secret; Flask answers 404 to others
def webhook(provider: str) -> str:
    """Verify and record a webhook."""
    with engine.begin() as connection:
        recorded = receive(connection, provider, request.get_data(), request.headers)
    broadcast(recorded)
    return "ok"


@app.errorhandler(MailglassReconcileError)
def refuse(error: MailglassReconcileError) -> tuple[str, int]:
    """Return 401 or 400 if the webhook is wrong, and 503 or 429 if the provider should send it retry_status."""
    app.logger.error("not recorded: %s", error)
    retry_status = 429 if request.path.endswith("/brevo") else 503  # Brevo gives up after a 5xx
    statuses = {SignatureError: 401, InvalidWebhookError: 400, InvalidEventError: 400}
    return "not recorded", statuses.get(type(error), retry_status)
