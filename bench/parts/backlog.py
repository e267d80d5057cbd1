"""A backlog, linked by one process and by two on ranges of arrival, as a fan-out cuts them for Celery."""

from __future__ import annotations

import psycopg

from bench.filling import fill
from bench.results import Results, take_turns
from bench.testbed import Testbed, Worker

ORPHANS = 200_000
HALF = "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY arrived_at)::text FROM mailglass_open_orphans"


def measure(testbed: Testbed, results: Results) -> None:
    """Link copies of the same backlog."""
    messages = testbed.scaled(ORPHANS) // 2
    backlog = testbed.copy("made here", "backlog")
    fill(backlog, deliveries=messages, messages=messages)
    with psycopg.connect(backlog) as connection:
        half = connection.execute(HALF).fetchall()[0][0]
    workers = [testbed.worker(), testbed.worker()]
    two, one = take_turns(
        testbed.rounds,
        lambda turn: _link(testbed, workers, [{"until": half}, {"after": half}], 2 * messages),
        lambda turn: _link(testbed, workers, [{}], 2 * messages),
    )
    rates = [turn["rate"] for turn in two], [turn["rate"] for turn in one]
    results.add(f"{2 * messages:,} orphans, one process", "links/s", rates[1])
    results.compare(f"{2 * messages:,} orphans, two processes", "links/s", "one process", rates)
    for server in ("Postgres", "Python"):
        results.add(f"one process: CPU of {server}", "µs/link", [turn[server] for turn in one])


def _link(testbed: Testbed, workers: list[Worker], ranges: list[dict[str, str]], orphans: int) -> dict[str, float]:
    """Link a copy of the backlog with a process for each range; return links a second, and CPU microseconds of one.

    Raises:
        SystemExit: Orphans are left. A few may be: their delivery was locked by the other range.
    """
    url = testbed.copy("backlog")
    running, before = list(zip(workers, ranges, strict=False)), testbed.postgres_cpu()
    for worker, arrivals in running:
        worker.start("sweep", url=url, **arrivals)
    sweeps = [worker.result() for worker, _ in running]
    linked, postgres = sum(sweep["linked"] for sweep in sweeps), testbed.postgres_cpu() - before
    late_links = workers[0].run("sweep", url=url)["linked"]
    if linked + late_links != orphans or linked < 0.99 * orphans:
        raise SystemExit(f"of {orphans} orphans {linked} were linked, and {late_links} by the next sweep")
    seconds = max(sweep["ended"] for sweep in sweeps) - min(sweep["began"] for sweep in sweeps)
    cpu = {"Postgres": postgres, "Python": sum(sweep["cpu"] for sweep in sweeps)}
    return {"rate": linked / seconds, **{name: 1e6 * spent / linked for name, spent in cpu.items()}}
