"""One sweep: against the bare statement, and its memory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import psycopg

from bench import statements
from bench.figures import Part
from bench.filling import NOBODYS, fill
from bench.machine import Machine

MIDDLE = "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY arrived_at)::text FROM mailglass_open_orphans"


def measure(machine: Machine) -> Part:
    """Measure one sweep in both ways."""
    part = Part()
    _speed(machine, part)
    _memory(machine, part)
    return part


def _speed(machine: Machine, part: Part) -> None:
    """Compare one sweep, and two on disjoint ranges, with the bare statement and Mailglass's algorithm."""
    messages = machine.scaled(50_000)
    storm = machine.copy("migrated", "storm")
    fill(storm, deliveries=messages * 9 // 10, messages=messages)
    with psycopg.connect(storm) as connection:
        middle = connection.execute(MIDDLE).fetchall()[0][0]
    links = messages * 9 // 10 * 2
    runs: dict[str, list[float]] = defaultdict(list)
    for _ in range(machine.rounds):
        seconds, postgres = statements.bare(machine.copy("storm"))
        one = complete(machine.sweep(machine.copy("storm")), links)
        two = machine.sweeps(machine.copy("storm"), ("--until", middle), ("--after", middle))
        linked = sum(each["linked"] for each in two)
        # A delivery's two events may be in different ranges, and then one of them may have to wait.
        if linked < 0.99 * links:
            raise SystemExit(f"of {links} orphans two processes linked {linked}")
        runs["bare"].append(links / seconds)
        runs["one"].append(links / one["seconds"])
        runs["two"].append(linked / (max(each["ended"] for each in two) - min(each["began"] for each in two)))
        runs["original"].append(statements.original(machine.copy("storm"), machine.redis_url, machine.scaled(2_000)))
        runs["Postgres"].append(one["postgres"] / postgres)
        runs["Python"].append(one["python"] * 1e6 / links)
    of = {name: statistics.median(found) for name, found in runs.items()}
    for name, rate, other, target in (
        ("links a second, one process / the bare statement", "one", "bare", 0.4),
        ("links a second, two processes / one", "two", "one", 1.7),
        ("links a second, one process / Mailglass's algorithm on a sample", "one", "original", 10),
    ):
        part.compare(name, of[rate], of[other], "links/s", target, least=True)
    part.add("CPU of Postgres, one process / the bare statement", of["Postgres"], "", 1.7)
    part.add("CPU of Python", of["Python"], "µs/link")
    machine.drop("storm")


def _memory(machine: Machine, part: Part) -> None:
    memory = {}
    for name, messages, padding in (
        ("few", 500, 0),
        ("many", machine.scaled(500_000), 0),
        ("large", 500, 1_000_000 // machine.scale),
    ):
        url = machine.copy("migrated")
        fill(url, deliveries=1_000, messages=messages, padding=padding, **NOBODYS)
        memory[name] = machine.sweep(url)["memory"] / 1024
    note = "at the first look"
    name = f"peak memory, {machine.scaled(500_000) * 2:,} open above 1,000"
    part.add(name, memory["many"] - memory["few"], "MB", 50, note=note)
    part.add("peak memory, 1,000 orphans of 1 MB above 1,000 small ones", memory["large"] - memory["few"], "MB", 50)


def complete(swept: dict[str, Any], links: int) -> dict[str, Any]:
    """Return what a sweep printed.

    Raises:
        SystemExit: It linked something else than *links* orphans.
    """
    if swept["linked"] != links:
        raise SystemExit(f"of {links} orphans a sweep linked {swept['linked']}")
    return swept
