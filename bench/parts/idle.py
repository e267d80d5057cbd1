"""What `follow`, `recent` and the page cost when nothing happens."""

from __future__ import annotations

import time

import httpx
import psycopg

from bench import cpu
from bench.figures import Part
from bench.filling import NOBODYS, fill
from bench.machine import Machine
from bench.parts.pages import SIGNED_IN, serving
from bench.sweeping import sweep
from bench.trial import FOLLOW, RECENT

SETTLING_SECONDS, IDLE_SECONDS = 6.0, 20.0
OLD_ORPHANS = 20_000
"""Open ones that never match, and are minutes old."""

HOUR = 3_600


def measure(machine: Machine) -> Part:
    """Count CPU seconds per hour, of Postgres and of what runs."""
    part, url = Part(), machine.copy("migrated", "idle")
    fill(url, deliveries=machine.scaled(100_000), messages=machine.scaled(OLD_ORPHANS) // 2, **NOBODYS)
    sweep(url)  # computes their keys, as the first sweep has
    note = f"next to {machine.scaled(OLD_ORPHANS):,} old orphans that never match"
    before = _idle(machine, {})["Postgres"]
    part.add("nothing runs: Postgres", before, "CPU s/h", note=note)
    for way in (FOLLOW, RECENT):
        with way.running(machine, url) as pids:
            _report(part, way.name, _idle(machine, pids), before)
    with serving(machine, url) as (address, pid):
        httpx.get(address, headers=SIGNED_IN).raise_for_status()
        _report(part, "the page", _idle(machine, {"the page": pid}), before)
    machine.drop("idle")
    return part


def _idle(machine: Machine, pids: dict[str, int]) -> dict[str, float]:
    time.sleep(SETTLING_SECONDS if pids else 0)  # it imports and connects
    with psycopg.connect(machine.server, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    with cpu.Meter(pids | cpu.servers(machine)) as meter:
        time.sleep(max(2.0, IDLE_SECONDS / machine.scale))
    return {name: spent / meter.wall * HOUR for name, spent in meter.seconds.items()}


def _report(part: Part, name: str, seconds: dict[str, float], before: float) -> None:
    part.add(f"{name}: its own processes", seconds[name], "CPU s/h")
    part.add(f"{name}: Postgres, more than without", seconds["Postgres"] - before, "CPU s/h")
    part.add(f"{name}: Redis", seconds["Redis"], "CPU s/h")
