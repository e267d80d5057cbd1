"""Recording: sends and webhooks in the application's own transaction, beside the same rows as plain SQL."""

from __future__ import annotations

import datetime as dt
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from bench.rivals import backend_seconds
from mailglass_reconcile import Sent, Settings, WebhookEvent, configure, record_send, record_webhook
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.ledger import uuid7

CALL = 500
"""Events of one call."""
RECIPIENTS = 1_000
WIDE_CALLS = 50
AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

EVENTS = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata,
                              needs_reconciliation, inserted_at)
VALUES (%s, 'acme', %s, %s, %s, %s, %s, %s, now())
"""
DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
       provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
VALUES (%s, 'acme', 'python', 'transactional', %s, 'example.com', 'postmark', %s, 'dispatched', %s, %s, now(), now())
"""
DELIVERY_OF = """
SELECT id FROM mailglass_deliveries WHERE provider = 'postmark' AND provider_message_id = %s
"""
UPDATE = """
UPDATE mailglass_deliveries SET last_event_type = 'delivered', last_event_at = %s, delivered_at = %s, terminal = true,
       lock_version = lock_version + 1, updated_at = now() WHERE id = %s
"""
WIDE = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'acme', 'News', 'bulk', 'u' || n || '@example.com', 'example.com', 'wide', 'dispatched',
       now(), now(), now() FROM generate_series(1, %s) AS n
"""


class Recording:
    """One migrated database that sends and webhooks are recorded in; figures are medians in seconds."""

    cpu = 0.0

    def __init__(self, url: str, redis_url: str, runs: int) -> None:
        """Measure on *url*, and take medians of *runs*."""
        self.url, self.runs = url, runs
        settings = Settings(database_url=url, redis_url=redis_url)
        self.engine = create_engine(settings)
        configure(engine=self.engine, settings=settings)

    def _record(self, writer: Callable[..., Any], per_run: Sequence[dict[str, Any]], *, commit: bool = True) -> float:
        """Return what one call takes, with the commit or without it, on an open connection.

        `cpu` is then what a call costs in all, commit included, in CPU seconds of Python and Postgres.
        """
        found = []
        with self.engine.connect() as connection:
            backend = connection.connection.dbapi_connection.info.backend_pid
            spent = time.process_time() + backend_seconds(backend)
            for given in per_run:
                connection.exec_driver_sql("SELECT 1")
                began = time.perf_counter()
                writer(connection, tenant_id="acme", provider="postmark", **given)
                if not commit:
                    found.append(time.perf_counter() - began)
                connection.commit()
                if commit:
                    found.append(time.perf_counter() - began)
            self.cpu = (time.process_time() + backend_seconds(backend) - spent) / len(per_run)
        return statistics.median(found)

    def sends(self, tag: str) -> float:
        """Record one send to a thousand recipients, each with an id of its own."""
        return self._record(record_send, [{"sent": _sent(f"{tag}{run}")} for run in range(self.runs)])

    def plain_sends(self, tag: str) -> float:
        """Write the same rows as plain SQL, with psycopg's `executemany`: each delivery and its event."""

        def write(cursor: psycopg.Cursor, run: int) -> None:
            rows = [(uuid7(), uuid7(), one.recipient, one.message_id) for one in _sent(f"{tag}{run}")]
            cursor.executemany(DELIVERIES, [(id_, who, name, AT, AT) for id_, _, who, name in rows])
            cursor.executemany(
                EVENTS,
                [(e, id_, "dispatched", AT, f"plain:{name}", _metadata(name), False) for id_, e, _, name in rows],
            )

        return self._plain(write)

    def webhooks(self, tag: str, kind: str) -> float:
        """Record webhooks of 500 events about messages `tag`; *kind* makes their ids."""
        return self._record(record_webhook, [{"events": _events(f"{tag}{run}", kind)} for run in range(self.runs)])

    def plain_webhooks(self, tag: str, kind: str) -> float:
        """Write the same rows as plain SQL: look for each delivery, insert the event, update the delivery."""

        def write(cursor: psycopg.Cursor, run: int) -> None:
            events = _events(f"{tag}{run}", kind)
            cursor.executemany(DELIVERY_OF, [(event.message_id,) for event in events], returning=True)
            found = []
            while True:
                row = cursor.fetchone()
                found.append(row[0] if row else None)
                if not cursor.nextset():
                    break
            rows = list(zip(events, found, strict=True))
            cursor.executemany(
                EVENTS,
                [
                    (uuid7(), id_, one.type, AT, one.provider_event_id, _metadata(str(one.message_id)), id_ is None)
                    for one, id_ in rows
                ],
            )
            cursor.executemany(UPDATE, [(AT, AT, id_) for _, id_ in rows if id_])

        return self._plain(write)

    def fill_wide(self, deliveries: int) -> None:
        """Store many deliveries of one id, of which the planner's statistics say nothing."""
        with psycopg.connect(self.url) as connection:
            connection.execute("ALTER TABLE mailglass_deliveries SET (autovacuum_enabled = false)")
            connection.execute(WIDE, (deliveries,))

    def wide_webhooks(self) -> float:
        """Record single events of that id."""
        people = [f"u{n}@example.com" for n in range(1, WIDE_CALLS + 1)]
        events = [{"events": [_event(f"wide-{who}", "wide", who, "opened")]} for who in people]
        return self._record(record_webhook, events, commit=False)

    def wide_sends(self) -> float:
        """Record single sends of that id."""
        sends = [{"sent": [Sent(recipient=f"new{n}@example.com", message_id="wide")]} for n in range(WIDE_CALLS)]
        return self._record(record_send, sends, commit=False)

    def _plain(self, write: Callable[[psycopg.Cursor, int], None]) -> float:
        found = []
        with psycopg.connect(self.url) as connection:
            for run in range(self.runs):
                connection.execute("SELECT 1")
                began = time.perf_counter()
                with connection.cursor() as cursor:
                    write(cursor, run)
                connection.commit()
                found.append(time.perf_counter() - began)
        return statistics.median(found)


