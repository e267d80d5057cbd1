"""Messages that providers accept through Anymail's backends, and the webhooks about them."""

import dataclasses
import datetime as dt
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from anymail.message import AnymailMessage, AnymailStatus
from botocore.stub import Stubber
from django.core.mail import get_connection
from requests.adapters import HTTPAdapter

from anymail_webhooks import BEGIN, MAILJET, POSTAL, AnymailProvider
from mailglass_reconcile import record_send
from mailglass_reconcile.contrib.anymail import sent

SETTINGS = {
    **dict.fromkeys(
        [
            "BREVO_API_KEY",
            "MAILERSEND_API_TOKEN",
            "MAILGUN_API_KEY",
            "MAILJET_API_KEY",
            "MAILJET_SECRET_KEY",
            "MAILTRAP_API_TOKEN",
            "MANDRILL_API_KEY",
            "POSTAL_API_KEY",
            "POSTMARK_SERVER_TOKEN",
            "RESEND_API_KEY",
            "SCALEWAY_PROJECT_ID",
            "SCALEWAY_SECRET_KEY",
            "SENDGRID_API_KEY",
            "SPARKPOST_API_KEY",
        ],
        "key",
    ),
    "MAILGUN_SENDER_DOMAIN": "example.com",
    "UNISENDER_GO_API_URL": "https://go1.unisender.ru/ru/transactional/api/v1/",
    "POSTAL_API_URL": "https://postal.example.com/api/v1/",
    "AMAZON_SES_CLIENT_PARAMS": {
        "region_name": "eu-central-1",
        "aws_access_key_id": "key",
        "aws_secret_access_key": "key",
    },
}
"""In addition to those of the webhooks."""


def answer(esp_name: str, to: Sequence[str], ids: Sequence[Any]) -> tuple[Any, Mapping[str, str]]:
    """Return the body and headers with which a provider accepts a message; each recipient gets an id, or all the
    first.

    SendGrid answers nothing and Unisender Go no id that matters: there, Anymail generates the id and passes it on.
    """
    pairs = list(zip(to, ids, strict=True))
    bodies: dict[str, Any] = {
        "Postmark": {"ErrorCode": 0, "Message": "OK", "MessageID": ids[0], "To": ", ".join(to)},
        "Mailgun": {"id": ids[0], "message": "Queued. Thank you."},
        "Brevo": {"messageId": ids[0]},
        "Resend": {"id": ids[0]},
        "SparkPost": {"results": {"id": ids[0], "total_accepted_recipients": len(to), "total_rejected_recipients": 0}},
        "Mailjet": {
            "Messages": [{"Status": "success", "To": [{"Email": address, "MessageID": id_} for address, id_ in pairs]}]
        },
        "Mandrill": [{"email": address, "status": "queued", "_id": id_} for address, id_ in pairs],
        "Mailtrap": {"success": True, "message_ids": list(ids)},
        "Postal": {
            "status": "success",
            "data": {"messages": {address: {"id": id_, "token": "t"} for address, id_ in pairs}},
        },
        "Scaleway": {"emails": [{"id": id_, "mail_rcpt": address, "status": "sending"} for address, id_ in pairs]},
        "Unisender Go": {"status": "success", "job_id": "1ZymBc-00041N-9X", "emails": list(to)},
    }
    headers = {"X-Message-Id": str(ids[0]), "Content-Type": "text/html"} if esp_name == "MailerSend" else {}
    return bodies.get(esp_name, ""), headers


class _StubSession(HTTPAdapter):
    """Answers every request of a session alike."""

    def __init__(self, body: Any, headers: Mapping[str, str], status: int) -> None:
        super().__init__()
        self.body, self.answered, self.status = body, headers, status

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:  # type: ignore[override]
        response = requests.Response()
        response.status_code, response.url, response.request = self.status, request.url or "", request
        response.headers.update({"Content-Type": "application/json", **self.answered})
        response.raw = io.BytesIO(self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode())
        return response


