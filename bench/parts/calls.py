"""Calls of an application, each with its commit: single ones, and one with many rows."""

from __future__ import annotations

import functools

import psycopg

from bench import hand_written
from bench.filling import fill
from bench.results import Results, take_turns
from bench.testbed import Testbed, Worker

Side = tuple[str, Worker, str]
"""The URL of a database, a worker, and what the names of its calls end with."""

SINGLE = {
    "a webhook whose delivery exists": ("webhook", "webhook"),
    "a send": ("send", "send"),
    "a webhook that is too early": ("webhook", "early"),
}
"""The call of `bench.worker` and the prefix of its message ids, by name."""
BARE = "by bare INSERT"
"""The calls by hand that leave the race open."""
CALLS = 150
"""Single calls in one turn."""
RECIPIENTS, EVENTS = 1_000, 500
"""Rows of a call with many."""

DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
       provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'acme', 'Mail', 'transactional', kind || '-' || turn || '-' || n || '@example.com',
       'example.com', 'postmark', kind || '-' || turn || '-' || n, 'dispatched', '2026-03-01 11:00',
       '2026-03-01 11:00', now(), now()
  FROM (VALUES ('webhook'), ('webhook-bare'), ('many')) AS k (kind), generate_series(-1, %s) AS turn,
       generate_series(1, %s) AS n
"""


def measure(testbed: Testbed, results: Results) -> None:
    """Compare every kind of call with the same work by hand and with a bare INSERT, or with another commit's."""
    ours = (_fill(testbed, "made here", "calls"), testbed.worker(), "")
    if testbed.against:
        other = (_fill(testbed, "other made here", "calls other"), testbed.worker("other "), "")
    else:
        url = _fill(testbed, "by hand", "calls other", hand_written.EARLY_EVENTS_INDEX)
        other = (url, testbed.worker(), " by hand")
    words = testbed.against or "by hand"
    for name, (call, prefix) in SINGLE.items():
        costs = _take_turns(testbed, (ours, other), call, prefix, 1, testbed.scaled(CALLS))
        for cost, suffix in (("wall", ""), ("Python", ": CPU of Python"), ("Postgres", ": of Postgres")):
            results.compare(f"{name}{suffix}", "ms", words, _values(costs, cost))
        if not testbed.against:
            bare = (*other[:2], f" {BARE}")
            costs = _take_turns(testbed, (ours, bare), call, f"{prefix}-bare", 1, testbed.scaled(CALLS))
            results.compare(f"{name}, beside what leaves the race open", "ms", BARE, _values(costs, "wall"))
    recipients, events = testbed.scaled(RECIPIENTS), testbed.scaled(EVENTS)
    for name, call, prefix, rows in (
        (f"a send of {recipients:,} recipients", "send", "campaign", recipients),
        (f"a webhook of {events:,} events whose deliveries exist", "webhook", "many", events),
        (f"a webhook of {events:,} events that are too early", "webhook", "nobody", events),
    ):
        costs = _take_turns(testbed, (ours, other), call, prefix, rows, 1)
        results.compare(name, "rows/s", words, _values(costs, "rows/s"))


def _fill(testbed: Testbed, template: str, name: str, *statements: str) -> str:
    """Make a database with deliveries, some of which the webhooks are of, and return its URL."""
    url = testbed.copy(template, name)
    fill(url, deliveries=testbed.scaled(100_000))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(DELIVERIES, [testbed.rounds, max(testbed.scaled(CALLS), testbed.scaled(EVENTS))])
        for statement in (*statements, "VACUUM ANALYZE"):
            connection.execute(statement)
    return url


def _take_turns(
    testbed: Testbed, sides: tuple[Side, Side], call: str, prefix: str, rows: int, calls: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Measure turns of so many calls with so many rows, after one turn that warms up."""

    def run(side: int, turn: int) -> dict[str, float]:
        url, worker, suffix = sides[side]
        ids = [f"{prefix}-{turn}-{number}" for number in range(1, calls * rows + 1)]
        batches = [ids[start : start + rows] for start in range(0, len(ids), rows)]
        before = testbed.postgres_cpu()
        costs = worker.run("call", url=url, name=f"{call}{suffix}", batches=batches)
        postgres = 1000 * (testbed.postgres_cpu() - before) / calls
        return {**costs, "Postgres": postgres, "rows/s": 1000 * rows / costs["wall"]}

    for side in (0, 1):
        run(side, -1)
    return take_turns(testbed.rounds, functools.partial(run, 0), functools.partial(run, 1))


def _values(costs: tuple[list[dict[str, float]], list[dict[str, float]]], cost: str) -> tuple[list[float], list[float]]:
    ours, other = costs
    return [turn[cost] for turn in ours], [turn[cost] for turn in other]
