"""One sweep: of orphans that match, that match nothing, and of a misrouted campaign, on both kinds of tables."""

from __future__ import annotations

from typing import Any

import psycopg

from bench import statements
from bench.filling import ANOTHER_TENANTS, NOBODYS, fill
from bench.results import Results, take_turns
from bench.testbed import TABLES, Tables, Testbed, Worker

MESSAGES = 25_000
"""Messages with two orphans each; nine tenths of those that match have a delivery."""
UNMATCHED = 100_000
"""Messages that no delivery has the ids of."""
CAMPAIGN, MISROUTED = 100_000, 2_000
"""Deliveries of one API call, and orphans of its id under a wrong tenant."""

PAIR = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation,
                              inserted_at)
SELECT gen_random_uuid(), tenant_id, 'delivered', now(), provider_message_id,
       jsonb_build_object('provider', 'postmark', 'message_id', provider_message_id), true,
       now()::timestamp - interval '1 minute'
  FROM mailglass_deliveries
"""

WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float"
UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'mailglass_deliveries'"


def measure(testbed: Testbed, results: Results) -> None:
    """Compare sweeps with the bare statement and the plain join, or with another commit's."""
    worker, other_worker = testbed.worker(), testbed.worker("other " if testbed.against else "")
    for tables in TABLES:
        _links(testbed, tables, worker, other_worker, results)
        _unmatched(testbed, tables, worker, other_worker, results)
    _misrouted(testbed, worker, results)
    _one_pair(testbed, worker, results)


def _links(testbed: Testbed, tables: Tables, worker: Worker, other_worker: Worker, results: Results) -> None:
    """Link the orphans of a storm, in a new copy of the database each time."""
    messages = testbed.scaled(MESSAGES)
    links = messages * 9 // 10 * 2
    for side in ("", "other ") if testbed.against else ("",):
        fill(testbed.copy(f"{side}{tables}", f"{side}storm"), deliveries=messages * 9 // 10, messages=messages)

    def sweep(side: str, worker: Worker) -> dict[str, Any]:
        url = testbed.copy(f"{side}storm", f"{side}run")
        with psycopg.connect(url, autocommit=True) as connection:
            before = _value(connection, WAL)
            seconds = run_complete(worker, url, "linked", links)["seconds"]
            wal = (_value(connection, WAL) - before) / links
            updated, hot = connection.execute(UPDATES).fetchall()[0]
        return {"rate": links / seconds, "wal": wal, "hot": 100 * hot / max(updated, 1)}

    def run_by_hand() -> dict[str, Any]:
        return {
            "batches": links / statements.run_batches(testbed.copy("storm", "run by hand")),
            "rate": links / statements.run_bare_statement(testbed.copy("storm", "run by hand")),
        }

    ours, other = take_turns(
        testbed.rounds,
        lambda turn: sweep("", worker),
        lambda turn: sweep("other ", other_worker) if testbed.against else run_by_hand(),
    )
    about = f"tables {tables}"
    rates = [turn["rate"] for turn in ours], [turn["rate"] for turn in other]
    results.compare(f"{about}: links", "links/s", testbed.against or "the bare statement", rates)
    if not testbed.against:
        batches = rates[0], [turn["batches"] for turn in other]
        results.compare(f"{about}: links, beside committed batches", "links/s", "batches by hand", batches)
    for name, side in ((about, ours), (f"{about}, {testbed.against}", other if testbed.against else [])):
        if side:
            results.add(f"{name}: WAL of a link", "bytes", [turn["wal"] for turn in side])
            results.add(f"{name}: updates of deliveries that stay in their page", "%", [turn["hot"] for turn in side])


def _unmatched(testbed: Testbed, tables: Tables, worker: Worker, other_worker: Worker, results: Results) -> None:
    """Sweep orphans that match nothing, after the first sweep has stored their ids."""
    messages = testbed.scaled(UNMATCHED)
    urls = {}
    for side, sweeper in (("", worker), ("other ", other_worker)) if testbed.against else (("", worker),):
        urls[side] = testbed.copy(f"{side}{tables}", f"{side}unmatched")
        fill(urls[side], deliveries=messages // 5, messages=messages, **NOBODYS)
        first = run_complete(sweeper, urls[side], "unmatched", 2 * messages)["seconds"]
        if not side:
            results.add(f"tables {tables}: the first sweep of {2 * messages:,} unmatched", "s", first)
        with psycopg.connect(urls[side], autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")

    def sweep(side: str, worker: Worker) -> float:
        return float(run_complete(worker, urls[side], "unmatched", 2 * messages)["seconds"])

    turns = take_turns(
        testbed.rounds,
        lambda turn: sweep("", worker),
        lambda turn: sweep("other ", other_worker) if testbed.against else statements.run_join(urls[""]),
    )
    name = f"tables {tables}: a later sweep of {2 * messages:,} unmatched"
    results.compare(name, "s", testbed.against or "the plain join", turns)


def _misrouted(testbed: Testbed, worker: Worker, results: Results) -> None:
    """Sweep the webhooks of a campaign, sent with one API call, that arrive under a wrong tenant."""
    deliveries, orphans = testbed.scaled(CAMPAIGN), testbed.scaled(MISROUTED)
    url = testbed.copy("made here")
    fill(url, deliveries=1, copies=deliveries, messages=orphans // 2, ids=1, **ANOTHER_TENANTS)
    for number in ("first", "second"):
        seconds = run_complete(worker, url, "tenant_mismatch", orphans // 2 * 2)["seconds"]
        name = f"{orphans:,} of one id under a wrong tenant, {deliveries:,} deliveries: the {number} sweep"
        results.add(name, "s", seconds)


def _one_pair(testbed: Testbed, worker: Worker, results: Results) -> None:
    """Sweep on a kept connection: with nothing to do, and one pair that another program wrote."""
    sweeps: dict[str, list[dict[str, Any]]] = {"with nothing to do": [], "of one pair": []}
    for _ in range(testbed.rounds):
        url = testbed.copy("made here", "pair")
        worker.run("sweep", url=url, keep=True)
        sweeps["with nothing to do"].append(worker.run("sweep", url=url, keep=True))
        fill(url, deliveries=1)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(PAIR)
        sweeps["of one pair"].append(run_complete(worker, url, "linked", 1))
    for name, turns in sweeps.items():
        results.add(f"a sweep {name}", "ms", [1000 * turn["seconds"] for turn in turns])
        results.add(f"a sweep {name}: CPU of Python", "ms", [1000 * turn["cpu"] for turn in turns])


def run_complete(worker: Worker, url: str, state: str, orphans: int) -> dict[str, Any]:
    """Sweep, and return the result.

    Raises:
        SystemExit: Another number of orphans was counted in this state.
    """
    result = worker.run("sweep", url=url)
    if result[state] != orphans:
        raise SystemExit(f"of {orphans} orphans a sweep counted {result[state]} as {state}")
    return result


def _value(connection: psycopg.Connection, statement: str) -> float:
    return float(connection.execute(statement).fetchall()[0][0])
