"""A backlog, worked off by 1, 2 and 4 processes on ranges of arrival; and whether a huge tenant starves small ones."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psycopg

from bench import data
from bench.performance import cpu, ways
from bench.performance.checker import check
from bench.performance.figures import Part
from bench.performance.plan import Load
from bench.performance.trial import Laboratory, Way
from bench.performance.waits import Waits

ORPHANS = 500_000
PROCESSES = (1, 2, 4)
SMALL_ORPHANS = 200
"""Of the small tenant, spread over the whole backlog."""

# Of the tenant `small`, at even distances among the arrivals of the others.
SMALL_DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'small', 'Mail', 'transactional', 's' || i || '@example.com', 'example.com', 'small-' || i,
       'dispatched', now() - interval '1 hour', now() - interval '1 hour', now(), now()
  FROM generate_series(1, %(orphans)s) AS i
"""
SMALL_ORPHAN_ROWS = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT gen_random_uuid(), 'small', 'delivered', now() - interval '50 minutes',
       jsonb_build_object('provider', 'postmark', 'provider_event_id', 's' || i, 'message_id', 'small-' || i),
       true, now()::timestamp - interval '40 minutes' + i * (interval '1000 seconds' / %(orphans)s)
  FROM generate_series(1, %(orphans)s) AS i
"""

CUTS = """
SELECT percentile_disc(%(shares)s::float[]) WITHIN GROUP (ORDER BY arrived_at)::text[] FROM mailglass_open_orphans
"""

LINKED = """
SELECT extract(epoch FROM max(inserted_at) - min(inserted_at))::float FROM mailglass_events WHERE type = 'reconciled'
"""
"""From the first link to the last, by the start of their transactions."""

FAN_OUT = """
import sys
from celery.result import AsyncResult
from mailglass_reconcile import celery, tasks
fan_out, seconds = map(int, sys.argv[1:])
cut = tasks.reconcile.delay(fan_out=fan_out).get(seconds)
print(sum(AsyncResult(id_).get(seconds)["linked"] for id_ in cut["tasks"]))
"""
PATIENCE_SECONDS = 200

FRESH = Way("fresh events beside a backlog, with follow", "insert", ways.follow, 1.5)


def measure(laboratory: Laboratory) -> Part:
    """Work the backlog off with 1, 2 and 4 processes, and then with a small tenant's fresh events beside it."""
    part, rates = Part(), {}
    orphans = _fill(laboratory)
    for processes in PROCESSES:
        rates[processes] = _work_off(laboratory, processes, orphans, part)
    part.add(
        "two processes / one",
        rates[2] / rates[1],
        "",
        1.7,
        least=True,
        note=f"a core for each process and one for its session would be 4; this machine has {os.cpu_count()}",
    )
    part.add("four processes / one", rates[4] / rates[1], "")
    _fan_out(laboratory, orphans, rates[2], part)
    part.curves["processes"] = [(float(processes), round(rate)) for processes, rate in rates.items()]
    _beside_a_backlog(laboratory, part)
    return part


def _fill(laboratory: Laboratory) -> int:
    """Make the template of the backlog, and return how many orphans it has."""
    machine = laboratory.machine
    url, messages = machine.migrated("backlog"), ORPHANS // machine.scale // 2
    data.fill(url, deliveries=messages, messages=messages)
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute(SMALL_DELIVERIES, {"orphans": SMALL_ORPHANS})
        cursor.execute(SMALL_ORPHAN_ROWS, {"orphans": SMALL_ORPHANS})
        cursor.execute("VACUUM ANALYZE")
    return messages * 2 + SMALL_ORPHANS


def _ranges(url: str, processes: int) -> list[tuple[str, ...]]:
    """Return the options of `bench.sweep` that cut the backlog into as many ranges of arrival, of about one size."""
    with psycopg.connect(url) as connection:
        shares = [number / processes for number in range(1, processes)]
        row = connection.execute(CUTS, {"shares": shares}).fetchone() if shares else None
    cuts = row[0] if row else []
    return [
        (*(("--after", cuts[number - 1]) if number else ()), *(("--until", cuts[number]) if number < len(cuts) else ()))
        for number in range(processes)
    ]


