"""Sweeps that link nothing, in both layouts: arrivals in order with ascending ids, and tied ones with random ids."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import psycopg

from bench import operator_views, statements
from bench.figures import Part, Points
from bench.filling import ANOTHER_TENANTS, NOBODYS, Layout, fill
from bench.sweep_process import sweep
from bench.testbed import Testbed, vacuum

MESSAGES: dict[Layout, int] = {"in order": 500_000, "tied": 100_000}
"""Messages that match nothing, with two orphans each."""
STUCK = (50_000, 200_000)
STRAIGHT = 1.3
"""How much steeper than a straight line through its first point a curve may end."""

ROWS_WRITTEN = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"


def measure(testbed: Testbed) -> Part:
    """Measure orphans that match nothing, that are stuck, and whose ids are wide."""
    part = Part()
    for layout in MESSAGES:
        _unmatched(testbed, layout, part)
    for layout in MESSAGES:
        for state in ("tenant_mismatch", "ambiguous"):
            _stuck(testbed, state, layout, part)
        _on_wide_ids(testbed, layout, part)
    _misrouted(testbed, part)
    _overview_of_few(testbed, part)
    return part


def _unmatched(testbed: Testbed, layout: Layout, part: Part) -> None:
    """Sweep orphans that match nothing for the first time, and again; then with newer ones that match."""
    url, messages = testbed.copy("migrated"), testbed.scaled(MESSAGES[layout])
    fill(url, deliveries=messages // 5, messages=messages, layout=layout, **NOBODYS)
    about = f"{2 * messages:,} unmatched, {layout}"
    first_seconds = _seconds(url, "unmatched", 2 * messages)
    part.add(f"{about}: the first sweep", first_seconds, "s", 28 * messages / 500_000)
    vacuum(url)
    with psycopg.connect(url, autocommit=True) as connection:
        before = _count_rows_written(connection)
        joins, sweeps = [], []
        for _ in range(testbed.rounds):
            joins.append(statements.run_join(url))
            sweeps.append(_seconds(url, "unmatched", 2 * messages))
        rows_written = (
            _count_rows_written(connection) - before - testbed.rounds
        )  # each leaves its row in the history of runs
    join, seconds = statistics.median(joins), statistics.median(sweeps)
    part.add(f"{about}: a sweep", seconds, "s", 1.6 * join + 0.1, note=f"the plain join takes {join:.2f} s")
    part.add(f"{about}: rows written by {testbed.rounds} sweeps, without their own", max(0, rows_written), "", 0)
    part.add(f"{about}: `status --check`, with its start", operator_views.measure_status_check(testbed, url), "s", 0.7)
    part.add(f"{about}: the page, overview", operator_views.measure_overview(testbed, url), "s", 0.5)
    fill(url, messages=1)
    linked = sweep(url)["linked"]
    part.add(f"{about}: newer matching events linked, of two", linked, "", 2, least=True)


def _stuck(testbed: Testbed, state: str, layout: Layout, part: Part) -> None:
    """Sweep orphans that name deliveries and cannot be linked, after their first sweep."""
    points: Points = []
    for size in STUCK:
        orphans = testbed.scaled(size)
        url = testbed.copy("migrated")
        orphans_of: Mapping[str, str] = ANOTHER_TENANTS if state == "tenant_mismatch" else {}
        copies = 1 if orphans_of else 2
        fill(url, deliveries=orphans // 2, copies=copies, messages=orphans // 2, layout=layout, **orphans_of)
        for _ in range(2):
            seconds = _seconds(url, state, orphans // 2 * 2)
            vacuum(url)
        points.append((orphans, seconds))
    part.curves[f"stuck: {state}, {layout}"] = points
    (few_orphans, shortest), (most_orphans, longest) = points[0], points[-1]
    note = ", ".join(f"{orphans:,.0f}: {seconds:.2f} s" for orphans, seconds in points)
    part.add(f"{state}, {layout}: {most_orphans:,.0f} stuck orphans, a sweep", longest, "s", 1 if orphans_of else 3)
    name = f"{state}, {layout}: {most_orphans:,.0f} stuck orphans / {few_orphans:,.0f}, seconds of a sweep"
    part.add(name, longest / shortest, "", STRAIGHT * most_orphans / few_orphans, note=note)


def _on_wide_ids(testbed: Testbed, layout: Layout, part: Part) -> None:
    orphans, url = testbed.scaled(10_000), testbed.copy("migrated")
    fill(url, deliveries=10, copies=testbed.scaled(10_000), messages=orphans // 2, ids=10, layout=layout)
    first_seconds, second_seconds = (_seconds(url, "ambiguous", orphans // 2 * 2) for _ in range(2))
    name = f"{orphans:,} ambiguous on ten wide ids, {layout}: the second sweep"
    part.add(name, second_seconds, "s", 1, note=f"the first: {first_seconds:.2f} s")


def _misrouted(testbed: Testbed, part: Part) -> None:
    """Sweep the webhooks of a campaign, sent with one API call, that arrive under a wrong tenant."""
    deliveries, orphans, url = testbed.scaled(100_000), testbed.scaled(2_000), testbed.copy("migrated")
    fill(url, deliveries=1, copies=deliveries, messages=orphans // 2, ids=1, **ANOTHER_TENANTS)
    first_seconds, second_seconds = (_seconds(url, "tenant_mismatch", orphans // 2 * 2) for _ in range(2))
    name = f"{orphans:,} of one id under a wrong tenant, {deliveries:,} deliveries: the second sweep"
    part.add(name, second_seconds, "s", 1, note=f"the first: {first_seconds:.2f} s")


def _overview_of_few(testbed: Testbed, part: Part) -> None:
    orphans, url = testbed.scaled(100_000), testbed.copy("migrated")
    fill(url, deliveries=1_000, messages=orphans // 2, **NOBODYS)
    _seconds(url, "unmatched", orphans)
    part.add(
        f"{orphans:,} unmatched: the page, overview", 1000 * operator_views.measure_overview(testbed, url), "ms", 80
    )


def _seconds(url: str, state: str, orphans: int) -> float:
    swept = sweep(url)
    if swept[state] != orphans:
        raise SystemExit(f"of {orphans} orphans a sweep counted {swept[state]} as {state}")
    return float(swept["seconds"])


def _count_rows_written(connection: psycopg.Connection) -> int:
    """Return how many rows have been written in this database so far."""
    connection.execute("SELECT pg_stat_clear_snapshot()")
    return int(connection.execute(ROWS_WRITTEN).fetchall()[0][0])
