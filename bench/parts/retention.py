"""Retention: nine tenths of a ledger are deleted while an application writes."""

from __future__ import annotations

import datetime as dt
import itertools
import statistics
import threading
import time

import psycopg
from pydantic import SecretStr

import mailglass_reconcile
from bench.figures import Part
from bench.machine import Machine, vacuum
from mailglass_reconcile import Sent, Settings, WebhookEvent, record_send, record_webhook
from mailglass_reconcile.store import engines

EVENTS = (300_000, 1_000_000, 3_000_000, 10_000_000)
OF_EACH = 3
"""Events of each delivery: the send, an orphan, and its `reconciled` event."""
DAYS = 30

# As our writers make ids: with random ones, each row of a large ledger would read pages of its own.
_UUID7 = """
CREATE FUNCTION pg_temp.uuid7(name text, at timestamp) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || right(md5(name), 19))::uuid
$$
"""
_DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT pg_temp.uuid7('d' || i, t.at), 'tenant-' || i %% 10, 'Mail', 'transactional', 'u' || i || '@example.com',
       'example.com', md5('m' || i)::uuid::text, 'delivered', t.at, t.at, t.at, t.at
  FROM generate_series(1, %(deliveries)s) AS i, LATERAL ({at}) AS t (at)
"""
_EVENTS = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata,
                              needs_reconciliation, inserted_at)
SELECT pg_temp.uuid7(CASE k WHEN 1 THEN 'e' ELSE k || ':' END || i, t.at), 'tenant-' || i %% 10,
       CASE WHEN k <> 1 THEN pg_temp.uuid7('d' || i, t.at) END,
       (ARRAY['dispatched', 'delivered', 'reconciled'])[k + 1], t.at,
       CASE k WHEN 0 THEN 'send:' || i WHEN 1 THEN 'webhook:' || i
              ELSE 'reconciled:' || pg_temp.uuid7('e' || i, t.at) END,
       jsonb_build_object('provider', 'postmark', 'provider_event_id', 'x' || i, 'message_id', md5('m' || i)::uuid),
       k = 1, t.at
  FROM generate_series(1, %(deliveries)s) AS i, generate_series(0, 2) AS k, LATERAL ({at}) AS t (at)
"""
_SPREAD = "SELECT %(now)s - interval '300 days' * (1 - i::float8 / %(deliveries)s)"
"""A tenth is younger than thirty days."""
_TIED = "SELECT %(now)s - CASE WHEN i %% 10 = 0 THEN interval '1 day' ELSE interval '40 days' END"
"""All in two transactions."""


def measure(machine: Machine) -> Part:
    """Measure how long the prune takes by size, with what it leaves of the writers' speed; and the same, tied."""
    part = Part()
    for events in map(machine.scaled, EVENTS):
        _prune(machine, part, events, _SPREAD, "")
    _prune(machine, part, machine.scaled(EVENTS[0]), _TIED, ", of one time")
    machine.drop("run")
    return part


def _prune(machine: Machine, part: Part, events: int, at: str, layout: str) -> None:
    url = machine.copy("migrated")
    _fill(url, events // OF_EACH, at)
    retention = {f"MAILGLASS_RETENTION_{name}_DAYS": str(DAYS) for name in ("EVENTS", "DELIVERIES")}
    with _Writer(url) as writer:
        time.sleep(max(2, 10 / machine.scale))
        alone = writer.take()
        [pruned] = machine.sweeps(url, ("--prune",), **retention)
        beside = writer.take()
    rows, seconds = pruned["events"] + pruned["deliveries"], pruned["seconds"]
    name = f"{events:,} events{layout}"
    part.add(f"{name}: deleting {pruned['events']:,}, and {pruned['deliveries']:,} deliveries", seconds, "s")
    part.add(f"{name}: rows deleted", rows / seconds, "a second")
    part.add(f"{name}: a write meanwhile", 1000 * statistics.median(beside), "ms", note=_worst(alone, beside))
    if not layout:
        part.curves.setdefault("retention", []).append((events, seconds))


def _worst(alone: list[float], beside: list[float]) -> str:
    return f"before it {1000 * statistics.median(alone):.1f}; the slowest {1000 * max(beside):.0f}"


def _fill(url: str, deliveries: int, at: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(_UUID7)
        given = {"deliveries": deliveries, "now": dt.datetime.now(dt.UTC).replace(tzinfo=None)}
        for statement in (_DELIVERIES, _EVENTS):
            cursor.execute(statement.replace("{at}", at), given)
    vacuum(url)


class _Writer:
    """An application that records sends and webhooks, one after the other, in transactions of its own."""

    def __init__(self, url: str) -> None:
        self._settings = Settings(database_url=SecretStr(url))
        self._ended = threading.Event()
        self._took: list[float] = []
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> _Writer:
        mailglass_reconcile.configure(settings=self._settings)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> list[float]:
        """Return how many seconds each write since the last call has taken."""
        taken, self._took = self._took, []
        return taken

    def _write(self) -> None:
        engine = engines.create_engine(self._settings, pool_size=1)
        for number in itertools.count():
            if self._ended.is_set():
                break
            began = time.monotonic()
            id_ = f"w{number}"
            opened = WebhookEvent(
                type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id=id_, message_id=id_
            )
            with engine.begin() as connection:
                sent = [Sent(recipient="ada@example.com", message_id=id_)]
                record_send(connection, tenant_id="tenant-1", provider="postmark", sent=sent)
                record_webhook(connection, tenant_id="tenant-1", provider="postmark", events=[opened])
            self._took.append(time.monotonic() - began)
        engine.dispose()
