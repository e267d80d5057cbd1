"""One sweep: against the bare statement, over wide ids, with large rows, and with nothing to do."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import psycopg

from bench import statements
from bench.figures import Part
from bench.filling import NOBODYS, fill, fill_campaign, fill_reconciled
from bench.machine import Machine

MIDDLE = "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY arrived_at)::text FROM mailglass_open_orphans"

OTHER_EVENTS = """
EXPLAIN (ANALYZE, FORMAT JSON) INSERT INTO mailglass_events (id, tenant_id, type, occurred_at)
SELECT gen_random_uuid(), 't', 'sent', now() FROM generate_series(1, 1000)
"""
"""Postgres names the triggers that it called."""


def measure(machine: Machine) -> Part:
    """Measure one sweep in all these ways."""
    part = Part()
    _speed(machine, part)
    _wide(machine, part)
    _memory(machine, part)
    _nothing_open(machine, part)
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
        ("links a second, one process / the bare statement", "one", "bare", 0.37),
        ("links a second, two processes / one", "two", "one", 1.7),
        ("links a second, one process / Mailglass's algorithm on a sample", "one", "original", 12),
    ):
        part.compare(name, of[rate], of[other], "links/s", target, least=True)
    part.add("CPU of Postgres, one process / the bare statement", of["Postgres"], "", 1.7)
    part.add("CPU of Python", of["Python"], "µs/link")
    machine.drop("storm")


def _wide(machine: Machine, part: Part) -> None:
    """Compare many recipients under one message id with as many ids; then one id of a great many deliveries."""
    recipients, seconds = machine.scaled(20_000), []
    for one_id in (True, False):
        fill_campaign(machine.copy("migrated", "campaign"), recipients, recipients, one_id=one_id)
        swept = [
            complete(machine.sweep(machine.copy("campaign")), recipients)["seconds"] for _ in range(machine.rounds)
        ]
        seconds.append(statistics.median(swept))
    note = f"{seconds[0]:.2f} s / {seconds[1]:.2f} s"
    part.add(f"{recipients:,} recipients under one id / {recipients:,} ids", seconds[0] / seconds[1], "", 2, note=note)
    memory = []
    for deliveries in (1_000, machine.scaled(1_000_000)):
        url = machine.copy("migrated", "campaign")
        fill_campaign(url, deliveries, 1_000, one_id=True)
        memory.append(machine.sweep(url)["memory"] / 1024)
    name = f"peak memory, an id of {deliveries:,} deliveries above one of 1,000"
    part.add(name, memory[1] - memory[0], "MB", 50)
    machine.drop("campaign")


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


def _nothing_open(machine: Machine, part: Part) -> None:
    buffers = []
    for orphans in (machine.scaled(10_000), machine.scaled(1_000_000)):
        url = machine.copy("migrated")
        fill_reconciled(url, orphans)
        buffers.append(machine.sweep(url, "--buffers")["buffers"])
        part.add(f"buffers of a sweep, nothing open, {orphans:,} reconciled", buffers[-1], "", 100)
    with psycopg.connect(machine.copy("migrated")) as connection:
        plan: Any = connection.execute(OTHER_EVENTS).fetchall()[0][0]
    called = sum(trigger["Calls"] for trigger in plan[0]["Triggers"])
    part.add("trigger calls for 1,000 events that are not orphans", called, "", 0)


def complete(swept: dict[str, Any], links: int) -> dict[str, Any]:
    """Return what a sweep printed.

    Raises:
        SystemExit: It linked something else than *links* orphans.
    """
    if swept["linked"] != links:
        raise SystemExit(f"of {links} orphans a sweep linked {swept['linked']}")
    return swept
