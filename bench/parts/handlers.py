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
from bench.machine import Machine, vacuum
from bench.sweeping import measured
from mailglass_reconcile import DeliveryEvent, dispatch, on_event
from mailglass_reconcile.rules.event_types import TYPES

EVENTS, BEFORE = 5_000, 1_000_000

DONE = """
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


def nothing(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Do nothing."""


def writing(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Insert a row."""
    connection.execute(sa.text("INSERT INTO seen VALUES (:id)"), {"id": event.event_id})


HANDLERS = {"nothing": nothing, "writing": writing}


def measure(machine: Machine) -> Part:
    """Let one dispatcher, two of them, and one next to a million finished jobs work the outbox off."""
    part = Part()
    events = _fill(machine)
    with psycopg.connect(machine.copy("outbox", "many"), autocommit=True) as connection:
        connection.execute(DONE, [machine.scaled(BEFORE)])
    vacuum(machine.server.replace("/postgres?", "/many?"))
    of = {}
    for name, template, handler, processes in (
        ("one", "outbox", "nothing", 1),
        ("two", "outbox", "nothing", 2),
        ("writing", "outbox", "writing", 1),
        ("next to", "many", "nothing", 1),
    ):
        runs = [_run(machine.copy(template), handler, processes, events) for _ in range(machine.rounds)]
        of[name] = [statistics.median(column) for column in zip(*runs, strict=True)]
    part.add("a handler that does nothing", of["one"][0], "events/s", 300, least=True)
    part.add("a handler that inserts a row", of["writing"][0], "events/s")
    part.add("two dispatchers / one", of["two"][0] / of["one"][0], "", 2, least=True)
    name = f"CPU next to none / next to {machine.scaled(BEFORE):,} finished jobs"
    part.add(name, of["one"][1] / of["next to"][1], "", 0.8, least=True)
    machine.drop("outbox", "many")
    return part


def _fill(machine: Machine) -> int:
    """Let a sweep fill the outbox of the database `outbox`, and return how many jobs are in it."""
    url, messages = machine.copy("migrated", "outbox"), machine.scaled(EVENTS) // 2
    fill(url, deliveries=messages, messages=messages)
    with psycopg.connect(url, autocommit=True) as connection:
        # A dispatcher that registers a new handler counts the events which that one has missed.
        connection.execute(
            "INSERT INTO mailglass_handled_types SELECT type, 'nothing', now() FROM unnest(%s::text[]) AS t (type)",
            [list(TYPES)],
        )
    machine.sweeps(url, [])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE seen (event_id uuid)")
        rows = connection.execute("SELECT count(*) FROM mailglass_handler_outbox").fetchall()
    vacuum(url)
    return int(rows[0][0])


def _run(url: str, handler: str, processes: int, events: int) -> tuple[float, float]:
    """Let dispatchers begin together, and return events a second, and CPU seconds of them and Postgres."""
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
    found = [json.loads(child.communicate()[0]) for child in children]
    if sum(one["handled"] for one in found) != events:
        raise SystemExit(f"of {events} events {found} were handled")
    seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return events / seconds, sum(one["python"] + one["postgres"] for one in found)


def main() -> None:
    """Be one dispatcher, with one handler: print `ready`, wait for a line, dispatch, and print the figures."""
    name = sys.argv[1]
    on_event("*", name=name)(HANDLERS[name])
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(measured(lambda: dispatch().as_dict(), os.environ["MAILGLASS_DATABASE_URL"])))


if __name__ == "__main__":
    main()
