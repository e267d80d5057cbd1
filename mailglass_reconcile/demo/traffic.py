"""The application that sends and the endpoint that receives: transactions left open, events that overtake them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import sqlalchemy as sa

from mailglass_reconcile.demo.story import Mail, Webhook
from mailglass_reconcile.record.webhooks import idempotency_key

_SEND = sa.text("""
INSERT INTO mailglass_deliveries
       (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
        last_event_type, last_event_at, dispatched_at, status, inserted_at, updated_at)
SELECT CAST(:id AS uuid), :tenant_id, 'Demo.Newsletter', 'bulk', :recipient, 'example.com', :message_id,
       'dispatched', t.utc, t.utc, 'sent', t.utc, t.utc
  FROM (SELECT now() AT TIME ZONE 'UTC' AS utc) AS t
""")

_RECEIVE = sa.text("""
INSERT INTO mailglass_events AS e
       (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation, inserted_at)
SELECT CAST(:id AS uuid), :tenant_id, :type, t.utc, :idempotency_key, CAST(:metadata AS jsonb), true, t.utc
  FROM (SELECT now() AT TIME ZONE 'UTC' AS utc) AS t
RETURNING md5(e::text)
""")

_LAST_EVENTS = sa.text(
    "SELECT id::text, last_event_type FROM mailglass_deliveries WHERE id = ANY(CAST(:ids AS uuid[]))"
)

_VISIBLE = sa.text("SELECT count(*) FROM mailglass_deliveries WHERE provider_message_id = :message_id")


class Traffic:
    """Sends mail in transactions that stay open, and records webhooks from another connection meanwhile.

    Attributes:
        fingerprints: The MD5 of each orphan's row as it was inserted, by event id.
        too_late: Webhooks that came when their delivery could be seen already; the demo means to have none.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.fingerprints: dict[str, str] = {}
        self.too_late = 0
        self._engine = engine
        self._open: dict[str, sa.Connection] = {}
        self._connections = ExitStack()

    def __enter__(self) -> Traffic:
        """Connect the webhook endpoint."""
        self._endpoint = self._connections.enter_context(self._engine.connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection; what is still open is rolled back."""
        self._connections.close()

    def send(self, mail: Mail) -> None:
        """Insert the delivery of *mail*, and leave the transaction open; mails of one message id share it."""
        connection = self._open.get(mail.message_id)
        if connection is None:
            connection = self._connections.enter_context(self._engine.connect())
            self._open[mail.message_id] = connection
        connection.execute(
            _SEND,
            {
                "id": mail.id,
                "tenant_id": mail.tenant_id,
                "recipient": f"{mail.name.replace(' ', '')}@example.com",
                "message_id": mail.message_id,
            },
        )

    def settle(self, mail: Mail) -> None:
        """Commit the transaction of *mail*, or roll it back if the plot says so; a shared one is done only once."""
        connection = self._open.pop(mail.message_id, None)
        if connection is not None:
            connection.commit() if mail.commits else connection.rollback()

    def receive(self, webhook: Webhook, mail: Mail | None) -> None:
        """Insert the event of *webhook* as an orphan and commit it; *mail* is what it is about, if it is ours."""
        provider_event_id = str(webhook.metadata["provider_event_id"])
        with self._endpoint.begin():
            if mail is not None:
                parameters = {"message_id": mail.message_id}
                self.too_late += self._endpoint.execute(_VISIBLE, parameters).scalar_one()
            self.fingerprints[webhook.id] = self._endpoint.execute(
                _RECEIVE,
                {
                    "id": webhook.id,
                    "tenant_id": webhook.tenant_id,
                    "type": webhook.type,
                    "idempotency_key": idempotency_key(
                        webhook.tenant_id, webhook.provider, provider_event_id, webhook.type, 0
                    ),
                    "metadata": json.dumps(webhook.metadata),
                },
            ).scalar_one()

    def last_events(self, mails: Sequence[Mail]) -> dict[str, str]:
        """Return what the rows of *mails* say happened last, by the mails' names."""
        with self._endpoint.begin():
            rows = self._endpoint.execute(_LAST_EVENTS, {"ids": [mail.id for mail in mails]}).all()
        found = {row.id: row.last_event_type for row in rows}
        return {mail.name: found[mail.id] for mail in mails}