def _work_off(laboratory: Laboratory, processes: int, orphans: int, part: Part) -> float:
    """Work off a copy of the backlog, and return the links a second."""
    machine = laboratory.machine
    url = machine.copy("backlog")
    ranges, waits = _ranges(url, processes), Waits(machine.server)
    with cpu.Meter({"Postgres": cpu.postgres_pid(laboratory.postgres)}) as meter, waits:
        swept = machine.sweeps(url, *ranges)
    began, linked = min(f["began"] for f in swept), sum(f["linked"] for f in swept)
    rest = machine.sweep(url)["linked"]
    if linked + rest != orphans or linked < 0.99 * orphans:
        raise SystemExit(f"of {orphans} orphans, {processes} processes linked {linked}, and the next sweep {rest}")
    check(url, f"a backlog with {processes} processes")
    seconds = max(f["ended"] for f in swept) - began
    name = f"{processes} process{'es' * (processes > 1)}"
    part.add(f"{name}: links a second", linked / seconds, "links/s", note=f"{linked:,} in {seconds:.1f} s")
    note = "a delivery's two events were in two ranges, and both processes reached it at once"
    part.add(f"{name}: left to the next sweep", rest, "orphans", orphans / 100, note=note if rest else "")
    part.add(f"{name}: Postgres", meter.seconds["Postgres"] / linked * 1e6, "CPU µs/link", note=waits.words())
    part.add(f"{name}: Python", sum(f["python"] for f in swept) / linked * 1e6, "CPU µs/link")
    note = "of the time that all took; half is its fair share, whatever the others have"
    share = _middle_link(url, began) / seconds * 100
    part.add(f"{name}: half of the small tenant is linked after", share, "%", 60, note=note)
    return float(linked / seconds)


def _fan_out(laboratory: Laboratory, orphans: int, rate: float, part: Part) -> None:
    """Let Celery work the backlog off: one call of the task with `fan_out`, a worker of two processes."""
    machine = laboratory.machine
    url, share = machine.copy("backlog"), orphans // 10
    with ways.worker(machine, url):
        command = [sys.executable, "-c", FAN_OUT, str(share), str(PATIENCE_SECONDS)]
        counts = subprocess.run(command, env=machine.environment(url), check=True, capture_output=True).stdout
    with psycopg.connect(url) as connection:
        seconds = connection.execute(LINKED).fetchall()[0][0]
    rest = machine.sweep(url)["linked"]
    if int(counts) + rest != orphans:
        raise SystemExit(f"of {orphans} orphans a fan-out linked {int(counts)}, and the next sweep {rest}")
    check(url, "a backlog with Celery")
    note = (
        f"make_beat_schedule(fan_out={share:,}) and one worker of two processes: {int(counts) / seconds:,.0f} links/s"
    )
    part.add(
        "fan-out by Celery / two processes on two ranges", int(counts) / seconds / rate, "", 0.9, least=True, note=note
    )


def _middle_link(url: str, began: float) -> float:
    """Return the seconds until half of the small tenant's orphans were linked."""
    with psycopg.connect(url) as connection:
        row: Any = connection.execute(
            "SELECT extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY inserted_at) AT TIME ZONE 'UTC')"
            " FROM mailglass_events WHERE tenant_id = 'small' AND type = 'reconciled'"
        ).fetchone()
    return float(row[0]) - began


def _beside_a_backlog(laboratory: Laboratory, part: Part) -> None:
    """Write fresh events of small tenants while two processes work off the backlog; then sweep one tenant alone."""
    machine = laboratory.machine
    load = Load("fresh", 400 // machine.scale, 40, "fresh")
    outcome = Laboratory(machine, laboratory.postgres, "backlog").trial(
        FRESH, load, beside=lambda url: machine.sweeps(url, *_ranges(url, 2))
    )
    part.add(
        f"{FRESH.name}: p99",
        outcome.percentile(99) * 1000,
        "ms",
        FRESH.wanted * 1000,
        note=f"{load.rate:.0f} events/s while two processes work off {ORPHANS // machine.scale:,} orphans",
    )
    swept = machine.sweep(machine.copy("backlog"), "--tenant", "small")
    if swept["linked"] != SMALL_ORPHANS:
        raise SystemExit(f"a sweep of the small tenant linked {swept['linked']} of {SMALL_ORPHANS}")
    note = f"{SMALL_ORPHANS} orphans among {ORPHANS // machine.scale:,}"
    part.add("a sweep of the small tenant alone", swept["seconds"], "s", note=note)
    data.drop(machine.server, "backlog")
