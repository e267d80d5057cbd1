"""A load, and one process of its generator: `python -m bench.load_generator`, with the database in the environment.

The same seed gives the same load. A process prints `ready` when it has connected and warmed up, reads the start time
from its input, prints its results as JSON, and ends at the end of its input. Each thread takes the next transaction
that is due; a transaction that is due while no thread is free is late.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg

import mailglass_reconcile
from bench.call_process import engine_of
from bench.figures import percentile
from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook

EARLY_SHARE, OVERLAPPING_SHARE = 0.15, 0.10
"""A quarter of the events come before their send commits: some before it begins, some while it is open."""

OPEN_SECONDS = 0.03
"""How long a transaction stays open that overlaps with another."""

TYPES = ("delivered", "opened")
TENANTS = 10
THREADS = 12
WARM_MESSAGES = 2 * THREADS

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


class Job(NamedTuple):
    """One transaction: a send, or event *number* of a message.

    It begins `at` seconds after the start, and stays open for `open_seconds` after its write.
    """

    at: float
    kind: str
    message: int
    number: int
    open_seconds: float


class Load(NamedTuple):
    """A load: `messages` sends with two events each, `rate` events a second in all, under ids of their own."""

    run: str
    messages: int
    rate: float
    tenants: str = "load"

    def message_id(self, message: int) -> str:
        """Return the provider's id of a message."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run}/{message}"))

    def tenant(self, message: int) -> str:
        """Return the tenant of a message; there are ten."""
        return f"{self.tenants}-{message % TENANTS}"


def plan(load: Load, part: int, parts: int) -> list[Job]:
    """Return the jobs of one of *parts* processes by time; a send and its events are in different processes."""
    jobs: list[Job] = []
    for message in range(load.messages):
        rng = random.Random(f"{load.run}/{message}")
        sent_at = 0.2 + message / (load.rate / 2)
        events, send_open = [], 0.0
        for number in range(len(TYPES)):
            share = rng.random()
            if share < EARLY_SHARE:
                events.append(Job(sent_at - rng.uniform(0.01, 0.1), "event", message, number, 0.0))
            elif share < EARLY_SHARE + OVERLAPPING_SHARE:
                send_open = OPEN_SECONDS
                open_seconds = OPEN_SECONDS if rng.random() < 0.5 else 0.0  # commits after the send, or before it
                events.append(Job(sent_at + rng.uniform(0.005, 0.015), "event", message, number, open_seconds))
            else:
                events.append(Job(sent_at + OPEN_SECONDS + rng.uniform(0.04, 0.4), "event", message, number, 0.0))
        if message % parts == part:
            jobs.append(Job(sent_at, "send", message, 0, send_open))
        if (message + 1) % parts == part:
            jobs += events
    return sorted(jobs)


class OpenTransaction(NamedTuple):
    """A transaction before its commit: the event's id, or None for a send, its commit, and the after-commit action."""

    event_id: str | None
    commit: Callable[[], None]
    finish: Callable[[], None]


class Recorder:
    """Calls `record_send` and `record_webhook` on a pooled engine, as an application does."""

    def __init__(self, url: str, load: Load) -> None:
        """Connect later, once for each thread."""
        self._load, self._engine = load, engine_of(f"{url}&application_name=load", THREADS)
        mailglass_reconcile.configure(engine=self._engine)

    def write(self, job: Job, at: dt.datetime) -> OpenTransaction:
        """Record a send or an event."""
        tenant, id_, recipient = _ids_of(self._load, job)
        connection = self._engine.connect()
        recorded: Sequence[Any]
        if job.kind == "send":
            sent_at = [Sent(recipient=recipient, message_id=id_)]
            recorded = record_send(connection, tenant_id=tenant, provider="postmark", sent=sent_at, mailable="Mail")
        else:
            event_id = f"{id_}/{job.number}"
            event = WebhookEvent(
                type=TYPES[job.number], occurred_at=at, provider_event_id=event_id, message_id=id_, recipient=recipient
            )
            recorded = record_webhook(connection, tenant_id=tenant, provider="postmark", events=[event])

        def finish() -> None:
            connection.close()
            broadcast(recorded)

        return OpenTransaction(None if job.kind == "send" else str(recorded[0].event_id), connection.commit, finish)


