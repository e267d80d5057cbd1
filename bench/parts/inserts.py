"""What our trigger and our indexes cost other writers, such as Mailglass, per row."""

from __future__ import annotations

import statistics
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg

from bench.cpu import backend_seconds
from bench.figures import Part
from bench.filling import fill
from bench.load import DELIVERY, DISPATCHED, ORPHAN, RAW_WEBHOOK
from bench.machine import Machine

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
SIZES = """
SELECT pg_total_relation_size('mailglass_events') / (SELECT count(*) FROM mailglass_events)::float,
       pg_total_relation_size('mailglass_deliveries') / (SELECT count(*) FROM mailglass_deliveries)::float
"""


class Cost(NamedTuple):
    """What a row costs: microseconds of its session's CPU, and bytes of WAL."""

    cpu: float
    wal: float


def measure(machine: Machine) -> Part:
    """Write the same rows by turns into a database with our tables and triggers and into one without."""
    part, costs = Part(), defaultdict[tuple[str, str], list[Cost]](list)
    with ExitStack() as stack:
        sessions = {}
        for name, template in (("ours", "migrated"), ("without", "bare")):
            url = machine.copy(template, name)
            fill(url, deliveries=machine.scaled(100_000))
            sessions[name] = stack.enter_context(psycopg.connect(url, autocommit=True))
            sessions[name].execute("SET synchronous_commit = off")  # the disk takes as long with ours as without
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                ids = [uuid.uuid4() for _ in range(machine.scaled(ROWS))]
                for kind, (statement, values) in KINDS.items():
                    costs[kind, name].append(_cost(session, statement, [values(id_) for id_ in ids]))
        event, delivery = sessions["ours"].execute(SIZES).fetchall()[0]
    part.add("an event: on disk, with its indexes", event, "bytes")
    part.add("a delivery: on disk, with its indexes", delivery, "bytes")
    for kind in KINDS:
        ours, without = _median(costs[kind, "ours"]), _median(costs[kind, "without"])
        note = f"{ours.cpu:.0f} with ours, {without.cpu:.0f} without"
        part.add(f"{kind}: Postgres, more than without", ours.cpu - without.cpu, "CPU µs", note=note)
        part.add(f"{kind}: WAL", ours.wal, "bytes", note=f"{without.wal:,.0f} without")
    machine.drop("ours", "without")
    return part


def _cost(session: psycopg.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> Cost:
    wal, spent = _wal(session), backend_seconds(session.info.backend_pid)
    for row in rows:
        session.execute(statement, row, prepare=True)
    cpu = backend_seconds(session.info.backend_pid) - spent
    return Cost(cpu * 1e6 / len(rows), (_wal(session) - wal) / len(rows))


def _wal(session: psycopg.Connection) -> int:
    return int(session.execute(WAL).fetchall()[0][0])


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))
