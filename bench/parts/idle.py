"""What `follow` and `recent` cost, beside nothing: on an idle database, and on one that is written to."""

from __future__ import annotations

import os
import time

import psycopg

from bench import data
from bench.performance import cpu, ways
from bench.performance.figures import Part
from bench.performance.plan import Load
from bench.performance.trial import Laboratory, Way

WAYS = [
    Way("nothing", "insert", ways.nothing, 0),
    Way("follow, every 0.1 s", "insert", ways.follow, 0.25),
    Way("recent=1.0", "insert", ways.recent, 1.5),
]

SETTLING_SECONDS, IDLE_SECONDS = 6.0, 20.0
BUSY_RATE, BUSY_SECONDS = 100, 15
OLD_ORPHANS = 20_000
"""Open ones that never match, and are minutes old, in the idle database."""

HOUR = 3_600


def measure(laboratory: Laboratory) -> Part:
    """Count CPU seconds per hour, of Postgres and of our processes, idle and busy."""
    part = Part()
    _idle(laboratory, part)
    _busy(laboratory, part)
    return part


def _idle(laboratory: Laboratory, part: Part) -> None:
    machine = laboratory.machine
    url = machine.copy(laboratory.template, "idle")
    data.fill(url, messages=OLD_ORPHANS // machine.scale // 2, kind="n")
    machine.sweep(url)  # computes their keys, as the first tick has
    note = f"beside {OLD_ORPHANS // machine.scale:,} old orphans that never match"
    before = 0.0
    for way in WAYS:
        with way.start(machine, url) as pids:
            time.sleep(SETTLING_SECONDS)  # it imports and connects
            with psycopg.connect(machine.server, autocommit=True) as connection:
                connection.execute("CHECKPOINT")
            with cpu.Meter(pids | _servers(laboratory)) as meter:
                time.sleep(max(2.0, IDLE_SECONDS / machine.scale))
        seconds = {name: spent / meter.wall * HOUR for name, spent in meter.seconds.items()}
        ours = sum(seconds[name] for name in pids)
        if not pids:
            before = seconds["Postgres"]
            part.add("idle, nothing runs: Postgres", before, "CPU s/h", note=note)
            continue
        part.add(f"idle, {way.name}: Postgres, more than without", seconds["Postgres"] - before, "CPU s/h", note=note)
        part.add(f"idle, {way.name}: its own processes", ours, "CPU s/h")
        part.add(f"idle, {way.name}: Redis", seconds["Redis"], "CPU s/h")
    data.drop(machine.server, "idle")


def _busy(laboratory: Laboratory, part: Part) -> None:
    messages = BUSY_RATE * BUSY_SECONDS // 2 // laboratory.machine.scale
    for way in WAYS[1:]:
        outcome = laboratory.trial(way, Load("busy", messages, BUSY_RATE))
        seconds = {name: spent / outcome.meter.wall * HOUR for name, spent in outcome.meter.seconds.items()}
        ours = sum(spent for name, spent in seconds.items() if name in ("follow", "worker and beat"))
        at = f"at {BUSY_RATE} events/s, all of them linked"
        part.add(
            f"busy, {way.name}: Postgres, without the writers' sessions", seconds["Postgres, rest"], "CPU s/h", note=at
        )
        part.add(f"busy, {way.name}: its own processes", ours, "CPU s/h", note=at)
        part.add(
            f"busy, {way.name}: cores in use", outcome.meter.cores(), f"of {os.cpu_count()}", note=outcome.meter.words()
        )


def _servers(laboratory: Laboratory) -> dict[str, int]:
    redis_url = laboratory.machine.redis_url
    return {"Postgres": cpu.postgres_pid(laboratory.postgres), "Redis": cpu.redis_pid(redis_url)}