def send(
    esp_name: str, message: AnymailMessage, body: Any, headers: Mapping[str, str] | None = None, status: int = 200
) -> AnymailStatus:
    """Send a message by Anymail's backend of a provider whose API answers *body*; return what `post_send` gets."""
    module = esp_name.lower().replace(" ", "_")
    backend = get_connection(f"anymail.backends.{module}.EmailBackend")
    backend.open()
    try:
        if esp_name == "Amazon SES":
            with Stubber(backend.client) as stub:
                stub.add_response("send_email", body)
                backend.send_messages([message])
        else:
            backend.session.mount("https://", _StubSession(body, headers or {}, status))
            backend.send_messages([message])
    finally:
        backend.close()
    return message.anymail_status


def send_accepted(esp_name: str, to: Sequence[str], ids: Sequence[Any]) -> AnymailStatus:
    """Send a message that the provider accepts, and return its status."""
    message = AnymailMessage("Hi", "Hello", "shop@example.com", list(to))
    body, headers = ({"MessageId": ids[0]}, {}) if esp_name == "Amazon SES" else answer(esp_name, to, ids)
    return send(esp_name, message, body, headers)


ANN = "Ann@example.org"
BOB = "bob@example.org"
STORY = [("delivered", ANN, 10), ("bounced", BOB, 15), ("opened", ANN, 20), ("opened", ANN, 30), ("clicked", ANN, 40)]
"""What becomes of a message to two people: type, recipient, second."""
DELIVERIES = """
SELECT d.recipient, d.last_event_type, d.last_event_at, d.terminal, d.dispatched_at, d.delivered_at, d.bounced_at,
       (SELECT array_agg(e.type ORDER BY e.occurred_at, e.type)
          FROM mailglass_events AS e
          LEFT JOIN mailglass_events AS r ON r.idempotency_key = 'reconciled:' || e.id
         WHERE e.type <> 'reconciled' AND d.id = coalesce(e.delivery_id, r.delivery_id)) AS events
  FROM mailglass_deliveries AS d WHERE d.provider_message_id = ANY (CAST(:ids AS text[])) ORDER BY d.recipient
"""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message to several recipients that a provider has accepted."""

    provider: AnymailProvider
    sent: list

    @classmethod
    def send_accepted(cls, provider, number, to=(ANN, BOB)):
        """Send a message by Anymail's backend; a number makes the provider's id unique."""
        if provider in (MAILJET, POSTAL):
            ids = [number * 100 + n for n in range(len(to))]
        else:
            ids = [f"<{number}-{n}@example.com>" for n in range(len(to))]
        return cls.from_status(provider, send_accepted(provider.esp_name, to, ids))

    @classmethod
    def from_status(cls, provider, status):
        """Return the message of a status."""
        sends = sent(None, status)
        at = dt.datetime.fromtimestamp(BEGIN, dt.UTC)
        return cls(provider, [dataclasses.replace(send, occurred_at=at) for send in sends])

    @property
    def ids(self):
        """The message's ids by recipient."""
        return {sent.recipient: sent.message_id for sent in self.sent}

    def requests(self, *story):
        """Return the provider's webhooks about it."""
        events = [
            self.provider.event(type_, self.ids[to], to, n)
            for type_, to, n in story
            if type_ in self.provider.types and to in self.ids
        ]
        return self.provider.requests(events)

    def record(self, db):
        """Record the send, and return how many events it linked."""
        with db.engine.begin() as connection:
            recorded = record_send(connection, provider=self.provider.esp_name, sent=self.sent)
        return sum(delivery.linked for delivery in recorded)

    def deliveries(self, db):
        """Return the message's deliveries, with the types of their events."""
        return [row._asdict() for row in db.rows(DELIVERIES, ids=[str(id_) for id_ in set(self.ids.values())])]
