"""How fast handlers run: dispatchers in processes of their own, on an outbox that a sweep has filled."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

import psycopg
import sqlalchemy as sa

from bench.figures import Part
from bench.filling import fill
from bench.sweep_process import measure_action
from bench.testbed import Testbed, vacuum
from mailglass_reconcile import DeliveryEvent, dispatch, on_event
from mailglass_reconcile.rules.event_types import TYPES

EVENTS, BEFORE = 5_000, 1_000_000

FINISHED_JOBS = """
INSERT INTO mailglass_handler_outbox
       (event_id, handler, delivery_id, type, state, attempts, next_at, inserted_at, finished_at)
SELECT gen_random_uuid(), 'nothing', gen_random_uuid(), 'delivered', 'done', 1, now() - interval '1 day',
       now() - interval '1 day', now() - interval '1 day'
  FROM generate_series(1, %s)
"""
RENAME = """
WITH registered AS (UPDATE mailglass_handled_types SET handler = %(new)s)
UPDATE mailglass_handler_outbox SET handler = %(new)s WHERE state = 'waiting'
"""


def do_nothing(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Do nothing."""


def insert_row(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Insert a row."""
    connection.execute(sa.text("INSERT INTO seen VALUES (:id)"), {"id": event.event_id})


HANDLERS = {"nothing": do_nothing, "writing": insert_row}


def measure(testbed: Testbed) -> Part:
    """Measure one dispatcher, two dispatchers, and one beside a million finished jobs."""
    part = Part()
    events = _fill(testbed)
    with psycopg.connect(testbed.copy("outbox", "many"), autocommit=True) as connection:
        connection.execute(FINISHED_JOBS, [testbed.scaled(BEFORE)])
    vacuum(testbed.server.replace("/postgres?", "/many?"))
    medians = {}
    for name, template, handler, processes in (
        ("one", "outbox", "nothing", 1),
        ("two", "outbox", "nothing", 2),
        ("writing", "outbox", "writing", 1),
        ("next to", "many", "nothing", 1),
    ):
        runs = [_run(testbed.copy(template), handler, processes, events) for _ in range(testbed.rounds)]
        medians[name] = [statistics.median(column) for column in zip(*runs, strict=True)]
    part.add("a handler that does nothing", medians["one"][0], "events/s", 300, least=True)
    part.add("a handler that inserts a row", medians["writing"][0], "events/s")
    part.add("two dispatchers / one", medians["two"][0] / medians["one"][0], "", 2, least=True)
    name = f"CPU next to none / next to {testbed.scaled(BEFORE):,} finished jobs"
    part.add(name, medians["one"][1] / medians["next to"][1], "", 0.8, least=True)
    testbed.drop("outbox", "many")
    return part


def _fill(testbed: Testbed) -> int:
    """Fill the outbox of the database `outbox` with a sweep, and return the number of jobs."""
    url, messages = testbed.copy("migrated", "outbox"), testbed.scaled(EVENTS) // 2
    fill(url, deliveries=messages, messages=messages)
    with psycopg.connect(url, autocommit=True) as connection:
        # Registered in advance: a dispatcher that registers a new handler counts the events that it has missed.
        connection.execute(
            "INSERT INTO mailglass_handled_types SELECT type, 'nothing', now() FROM unnest(%s::text[]) AS t (type)",
            [list(TYPES)],
        )
    testbed.sweeps(url, [])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE seen (event_id uuid)")
        rows = connection.execute("SELECT count(*) FROM mailglass_handler_outbox").fetchall()
    vacuum(url)
    return int(rows[0][0])


def _run(url: str, handler: str, processes: int, events: int) -> tuple[float, float]:
    """Start dispatchers at the same time; return events a second, and CPU seconds of them and Postgres."""
    if handler != "nothing":
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(RENAME, {"new": handler})
    command, pipe = [sys.executable, "-m", "bench.parts.handlers", handler], subprocess.PIPE
    environment = {**os.environ, "MAILGLASS_DATABASE_URL": url}
    children: list[Any] = [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)
    ]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [json.loads(child.communicate()[0]) for child in children]
    if sum(result["handled"] for result in results) != events:
        raise SystemExit(f"of {events} events {results} were handled")
    seconds = max(result["ended"] for result in results) - min(result["began"] for result in results)
    return events / seconds, sum(result["python"] + result["postgres"] for result in results)


def main() -> None:
    """Run one dispatcher with one handler: print `ready`, wait for a line, dispatch, and print the figures."""
    name = sys.argv[1]
    on_event("*", name=name)(HANDLERS[name])
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(measure_action(lambda: dispatch().as_dict(), os.environ["MAILGLASS_DATABASE_URL"])))


if __name__ == "__main__":
    main()
