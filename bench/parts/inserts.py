"""What our trigger and our indexes cost Mailglass's writers, per row, beside none of ours."""

from __future__ import annotations

import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg

from bench import data
from bench.performance.cpu import backend_seconds
from bench.performance.figures import Part
from bench.performance.trial import Laboratory
from bench.performance.writers import DELIVERY, DISPATCHED, ORPHAN, RAW_WEBHOOK
from mailglass_reconcile import Settings
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner

ROUNDS, ROWS = 7, 1_500
"""Of each kind and database, by turns; a row is a transaction."""

PROJECTION = """
UPDATE mailglass_deliveries SET last_event_type = 'delivered', last_event_at = now(), delivered_at = now(),
       terminal = true, lock_version = lock_version + 1, updated_at = now() WHERE id = %s
"""

KINDS: dict[str, tuple[str, Callable[[uuid.UUID], list[Any]]]] = {
    "a delivery, INSERT": (DELIVERY, lambda id_: [id_, "t", f"{id_}@example.com", str(id_)]),
    "a delivery, UPDATE after an event": (PROJECTION, lambda id_: [id_]),
    "an event with its delivery, INSERT": (DISPATCHED, lambda id_: [uuid.uuid4(), "t", id_]),
    "a raw webhook, INSERT": (RAW_WEBHOOK, lambda id_: [id_, "t", str(id_), "delivered", "a@example.com"]),
    "an orphan, INSERT": (
        ORPHAN,
        lambda id_: [id_, "t", "delivered", "2026-01-01", f"postmark:{id_}", str(id_), str(id_)],
    ),
}
"""Each kind of row: its statement, and its values, made of one id that the kinds of a round share."""

WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"


class Cost(NamedTuple):
    """What a row costs: microseconds of its session's CPU, microseconds until its commit, bytes of WAL."""

    cpu: float
    wall: float
    wal: float


def measure(laboratory: Laboratory) -> Part:
    """Write the same rows by turns into a database with ours and into one without."""
    machine, part = laboratory.machine, Part()
    urls = {name: machine.copy(laboratory.template, name) for name in ("without", "ours")}
    settings = Settings(database_url=urls["without"])
    runner.remove(create_engine(settings), settings, lambda line: None)
    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    with ExitStack() as stack:
        sessions = {n: stack.enter_context(psycopg.connect(url, autocommit=True)) for n, url in urls.items()}
        for session in sessions.values():
            session.execute("SET synchronous_commit = off")  # the disk takes as long with ours as without
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                ids = [uuid.uuid4() for _ in range(ROWS // machine.scale)]
                for kind, (statement, values) in KINDS.items():
                    costs[kind, name].append(_cost(session, statement, [values(id_) for id_ in ids]))
    _sizes(part, urls["ours"])
    for name in urls:
        data.drop(machine.server, name)
    for kind in KINDS:
        with_ours, without = _median(costs[kind, "ours"]), _median(costs[kind, "without"])
        _report(part, kind, with_ours, without)
    return part


def _cost(session: psycopg.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> Cost:
    wal, spent, began = _wal(session), backend_seconds(session.info.backend_pid), time.monotonic()
    for row in rows:
        session.execute(statement, row, prepare=True)
    wall, cpu = time.monotonic() - began, backend_seconds(session.info.backend_pid) - spent
    return Cost(cpu * 1e6 / len(rows), wall * 1e6 / len(rows), (_wal(session) - wal) / len(rows))


def _wal(session: psycopg.Connection) -> int:
    return int(session.execute(WAL).fetchall()[0][0])


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def _report(part: Part, kind: str, ours: Cost, without: Cost) -> None:
    note = f"{ours.cpu:.0f} with ours, {without.cpu:.0f} without; in all {ours.wall:.0f} and {without.wall:.0f} µs"
    part.add(f"{kind}: Postgres, more than without", ours.cpu - without.cpu, "CPU µs", note=note)
    note = f"{ours.wal:,.0f} with ours, {without.wal:,.0f} without"
    part.add(f"{kind}: WAL, more than without", ours.wal - without.wal, "bytes", note=note)
    part.add(f"{kind}: WAL", ours.wal, "bytes")


def _sizes(part: Part, url: str) -> None:
    with psycopg.connect(url) as connection:
        for kind, table in (("an event", "mailglass_events"), ("a delivery", "mailglass_deliveries")):
            row = connection.execute(
                f"SELECT pg_total_relation_size('{table}') / count(*)::float FROM {table}"  # noqa: S608 - our own names
            ).fetchall()[0]
            part.add(f"{kind}: on disk, with its indexes", row[0], "bytes")
