"""A shop that sends through Postmark and receives its webhooks, with Flask. Its README says how to run it."""

import os
import uuid
from collections.abc import Mapping

import sqlalchemy as sa
from flask import Flask, request

from mailglass_reconcile import Sent, broadcast, record_send
from mailglass_reconcile.webhooks import receive, refusal

engine = sa.create_engine(os.environ["MAILGLASS_DATABASE_URL"])
app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 5 * 1024 * 1024  # a larger body is answered with 413 before it is read


@app.post("/messages")
def send() -> tuple[dict[str, str], int]:
    """Send one message, and record it under the `MessageID` that Postmark returns; this one is made up."""
    message_id = str(uuid.uuid4())
    sent = [Sent(recipient=address, message_id=message_id) for address in request.get_json()]
    with engine.begin() as connection:
        recorded = record_send(connection, provider="postmark", sent=sent)
    broadcast(recorded)
    return {"message_id": message_id}, 202


@app.post("/webhooks/<any(postmark):provider>")  # each provider that has a secret; Flask answers 404 to others
def webhook(provider: str) -> tuple[str, int, Mapping[str, str]]:
    """Verify and record a webhook, or ask the provider to send it again if that may help."""
    body = request.get_data()
    try:
        with engine.begin() as connection:
            recorded = receive(connection, provider, body, request.headers)
    except Exception as error:
        status, text, headers = refusal(provider, error)
        return text, status, headers
    broadcast(recorded)
    return "ok", 200, {}
