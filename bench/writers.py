"""The two kinds of application that write: one that calls our functions, one that inserts rows as Mailglass does."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

import mailglass_reconcile
from bench.performance.plan import TYPES, Load
from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook

Written = Callable[[], None]

DELIVERY = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT %s, %s, 'Mail', 'transactional', %s, 'example.com', %s, 'dispatched', t, t, t, t
  FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS t) AS now
"""

DISPATCHED = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, inserted_at)
SELECT %s, %s, %s, 'dispatched', t, t FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS t) AS now
"""

RAW_WEBHOOK = """
INSERT INTO mailglass_webhook_events (id, tenant_id, provider, provider_event_id, event_type_raw,
       event_type_normalized, status, raw_payload, received_at, inserted_at, updated_at)
SELECT %s, %s, 'postmark', %s, 'Delivery', %s, 'succeeded', jsonb_build_object('Recipient', %s::text), t, t, t
  FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS t) AS now
"""

ORPHAN = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation,
                              inserted_at)
SELECT %s, %s, %s, %s, %s, jsonb_build_object('provider', 'postmark', 'provider_event_id', %s::text,
       'record_type', 'Delivery', 'message_id', %s::text), true, clock_timestamp() AT TIME ZONE 'UTC'
"""


class Recorder:
    """Calls `record_send` and `record_webhook` on a pooled engine, as an application does."""

    def __init__(self, url: str, load: Load, threads: int) -> None:
        """Connect later, at most *threads* times."""
        self._load = load
        self._engine = sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg"),
            pool_size=threads,
            connect_args={"application_name": "load"},
        )
        mailglass_reconcile.configure(engine=self._engine)

    @contextmanager
    def send(self, message: int, written: Written) -> Iterator[None]:
        """Record a send, leave its transaction open while the block runs, commit it, and broadcast."""
        one = Sent(recipient=f"u{message}@example.com", message_id=self._load.message_id(message))
        with self._engine.begin() as connection:
            recorded = record_send(
                connection, tenant_id=self._load.tenant(message), provider="postmark", sent=[one], mailable="Mail"
            )
            yield
        written()
        broadcast(recorded)

    @contextmanager
    def event(self, message: int, number: int, at: dt.datetime, written: Callable[[str], None]) -> Iterator[None]:
        """Record an event of a send, leave its transaction open while the block runs, commit it, and broadcast."""
        event = WebhookEvent(
            type=TYPES[number],
            occurred_at=at,
            provider_event_id=f"{self._load.message_id(message)}/{number}",
            message_id=self._load.message_id(message),
            recipient=f"u{message}@example.com",
        )
        with self._engine.begin() as connection:
            recorded = record_webhook(
                connection, tenant_id=self._load.tenant(message), provider="postmark", events=[event]
            )
            yield
        written(str(recorded[0].event_id))
        broadcast(recorded)


class Inserter:
    """Inserts the rows that Mailglass inserts: every event is an orphan, and nobody calls a function of ours."""

    def __init__(self, url: str, load: Load, threads: int) -> None:
        """Connect *threads* times."""
        self._load = load
        self._idle = [psycopg.connect(f"{url}&application_name=load") for _ in range(threads)]

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection]:
        connection = self._idle.pop()
        try:
            with connection.transaction():
                yield connection
        finally:
            self._idle.append(connection)

    @contextmanager
    def send(self, message: int, written: Written) -> Iterator[None]:
        """Insert a delivery and its event, leave the transaction open while the block runs, and commit."""
        tenant, delivery = self._load.tenant(message), uuid.uuid4()
        with self._transaction() as connection:
            wanted = [delivery, tenant, f"u{message}@example.com", self._load.message_id(message)]
            connection.execute(DELIVERY, wanted)
            connection.execute(DISPATCHED, [uuid.uuid4(), tenant, delivery])
            yield
        written()

    @contextmanager
    def event(self, message: int, number: int, at: dt.datetime, written: Callable[[str], None]) -> Iterator[None]:
        """Insert a raw webhook and its orphan, leave the transaction open while the block runs, and commit."""
        tenant, event, kind = self._load.tenant(message), uuid.uuid4(), TYPES[number]
        message_id = self._load.message_id(message)
        provider_id = f"{message_id}/{number}"
        with self._transaction() as connection:
            raw = [uuid.uuid4(), tenant, provider_id, kind, f"u{message}@example.com"]
            connection.execute(RAW_WEBHOOK, raw)
            connection.execute(
                ORPHAN,
                [event, tenant, kind, at.replace(tzinfo=None), f"postmark:{provider_id}", provider_id, message_id],
            )
            yield
        written(str(event))


WRITERS = {"record": Recorder, "insert": Inserter}
