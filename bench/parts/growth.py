"""Growth: the cost of a call and a link against events already in the ledger, and links a second against processes."""

from __future__ import annotations

import statistics

import psycopg

from bench.filling import SEED, fill
from bench.results import Results
from bench.testbed import Testbed, Worker

HISTORY = (100_000, 1_000_000)
"""Events in the ledger, if `--history` names none."""
PROCESSES = (1, 2, 4)
ORPHANS = 40_000
"""A backlog for processes; a quarter of it is linked beside a history."""
CALLS, ROUNDS = 600, 3

DELIVERED = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, terminal, dispatched_at, delivered_at, inserted_at, updated_at)
SELECT md5(%(seed)s || 'h' || i)::uuid, 'tenant-' || i %% 10, 'Mail', 'transactional', 'h' || i || '@example.com',
       'example.com', 'history-' || md5(i::text), 'delivered', at, true, at, at, at, at
  FROM generate_series(%(first)s, %(last)s) AS i, LATERAL (SELECT now() - i * interval '1 second') AS t (at)
"""
# Ids of events are UUIDv7: their first 48 bits are milliseconds.
EVENTS = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata,
                              needs_reconciliation, inserted_at)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(i || type), 1, 3) || 'a'
        || substr(md5(i || type), 5, 15))::uuid,
       'tenant-' || i %% 10, md5(%(seed)s || 'h' || i)::uuid, type, at, 'webhook:' || md5(i || type),
       jsonb_build_object('provider', 'postmark', 'message_id', 'history-' || md5(i::text)), false, at
  FROM generate_series(%(first)s, %(last)s) AS i, LATERAL (SELECT now() - i * interval '1 second') AS t (at),
       unnest('{dispatched,delivered}'::text[]) AS type
"""
CUTS = "SELECT percentile_disc(%s::float8[]) WITHIN GROUP (ORDER BY arrived_at)::text[] FROM mailglass_open_orphans"


def measure(testbed: Testbed, results: Results) -> None:
    """Measure both."""
    _measure_history(testbed, results)
    _measure_processes(testbed, results)


def _measure_history(testbed: Testbed, results: Results) -> None:
    """Fill a database for each size, and measure them in turns."""
    url, worker, messages = testbed.copy("made here", "history"), testbed.worker(), 0
    urls, figures = {}, {}
    for size in testbed.history or HISTORY:
        _add_history(url, messages + 1, messages := testbed.scaled(size) // 2)
        urls[size] = testbed.copy("history", f"history {size}")
        figures |= {(size, name): [] for name in ("send", "webhook", "link")}
    for turn in range(min(ROUNDS, testbed.rounds)):
        for size in sorted(urls, reverse=bool(turn % 2)):
            for name in ("send", "webhook"):
                figures[size, name].append(_call(testbed, worker, urls[size], name, turn))
            worker.run("release", url=urls[size])
            figures[size, "link"].append(_link_backlog(testbed, worker, f"history {size}"))
    for (size, name), values in figures.items():
        results.add(f"{size:,} events before: a {name}", "µs" if name == "link" else "ms", values)


def _add_history(url: str, first: int, last: int) -> None:
    """Insert messages whose events have reached their deliveries, and vacuum."""
    with psycopg.connect(url, autocommit=True) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        for statement in (DELIVERED, EVENTS):
            cursor.execute(statement, {"seed": SEED, "first": first, "last": last})
        connection.execute("VACUUM ANALYZE")


def _link_backlog(testbed: Testbed, worker: Worker, template: str) -> float:
    """Link a backlog in a copy of a database, and return the microseconds of a link."""
    url, messages = testbed.copy(template), testbed.scaled(ORPHANS) // 8
    fill(url, deliveries=messages, messages=messages)
    swept = worker.run("sweep", url=url)
    if swept["linked"] != 2 * messages:
        raise SystemExit(f"of {2 * messages} orphans {swept['linked']} were linked")
    return float(1e6 * swept["seconds"] / swept["linked"])


def _call(testbed: Testbed, worker: Worker, url: str, name: str, turn: int) -> float:
    """Make single calls, and return the milliseconds of one after some that are not measured.

    A webhook's delivery is there.
    """
    batches = [[f"{name}-{turn}-{number}"] for number in range(testbed.scaled(CALLS))]
    if name == "webhook":
        worker.run("call", url=url, name="send", batches=batches)
    half = len(batches) // 2
    worker.run("call", url=url, name=name, batches=batches[:half])
    return float(worker.run("call", url=url, name=name, batches=batches[half:])["wall"])


def _measure_processes(testbed: Testbed, results: Results) -> None:
    """Link copies of the same backlog with so many processes, each on its range of arrival."""
    messages = testbed.scaled(ORPHANS) // 2
    fill(testbed.copy("made here", "ranges"), deliveries=messages, messages=messages)
    workers = [testbed.worker() for _ in range(max(PROCESSES))]
    rates: dict[int, list[float]] = {number: [] for number in PROCESSES}
    for _ in range(min(ROUNDS, testbed.rounds)):
        for number in PROCESSES:
            rates[number].append(_link_with(testbed, workers[:number], 2 * messages))
    for number in PROCESSES:
        results.add(f"{2 * messages:,} orphans, processes: {number}", "links/s", statistics.median(rates[number]))


def _link_with(testbed: Testbed, workers: list[Worker], orphans: int) -> float:
    """Link a copy of the backlog with a process for each range, and return the links a second."""
    url = testbed.copy("ranges")
    with psycopg.connect(url) as connection:
        shares = [number / len(workers) for number in range(1, len(workers))]
        cuts = connection.execute(CUTS, [shares]).fetchall()[0][0] or []
    bounds = [None, *cuts, None]
    for number, worker in enumerate(workers):
        worker.start("sweep", url=url, after=bounds[number], until=bounds[number + 1])
    sweeps = [worker.result() for worker in workers]
    linked = sum(sweep["linked"] for sweep in sweeps)
    if linked < 0.99 * orphans:  # a few deliveries were locked by another range
        raise SystemExit(f"of {orphans} orphans {linked} were linked")
    return float(linked / (max(sweep["ended"] for sweep in sweeps) - min(sweep["began"] for sweep in sweeps)))
