"""Sizing: disk, WAL and vacuum of a million messages a day, measured at a tenth and scaled."""

from __future__ import annotations

import time
from itertools import pairwise

import psycopg

from bench.results import Results
from bench.testbed import Testbed

MESSAGES_A_DAY, MEASURED_MESSAGES = 1_000_000, 100_000
EVENTS_PER_MESSAGE = 2
"""Webhook events of each message, in addition to the event of the send."""
RETENTIONS = (30, 365)
BATCH = 500

AGE = """
SET session_replication_role = replica;
CREATE TEMPORARY TABLE aged_events AS SELECT * FROM mailglass_events;
CREATE TEMPORARY TABLE aged_deliveries AS SELECT * FROM mailglass_deliveries;
-- Ids of events are UUIDv7: their first 48 bits are milliseconds.
UPDATE aged_events
   SET inserted_at = inserted_at - interval '40 days',
       id = (lpad(to_hex(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint - 40 * 86400000::bigint),
                  12, '0') || substr(replace(id::text, '-', ''), 13))::uuid;
UPDATE aged_deliveries SET inserted_at = inserted_at - interval '40 days';
TRUNCATE mailglass_events, mailglass_deliveries;
INSERT INTO mailglass_events SELECT * FROM aged_events ORDER BY id;
INSERT INTO mailglass_deliveries SELECT * FROM aged_deliveries ORDER BY inserted_at;
DROP TABLE aged_events, aged_deliveries;
VACUUM ANALYZE;
"""
"""Writes the rows anew, 40 days older: triggers on the INSERTs would change what the writers' functions return."""
SIZE = "SELECT pg_total_relation_size('mailglass_events') + pg_total_relation_size('mailglass_deliveries')"
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
RETENTION = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}


def measure(testbed: Testbed, results: Results) -> None:
    """Record a tenth of a day with our writers, delete all of it, and vacuum.

    Raises:
        SystemExit: The prune left something.
    """
    messages, url, worker = testbed.scaled(MEASURED_MESSAGES), testbed.copy("made here"), testbed.worker(**RETENTION)
    scale = MESSAGES_A_DAY / messages
    with psycopg.connect(url, autocommit=True) as connection:

        def value(statement: str) -> float:
            return float(connection.execute(statement).fetchall()[0][0])

        recording = value(WAL)
        for start in range(0, messages, BATCH):
            ids = [f"message-{number:024d}" for number in range(start, min(start + BATCH, messages))]
            for call in ("send", "webhook", "opening"):
                worker.run("call", url=url, name=call, batches=[ids])
        worker.run("release", url=url)
        recording, size = value(WAL) - recording, value(SIZE)
        for statement in AGE.split(";\n"):
            connection.execute(statement)
        wal = [value(WAL)]
        pruned = worker.run("prune", url=url)
        wal, began = [*wal, value(WAL)], time.monotonic()
        connection.execute("VACUUM mailglass_events, mailglass_deliveries")
        wal, vacuum_seconds = [*wal, value(WAL)], time.monotonic() - began
    if (pruned["events"], pruned["deliveries"]) != ((1 + EVENTS_PER_MESSAGE) * messages, messages):
        raise SystemExit(f"the prune left something: {pruned}")
    deleting, vacuuming = (later - earlier for earlier, later in pairwise(wal))
    results.add("a message with two webhook events: on disk", "kB", size / messages / 1e3)
    for days in RETENTIONS:
        results.add(f"a million messages a day, kept {days} days: on disk", "GB", size * scale * days / 1e9)
    results.add("a day: WAL of recording", "GB", recording * scale / 1e9)
    results.add("a day: WAL of deleting as many", "GB", deleting * scale / 1e9)
    results.add("a day: WAL of vacuuming what was deleted", "GB", vacuuming * scale / 1e9)
    results.add("a day: the prune takes", "minutes", pruned["seconds"] * scale / 60)
    results.add("a day: vacuum takes", "minutes", vacuum_seconds * scale / 60)