class Inserter:
    """Inserts the rows that Mailglass inserts: every event is an orphan, and nobody calls this package."""

    def __init__(self, url: str, load: Load) -> None:
        """Connect once for each thread."""
        self._load = load
        self._idle = [psycopg.connect(f"{url}&application_name=load") for _ in range(THREADS)]

    def write(self, job: Job, at: dt.datetime) -> OpenTransaction:
        """Insert a delivery and its event, or a raw webhook and its orphan."""
        tenant, id_, recipient = _ids_of(self._load, job)
        connection, row = self._idle.pop(), uuid.uuid4()
        if job.kind == "send":
            connection.execute(DELIVERY, [row, tenant, recipient, id_])
            connection.execute(DISPATCHED, [uuid.uuid4(), tenant, row])
        else:
            kind, event_id = TYPES[job.number], f"{id_}/{job.number}"
            connection.execute(RAW_WEBHOOK, [uuid.uuid4(), tenant, event_id, kind, recipient])
            key, occurred_at = f"postmark:{event_id}", at.replace(tzinfo=None)
            connection.execute(ORPHAN, [row, tenant, kind, occurred_at, key, event_id, id_])
        return OpenTransaction(
            None if job.kind == "send" else str(row), connection.commit, lambda: self._idle.append(connection)
        )


def _ids_of(load: Load, job: Job) -> tuple[str, str, str]:
    return load.tenant(job.message), load.message_id(job.message), f"u{job.message}@example.com"


WRITERS = {"record": Recorder, "insert": Inserter}


class Generator:
    """Runs the jobs in a few threads, and records the commit time of each."""

    def __init__(self, writer: Recorder | Inserter, jobs: list[Job]) -> None:
        """Run *jobs* in their order."""
        self._writer, self._jobs = writer, iter(jobs)
        self._lock = threading.Lock()
        self.sends: dict[int, float] = {}
        self.events: list[tuple[str, int, float, float]] = []
        """Each event's id, its message, and when it was written and committed."""
        self.delays: list[float] = []
        self.errors: list[str] = []

    def run(self, start: float) -> None:
        """Run all jobs; *start* is a time of the monotonic clock."""
        threads = [threading.Thread(target=self._work, args=[start]) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, start: float) -> None:
        while True:
            with self._lock:
                job = next(self._jobs, None)
            if job is None:
                return
            time.sleep(max(0.0, start + job.at - time.monotonic()))
            self.delays.append(time.monotonic() - start - job.at)
            try:
                self._execute(job)
            except Exception as error:  # reported; the run does not count
                self.errors.append(f"{type(error).__name__}: {error}"[:300])

    def _execute(self, job: Job) -> None:
        # The provider's clock: the two events of a message never have the same time.
        at = dt.datetime.now(dt.UTC).replace(microsecond=(job.message * 2 + job.number) % 1_000_000)
        transaction = self._writer.write(job, at)
        written_at = time.monotonic()
        if job.open_seconds:
            time.sleep(job.open_seconds)
        transaction.commit()
        if transaction.event_id is None:
            self.sends[job.message] = time.monotonic()
        else:
            self.events.append((transaction.event_id, job.message, written_at, time.monotonic()))
        transaction.finish()


def main() -> None:
    """Warm up, wait for the start time, run the jobs, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.load_generator")
    parser.add_argument("writer", choices=WRITERS)
    parser.add_argument("--load", type=json.loads, help="the fields of a Load, as JSON")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    url, load, writer = os.environ["MAILGLASS_DATABASE_URL"], Load(**options.load), WRITERS[options.writer]
    warm = Load(f"{load.run}/warm-{options.part}", WARM_MESSAGES, 1e9, "warm")
    Generator(writer(url, warm), plan(warm, 0, 1)).run(time.monotonic())
    generator = Generator(writer(url, load), plan(load, options.part, options.parts))
    print("ready", flush=True)
    generator.run(float(sys.stdin.readline()))
    figures = {
        "sends": list(generator.sends.items()),
        "events": generator.events,
        "late": percentile(generator.delays, 99),
        "errors": generator.errors[:3],
    }
    print(json.dumps(figures), flush=True)
    sys.stdin.readline()  # until the CPU of this process and its sessions has been read


if __name__ == "__main__":
    main()
