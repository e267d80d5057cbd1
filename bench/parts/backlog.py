"""A backlog: linked by 1, 2 and 4 processes on ranges of arrival, by Celery, and while new events arrive."""

from __future__ import annotations

from itertools import pairwise

import psycopg

from bench import cpu
from bench.checker import check
from bench.figures import Part
from bench.filling import fill
from bench.load_generator import Load
from bench.testbed import Testbed
from bench.trial import FOLLOW, run_trial

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
TIMEOUT_SECONDS = 200


def measure(testbed: Testbed) -> Part:
    """Link a copy of the same backlog in each way."""
    part, rates = Part(), {}
    messages = testbed.scaled(ORPHANS) // 2
    fill(testbed.copy("migrated", "backlog"), deliveries=messages, messages=messages)
    for processes in PROCESSES:
        rates[processes] = _measure_links(testbed, processes, 2 * messages, part)
    note = "two processes and their two sessions would need four cores"
    part.add("two processes / one", rates[2] / rates[1], "", 1.7, least=True, note=note)
    part.add("four processes / one", rates[4] / rates[1])
    part.curves["processes"] = [(float(processes), rate) for processes, rate in rates.items()]
    _measure_fan_out(testbed, 2 * messages, rates[2], part)
    _measure_fresh(testbed, part)
    testbed.drop("backlog")
    return part


def range_options(url: str, processes: int) -> list[tuple[str, ...]]:
    """Return the options of each `bench.sweep_process`: ranges of arrival with about as many orphans each."""
    with psycopg.connect(url) as connection:
        cuts = connection.execute(CUTS, [[n / processes for n in range(1, processes)]]).fetchall()[0][0] or []
    edges = [None, *cuts, None]
    return [
        tuple(f"--{name}={edge}" for name, edge in (("after", after), ("until", until)) if edge)
        for after, until in pairwise(edges)
    ]


def _measure_links(testbed: Testbed, processes: int, orphans: int, part: Part) -> float:
    """Link a copy of the backlog, and return the links a second."""
    url = testbed.copy("backlog")
    with cpu.Meter(cpu.servers(testbed)) as meter:
        results = testbed.sweeps(url, *range_options(url, processes))
    linked = sum(run["linked"] for run in results)
    _check_links(testbed, url, orphans, linked, f"a backlog with {processes} processes")
    seconds = max(run["ended"] for run in results) - min(run["began"] for run in results)
    name = f"{processes} process{'es' * (processes > 1)}"
    part.add(f"{name}: links a second", linked / seconds, "links/s", note=f"{linked:,} in {seconds:.1f} s")
    part.add(f"{name}: Postgres", meter.seconds["Postgres"] / linked * 1e6, "CPU µs/link")
    part.add(f"{name}: Python", sum(run["python"] for run in results) / linked * 1e6, "CPU µs/link")
    return float(linked / seconds)


def _check_links(testbed: Testbed, url: str, orphans: int, linked: int, label: str) -> None:
    """Link the orphans that were skipped because another range had locked their delivery; then check the database."""
    late_links = testbed.sweep(url)["linked"]
    if linked + late_links != orphans or linked < 0.99 * orphans:
        raise SystemExit(f"{label}: of {orphans} orphans {linked} were linked, and {late_links} by the next sweep")
    check(url, label)


def _measure_fan_out(testbed: Testbed, orphans: int, rate: float, part: Part) -> None:
    """Link the backlog through Celery: one call of the task with `fan_out`, and a worker of two processes."""
    url, share = testbed.copy("backlog"), orphans // 10
    with testbed.running(url, *WORKER):
        linked = int(testbed.run_to_its_end(url, "-c", FAN_OUT, str(share), str(TIMEOUT_SECONDS)))
    with psycopg.connect(url) as connection:
        seconds = connection.execute(LINKED).fetchall()[0][0]
    _check_links(testbed, url, orphans, linked, "a backlog with Celery")
    note = f"make_beat_schedule(fan_out={share:,}), a worker of two processes: {linked / seconds:,.0f} links/s"
    part.add("fan-out by Celery / two processes on two ranges", linked / seconds / rate, "", 0.9, least=True, note=note)


def _measure_fresh(testbed: Testbed, part: Part) -> None:
    """Write fresh events while two processes link the backlog, and `follow` runs."""
    load = Load("fresh", testbed.scaled(FRESH_EVENTS), FRESH_RATE, "fresh")
    outcome = run_trial(testbed, "backlog", FOLLOW, load, lambda url: testbed.sweeps(url, *range_options(url, 2)))
    note = f"{FRESH_RATE} events/s while two processes link {testbed.scaled(ORPHANS):,} orphans"
    part.add("fresh events next to a backlog, with follow: p99", outcome.percentile(99) * 1000, "ms", 1_500, note=note)
