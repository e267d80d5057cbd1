"""How fast handlers run: dispatchers in processes of their own, on the outbox that a sweep has filled.

`python -m bench.dispatch` measures this alone; `--child NAME` is one dispatcher, which prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy as sa

from bench import data
from bench.sweep import count_backend, python_seconds
from mailglass_reconcile import DeliveryEvent, Settings, dispatch, on_event, runtime
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers

Report = Callable[..., None]

ALONE = 1_000
TOGETHER = 2.0
BESIDE_MANY = 0.8

DISPATCHED = """
INSERT INTO mailglass_hook_outbox
       (event_id, delivery_id, type, state, attempts, next_at, done, inserted_at, finished_at)
SELECT gen_random_uuid(), gen_random_uuid(), 'delivered', 'dispatched', 1, now() - interval '1 day', '{trivial}',
       now() - interval '1 day', now() - interval '1 day'
  FROM generate_series(1, %s)
"""


def trivial(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Do nothing."""


def writing(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Insert a row."""
    connection.execute(sa.text("INSERT INTO seen VALUES (:id)"), {"id": event.event_id})


def child(name: str) -> None:
    """Dispatch with one handler, and print when that began and ended, and how many events it dispatched."""
    on_event("*", name=name)({"trivial": trivial, "writing": writing}[name])
    with runtime.get_engine().connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    print("ready", flush=True)
    sys.stdin.readline()
    backends: list[float] = []
    count_backend(runtime.get_engine(), backends)
    spent, began = python_seconds(), time.time()
    result = dispatch()
    figures = {"began": began, "ended": time.time(), "cpu": python_seconds() - spent + sum(backends)}
    print(json.dumps({**figures, **result.as_dict()}))


def run(url: str, handler: str, processes: int, events: int) -> tuple[float, float]:
    """Let dispatchers begin together, and return events a second, and CPU seconds of them and Postgres."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "bench.dispatch", "--child", handler]
    environment = {**os.environ, "MAILGLASS_DATABASE_URL": url}
    children = [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)
    ]
    for one in children:
        one.stdout.readline()
    found: list[dict[str, Any]] = []
    for one in children:
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in children:
        found.append(json.loads(one.communicate()[0]))
    if sum(one["dispatched"] for one in found) != events:
        raise SystemExit(f"of {events} events {found} were dispatched")
    seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return events / seconds, sum(one["cpu"] for one in found)


def filled(server: str, messages: int) -> int:
    """Make the database `outbox`, whose outbox a sweep has filled, and return how many events are in it."""
    url = data.database(server, "outbox")
    settings = Settings(database_url=url)
    runner.migrate(create_engine(settings), settings, lambda line: None)
    data.fill(url, deliveries=messages, messages=messages)
    command = [sys.executable, "-m", "mailglass_reconcile", "sweep", "--json"]
    environment = {**os.environ, "MAILGLASS_DATABASE_URL": url, "MAILGLASS_HOOK_TYPES": "*"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE seen (event_id uuid)")
        connection.execute("VACUUM ANALYZE")
    return int(json.loads(done.stdout)["linked"])


def measure(server: str, report: Report, runs: int, scale: int) -> None:
    """Report one dispatcher, two of them, and one beside a million events that are dispatched already."""
    events = filled(server, 10_000 // scale)
    ways = {"one": ("trivial", 1), "two": ("trivial", 2), "writing": ("writing", 1)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, "beside")}
    data.drop(server, "many")
    with psycopg.connect(data.database(server, "many", "outbox"), autocommit=True) as connection:
        connection.execute(DISPATCHED, [1_000_000 // scale])
        connection.execute("VACUUM ANALYZE")
    for _ in range(runs):
        for name, (handler, processes) in ways.items():
            found[name].append(run(data.database(server, "run", "outbox"), handler, processes, events))
        found["beside"].append(run(data.database(server, "run", "many"), "trivial", 1, events))
    of = {name: statistics.median(rate for rate, _ in both) for name, both in found.items()}
    cpu = {name: statistics.median(spent for _, spent in both) for name, both in found.items()}
    print(", ".join(f"{name} {value:,.0f}" for name, value in of.items()), "events a second")
    print("CPU seconds per 1,000 events:", ", ".join(f"{n} {1_000 * s / events:.2f}" for n, s in cpu.items()))
    report("events dispatched a second, a handler that does nothing", of["one"], ALONE)
    report("two dispatchers / one", of["two"] / of["one"], TOGETHER)
    name = f"CPU beside none / beside {1_000_000 // scale:,} dispatched events"
    report(name, cpu["one"] / cpu["beside"], BESIDE_MANY)


def _print(name: str, value: float, target: float) -> None:
    print(f"{'ok' if value >= target else 'MISSED':<7}{name:<66}{value:>10.2f}  >= {target:g}", flush=True)


def main() -> None:
    """Measure, or be one dispatcher."""
    parser = argparse.ArgumentParser(prog="python -m bench.dispatch")
    parser.add_argument("--child", metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of every size")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    with servers.postgres() as server, servers.redis() as redis_url:
        os.environ["MAILGLASS_REDIS_URL"] = redis_url
        measure(server, _print, options.runs, 10 if options.quick else 1)


if __name__ == "__main__":
    main()