def _sent(tag: str) -> list[Sent]:
    return [Sent(recipient=f"u{n}@example.com", message_id=f"{tag}-{n}", occurred_at=AT) for n in range(RECIPIENTS)]


def _events(tag: str, kind: str) -> list[WebhookEvent]:
    return [_event(f"{kind}-{tag}-{n}", f"{tag}-{n}", f"u{n}@example.com", "delivered") for n in range(CALL)]


def _event(id_: str, message_id: str, recipient: str, type_: str) -> WebhookEvent:
    return WebhookEvent(
        type=type_, occurred_at=AT, provider_event_id=id_, message_id=message_id, recipient=recipient, metadata={"n": 1}
    )


def _metadata(message_id: str) -> Jsonb:
    return Jsonb({"n": 1, "provider": "postmark", "provider_message_id": message_id}, dumps=json.dumps)


def report(url: str, redis_url: str, runs: int, scale: int, tell: Callable[..., None]) -> None:
    """Measure on a migrated database, and hand each figure with its target to *tell*, the `report` of a bench."""
    recording = Recording(url, redis_url, max(3, 2 * runs))
    sends, cpu, plain = recording.sends("own"), recording.cpu, recording.plain_sends("plain")
    note = f"CPU {cpu:.2f} s; plain SQL {plain:.2f} s"
    tell("record_send of 1,000 recipients, s", sends, 0.5, at_most=True, note=note)
    for name, tag in (("attached", "own"), ("orphans", "nobody")):
        ours, cpu = recording.webhooks(tag, name), recording.cpu
        plain = recording.plain_webhooks("plain" if name == "attached" else "nobody", f"plain {name}")
        note = f"a second of CPU {CALL / cpu:,.0f}; plain SQL {CALL / plain:,.0f}"
        tell(f"record_webhook, {name}, events a second in calls of {CALL}", CALL / ours, 3_000, note=note)
    recording.fill_wide(100_000 // scale)
    for name, measure in (
        ("record_webhook, one event", recording.wide_webhooks),
        ("record_send, one recipient", recording.wide_sends),
    ):
        found = measure()
        note = f"CPU with the commit {recording.cpu * 1000:.1f} ms"
        tell(f"{name} of an id of 100,000 deliveries, ms", found * 1000, 20, at_most=True, note=note)
    configure()
