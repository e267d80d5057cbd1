"""A backlog, linked by 1, 2 and 4 processes on ranges of arrival, by Celery, and with fresh events meanwhile."""

from __future__ import annotations

from itertools import pairwise

import psycopg

from bench import cpu
from bench.checker import check
from bench.figures import Part
from bench.filling import fill
from bench.load import Load
from bench.machine import Machine
from bench.trial import FOLLOW, trial

ORPHANS = 500_000
PROCESSES = (1, 2, 4)
FRESH_EVENTS, FRESH_RATE = 400, 40

CUTS = "SELECT percentile_disc(%s::float[]) WITHIN GROUP (ORDER BY arrived_at)::text[] FROM mailglass_open_orphans"

LINKED = """
SELECT extract(epoch FROM max(inserted_at) - min(inserted_at))::float FROM mailglass_events WHERE type = 'reconciled'
"""
"""From the first link to the last, by the start of their transactions."""

WORKER = ("-m", "celery", "-A", "mailglass_reconcile", "worker", "-c", "2", "--loglevel", "WARNING")
FAN_OUT = """
import sys
from celery.result import AsyncResult
from mailglass_reconcile import celery, tasks
fan_out, seconds = map(int, sys.argv[1:])
cut = tasks.reconcile.delay(fan_out=fan_out).get(seconds)
print(sum(AsyncResult(id_).get(seconds)["linked"] for id_ in cut["tasks"]))
"""
PATIENCE_SECONDS = 200


def measure(machine: Machine) -> Part:
    """Link the backlog in all these ways, each time from the same copy."""
    part, rates = Part(), {}
    messages = machine.scaled(ORPHANS) // 2
    fill(machine.copy("migrated", "backlog"), deliveries=messages, messages=messages)
    for processes in PROCESSES:
        rates[processes] = _link(machine, processes, 2 * messages, part)
    note = "two processes and their two sessions would need four cores"
    part.add("two processes / one", rates[2] / rates[1], "", 1.7, least=True, note=note)
    part.add("four processes / one", rates[4] / rates[1])
    part.curves["processes"] = [(float(processes), rate) for processes, rate in rates.items()]
    _fan_out(machine, 2 * messages, rates[2], part)
    _fresh(machine, part)
    machine.drop("backlog")
    return part


def _ranges(url: str, processes: int) -> list[tuple[str, ...]]:
    """Return the options of `bench.sweeping` that cut the backlog into as many ranges of arrival, of about one size."""
    with psycopg.connect(url) as connection:
        cuts = connection.execute(CUTS, [[n / processes for n in range(1, processes)]]).fetchall()[0][0] or []
    edges = [None, *cuts, None]
    return [
        tuple(f"--{name}={edge}" for name, edge in (("after", after), ("until", until)) if edge)
        for after, until in pairwise(edges)
    ]


def _link(machine: Machine, processes: int, orphans: int, part: Part) -> float:
    """Link a copy of the backlog, and return the links a second."""
    url = machine.copy("backlog")
    with cpu.Meter(cpu.servers(machine)) as meter:
        swept = machine.sweeps(url, *_ranges(url, processes))
    linked = sum(each["linked"] for each in swept)
    _end(machine, url, orphans, linked, f"a backlog with {processes} processes")
    seconds = max(each["ended"] for each in swept) - min(each["began"] for each in swept)
    name = f"{processes} process{'es' * (processes > 1)}"
    part.add(f"{name}: links a second", linked / seconds, "links/s", note=f"{linked:,} in {seconds:.1f} s")
    part.add(f"{name}: Postgres", meter.seconds["Postgres"] / linked * 1e6, "CPU µs/link")
    part.add(f"{name}: Python", sum(each["python"] for each in swept) / linked * 1e6, "CPU µs/link")
    return float(linked / seconds)


def _end(machine: Machine, url: str, orphans: int, linked: int, what: str) -> None:
    """Link what two ranges left to each other, because its delivery was locked, and check the database."""
    rest = machine.sweep(url)["linked"]
    if linked + rest != orphans or linked < 0.99 * orphans:
        raise SystemExit(f"{what}: of {orphans} orphans {linked} were linked, and {rest} by the next sweep")
    check(url, what)


def _fan_out(machine: Machine, orphans: int, rate: float, part: Part) -> None:
    """Let Celery link it: one call of the task with `fan_out`, and a worker of two processes."""
    url, share = machine.copy("backlog"), orphans // 10
    with machine.running(url, *WORKER):
        linked = int(machine.run_to_its_end(url, "-c", FAN_OUT, str(share), str(PATIENCE_SECONDS)))
    with psycopg.connect(url) as connection:
        seconds = connection.execute(LINKED).fetchall()[0][0]
    _end(machine, url, orphans, linked, "a backlog with Celery")
    note = f"make_beat_schedule(fan_out={share:,}), a worker of two processes: {linked / seconds:,.0f} links/s"
    part.add("fan-out by Celery / two processes on two ranges", linked / seconds / rate, "", 0.9, least=True, note=note)


def _fresh(machine: Machine, part: Part) -> None:
    """Write fresh events while two processes link the backlog, and `follow` runs."""
    load = Load("fresh", machine.scaled(FRESH_EVENTS), FRESH_RATE, "fresh")
    outcome = trial(machine, "backlog", FOLLOW, load, lambda url: machine.sweeps(url, *_ranges(url, 2)))
    note = f"{FRESH_RATE} events/s while two processes link {machine.scaled(ORPHANS):,} orphans"
    part.add("fresh events next to a backlog, with follow: p99", outcome.percentile(99) * 1000, "ms", 1_500, note=note)
