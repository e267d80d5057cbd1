"""Sizing: disk, WAL and vacuum of a million messages a day, measured at a tenth and scaled."""

from __future__ import annotations

import datetime as dt
import time

import psycopg
import sqlalchemy as sa
from pydantic import SecretStr

import mailglass_reconcile
from bench.figures import Part
from bench.testbed import Testbed
from mailglass_reconcile import Sent, Settings, WebhookEvent, record_send, record_webhook
from mailglass_reconcile.store import engines

MESSAGES_A_DAY, MEASURED_MESSAGES = 1_000_000, 100_000
EVENTS_PER_MESSAGE = 2
"""Webhook events of each message, in addition to the event of the send."""
RETENTIONS = (30, 365)

_AGE = """
CREATE FUNCTION age() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  NEW.inserted_at := NEW.inserted_at - interval '40 days';
  RETURN NEW;
END $$;
CREATE TRIGGER age BEFORE INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION age();
CREATE TRIGGER age BEFORE INSERT ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION age();
"""
_SIZE = "SELECT pg_total_relation_size('mailglass_events') + pg_total_relation_size('mailglass_deliveries')"
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"


def measure(testbed: Testbed) -> Part:
    """Record a tenth of a day with our writers, delete all of it, and vacuum."""
    part = Part()
    url = testbed.copy("migrated")
    messages = testbed.scaled(MEASURED_MESSAGES)
    scale = MESSAGES_A_DAY / messages
    with psycopg.connect(url, autocommit=True) as connection:

        def value(statement: str) -> float:
            return float(connection.execute(statement).fetchall()[0][0])

        connection.execute(_AGE)
        before = value(_WAL)
        _write(url, messages)
        recorded_wal, size = value(_WAL) - before, value(_SIZE)
        retention = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}
        before = value(_WAL)
        [prune_result] = testbed.sweeps(url, ("--prune",), **retention)
        deleted_wal = value(_WAL) - before
        before, began = value(_WAL), time.monotonic()
        connection.execute("VACUUM mailglass_events, mailglass_deliveries")
        vacuum_wal, seconds = value(_WAL) - before, time.monotonic() - began
    if (prune_result["events"], prune_result["deliveries"]) != ((1 + EVENTS_PER_MESSAGE) * messages, messages):
        raise SystemExit(f"the prune left something: {prune_result}")
    for days in RETENTIONS:
        part.add(f"a million messages a day, kept {days} days: on disk", size * scale * days / 1e9, "GB")
    part.add("a day: WAL of recording", recorded_wal * scale / 1e9, "GB")
    part.add("a day: WAL of deleting as many", deleted_wal * scale / 1e9, "GB")
    part.add("a day: WAL of vacuuming what was deleted", vacuum_wal * scale / 1e9, "GB")
    part.add("a day: the prune takes", prune_result["seconds"] * scale / 60, "minutes")
    part.add("a day: vacuum takes", seconds * scale / 60, "minutes")
    part.add("a day: rows that wait for vacuum", (2 + EVENTS_PER_MESSAGE) * MESSAGES_A_DAY)
    testbed.drop("run")
    return part


def _write(url: str, messages: int) -> None:
    settings = Settings(database_url=SecretStr(url))
    mailglass_reconcile.configure(settings=settings)
    engine = engines.create_engine(settings, pool_size=1)
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=41)
    for start in range(0, messages, 500):
        ids = [f"message-{number:024d}" for number in range(start, min(start + 500, messages))]
        _write_some(engine, ids, long_ago)
    engine.dispose()


def _write_some(engine: sa.Engine, ids: list[str], at: dt.datetime) -> None:
    sends = [Sent(recipient=f"{id_}@example.com", message_id=id_, occurred_at=at) for id_ in ids]
    events = [
        WebhookEvent(type=type_, occurred_at=at, provider_event_id=f"{type_}-{id_}", message_id=id_)
        for type_ in ("delivered", "opened")[:EVENTS_PER_MESSAGE]
        for id_ in ids
    ]
    with engine.begin() as connection:
        record_send(connection, tenant_id="tenant-1", provider="postmark", sent=sends)
    with engine.begin() as connection:
        record_webhook(connection, tenant_id="tenant-1", provider="postmark", events=events)
