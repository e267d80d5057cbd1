"""Sweeps that link nothing, in both layouts: arrivals in order with ascending ids, and tied ones with random ids."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import psycopg

from bench import looking, statements
from bench.figures import Part, Points
from bench.filling import ANOTHER_TENANTS, NOBODYS, Layout, fill
from bench.machine import Machine, vacuum
from bench.sweeping import sweep

MESSAGES: dict[Layout, int] = {"in order": 500_000, "tied": 100_000}
"""Messages that match nothing, with two orphans each."""
STUCK = (50_000, 200_000)
STRAIGHT = 1.3
"""How much steeper than a straight line through its first point a curve may end."""

WRITTEN = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"


def measure(machine: Machine) -> Part:
    """Measure orphans that match nothing, that are stuck, and that are ambiguous on wide ids."""
    part = Part()
    for layout in MESSAGES:
        _unmatched(machine, layout, part)
    for layout in MESSAGES:
        for state in ("tenant_mismatch", "ambiguous"):
            _stuck(machine, state, layout, part)
        _on_wide_ids(machine, layout, part)
    _overview_of_few(machine, part)
    return part


def _unmatched(machine: Machine, layout: Layout, part: Part) -> None:
    """Look at orphans that match nothing for the first time, and again; then at younger ones that do match."""
    url, messages = machine.copy("migrated"), machine.scaled(MESSAGES[layout])
    fill(url, deliveries=messages // 5, messages=messages, layout=layout, **NOBODYS)
    about = f"{2 * messages:,} unmatched, {layout}"
    first = _seconds(url, "unmatched", 2 * messages)
    part.add(f"{about}: the first look", first, "s", 28 * messages / 500_000)
    vacuum(url)
    with psycopg.connect(url, autocommit=True) as connection:
        before = _written(connection)
        joins, sweeps = [], []
        for _ in range(machine.rounds):
            joins.append(statements.join(url))
            sweeps.append(_seconds(url, "unmatched", 2 * messages))
        written = _written(connection) - before - machine.rounds  # each leaves its row in the history of runs
    join, seconds = statistics.median(joins), statistics.median(sweeps)
    part.add(f"{about}: a sweep", seconds, "s", 1.6 * join + 0.1, note=f"the honest join takes {join:.2f} s")
    part.add(f"{about}: rows written by {machine.rounds} sweeps, without their own", max(0, written), "", 0)
    part.add(f"{about}: `status --check`, with its start", looking.check(machine, url), "s", 0.7)
    part.add(f"{about}: the page, overview", looking.overview(machine, url), "s", 0.5)
    fill(url, messages=1)
    linked = sweep(url)["linked"]
    part.add(f"{about}: younger ones linked, of two", linked, "", 2, least=True)


def _stuck(machine: Machine, state: str, layout: Layout, part: Part) -> None:
    """Sweep orphans that all name deliveries and cannot be linked, after their first look."""
    points: Points = []
    for size in STUCK:
        orphans = machine.scaled(size)
        url = machine.copy("migrated")
        many: Mapping[str, str] = ANOTHER_TENANTS if state == "tenant_mismatch" else {}
        copies = 1 if many else 2
        fill(url, deliveries=orphans // 2, copies=copies, messages=orphans // 2, layout=layout, **many)
        for _ in range(2):
            seconds = _seconds(url, state, orphans // 2 * 2)
            vacuum(url)
        points.append((orphans, seconds))
    part.curves[f"stuck: {state}, {layout}"] = points
    (few, shortest), (most, longest) = points[0], points[-1]
    note = ", ".join(f"{orphans:,.0f}: {seconds:.2f} s" for orphans, seconds in points)
    part.add(f"{state}, {layout}: {most:,.0f} stuck orphans, a sweep", longest, "s", 1 if many else 3)
    name = f"{state}, {layout}: {most:,.0f} stuck orphans / {few:,.0f}, seconds of a sweep"
    part.add(name, longest / shortest, "", STRAIGHT * most / few, note=note)


def _on_wide_ids(machine: Machine, layout: Layout, part: Part) -> None:
    orphans, url = machine.scaled(10_000), machine.copy("migrated")
    fill(url, deliveries=10, copies=machine.scaled(10_000), messages=orphans // 2, ids=10, layout=layout)
    first, second = (_seconds(url, "ambiguous", orphans // 2 * 2) for _ in range(2))
    name = f"{orphans:,} ambiguous on ten wide ids, {layout}: the second sweep"
    part.add(name, second, "s", 1, note=f"the first: {first:.2f} s")


def _overview_of_few(machine: Machine, part: Part) -> None:
    orphans, url = machine.scaled(100_000), machine.copy("migrated")
    fill(url, deliveries=1_000, messages=orphans // 2, **NOBODYS)
    _seconds(url, "unmatched", orphans)
    part.add(f"{orphans:,} unmatched: the page, overview", 1000 * looking.overview(machine, url), "ms", 80)


def _seconds(url: str, state: str, orphans: int) -> float:
    swept = sweep(url)
    if swept[state] != orphans:
        raise SystemExit(f"of {orphans} orphans a sweep counted {swept[state]} as {state}")
    return float(swept["seconds"])


def _written(connection: psycopg.Connection) -> int:
    """Return how many rows have been written in this database so far."""
    connection.execute("SELECT pg_stat_clear_snapshot()")
    return int(connection.execute(WRITTEN).fetchall()[0][0])
