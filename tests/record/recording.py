"""What the tests of the writers share: a moment, deliveries, events of a webhook, and messages that were published."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

import factories
from mailglass_reconcile import WebhookEvent, record_webhook

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LEDGER = "SELECT count(*) FROM mailglass_events"


def event(message_id="m-1", type_="delivered", **more):
    """Return a webhook's event about a message."""
    wanted = {"occurred_at": NOW, "provider_event_id": "evt", **more}
    return WebhookEvent(type=type_, message_id=message_id, **wanted)


def record(connection, *events, provider="postmark", **more):
    """Record a Postmark webhook of the factories' tenant."""
    return record_webhook(connection, **{"tenant_id": factories.TENANT, "provider": provider, "events": events, **more})


def metadata(db):
    """Return the metadata of the ledger's only event."""
    return db.value("SELECT metadata FROM mailglass_events")


def messages(db):
    """Return `(channel, payload)` of what was published about events that a writer attached, and of nothing else."""
    return [(channel, payload) for channel, payload in db.witness.messages() if payload["event_type"] != "reconciled"]


@contextmanager
def statements(connection) -> Iterator[list[str]]:
    """Write down the statements that a connection sends."""
    sent: list[str] = []

    def note(_connection, _cursor, statement, *_others):
        sent.append(statement)

    sa.event.listen(connection, "before_cursor_execute", note)
    yield sent
    sa.event.remove(connection, "before_cursor_execute", note)
