"""Retention while others write, in two prunes at once, and in a process that is killed: per delivery all or none."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from conftest import wait_until
from factories import delivery_row, insert, orphan_row
from mailglass_reconcile import WebhookEvent, record_webhook
from mailglass_reconcile.ops import pruner
from ops.aging import days_ago, prune

LEFT = """
SELECT e.delivery_id::text AS id, count(*) FILTER (WHERE e.inserted_at < now()::timestamp - interval '30 days') AS old,
       count(*) FILTER (WHERE e.inserted_at > now()::timestamp - interval '30 days') AS young
  FROM mailglass_events AS e WHERE e.delivery_id IS NOT NULL GROUP BY 1
"""
KILLED = """
import mailglass_reconcile
from faults.sweeper import die_at
from mailglass_reconcile.ops import pruner
pruner.RETENTION_ROWS = pruner.BATCH_ROWS = 4
die_at({number})
print(mailglass_reconcile.prune().as_dict())
"""


def fill(db, deliveries: int, events: int = 3) -> dict[str, str]:
    """Insert deliveries of forty days ago with so many events each; return their message ids by their ids."""
    rows = [delivery_row(f"m-{number}") for number in range(deliveries)]
    with days_ago(db, 40):
        given = {"needs_reconciliation": False, "type": "opened", "occurred_at": "2026-01-03", "age_seconds": 0}
        its = [orphan_row({}, delivery_id=row["id"], **given) for row in rows for _ in range(events)]
        random.Random(1).shuffle(its)
        insert(db, rows, its)
    return {row["id"]: row["message_id"] for row in rows}


def check(db, known: dict[str, str], events: int = 3) -> None:
    """Of each delivery all old events are there, or none; what was attached meanwhile has its delivery."""
    there = {row[0] for row in db.rows("SELECT id::text FROM mailglass_deliveries")}
    left = {row.id: row for row in db.rows(LEFT)}
    assert set(left) <= there
    assert {row.old for row in left.values()} <= {0, events}
    assert all(row.old == 0 or row.young or row.id in known for row in left.values())


def test_two_prunes_while_webhooks_come(db, monkeypatch):
    """Late webhooks of old deliveries: each finds its delivery, or is an orphan because the delivery has gone."""
    monkeypatch.setattr(pruner, "RETENTION_ROWS", 20)
    monkeypatch.setattr(pruner, "BATCH_ROWS", 20)
    known = fill(db, 150)
    messages = list(known.values())
    random.Random(2).shuffle(messages)

    def write() -> int:
        for number, message in enumerate(messages):
            event = WebhookEvent(
                type="clicked", occurred_at=datetime.now(UTC), provider_event_id=str(number), message_id=message
            )
            with db.engine.begin() as connection:
                record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
        return 0

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        pruned = [pool.submit(prune, db, 30, 30) for _ in range(2)]
        assert [one.result().failures for one in pruned] == [{}, {}]
        writing.result()
    check(db, known)
    last = prune(db, 30, 30)
    deleted = [*(one.result() for one in pruned), last]
    old = {row.id for row in db.rows(LEFT) if row.old}
    assert sum(one.events for one in deleted) == 3 * (len(known) - len(old))
    assert db.value("SELECT count(*) FROM mailglass_events WHERE type = 'clicked'") == len(known)
    gone = len(known) - db.value("SELECT count(*) FROM mailglass_deliveries")
    assert sum(one.deliveries for one in deleted) == gone
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == gone


@pytest.mark.slow
def test_a_prune_that_is_killed_leaves_nothing_half_done(db, redis_url):
    """At many places, until one ends by itself; the next prune does the rest."""
    known = fill(db, 12)
    variables = {"PYTHONPATH": "tests", "MAILGLASS_RETENTION_EVENTS_DAYS": "30"}
    environment = {**db.environment(redis_url), **variables, "MAILGLASS_RETENTION_DELIVERIES_DAYS": "30"}
    kills = 0
    for number in range(60, 1_000, 11):
        script = KILLED.format(number=number)
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
        check(db, known)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        kills += 1
    assert kills >= 3
    assert not db.rows("SELECT FROM mailglass_events UNION ALL SELECT FROM mailglass_deliveries")


def test_a_batch_whose_connection_is_lost_is_undone_and_done_again(db):
    """In the middle of its DELETE, which waits for a row that somebody holds."""
    known = fill(db, 5)
    with ThreadPoolExecutor(1) as pool, db.engine.connect() as other:
        other.exec_driver_sql("SELECT FROM mailglass_events ORDER BY id DESC LIMIT 1 FOR UPDATE")
        pruned = pool.submit(prune, db)
        waiting = "SELECT pid FROM pg_locks WHERE NOT granted"
        wait_until(lambda: db.rows(waiting))
        assert db.value("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        check(db, known)
        assert db.value("SELECT count(*) FROM mailglass_events") == 15
        other.rollback()
        result = pruned.result()
    assert (result.events, result.failures) == (15, {})
