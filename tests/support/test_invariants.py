"""The checker itself: whoever breaks an invariant is found out."""

import contextlib
import json
import logging
import subprocess

import pytest
import redis

import factories
import invariants
import mailglass_reconcile
from handling import leaving
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.sweep.result import SweepResult
from marking import slow_unless

TAMPERING = [
    ("I1", "UPDATE mailglass_events SET idempotency_key = 'x' WHERE type = 'reconciled'"),
    ("I2", "UPDATE mailglass_deliveries SET delivered_at = now()::timestamp"),
    ("I3", "UPDATE mailglass_events SET metadata = '{}' WHERE needs_reconciliation"),
    ("I3", "DELETE FROM mailglass_events WHERE type <> 'reconciled'"),
    ("I4", "UPDATE mailglass_events SET id = gen_random_uuid() WHERE type = 'reconciled'"),
    ("I5", "UPDATE mailglass_events SET tenant_id = 'other' WHERE type = 'reconciled'"),
    ("I7", "UPDATE mailglass_deliveries SET terminal = false"),
    ("I13", "DELETE FROM mailglass_open_orphans"),
    ("I14", "DELETE FROM mailglass_handler_outbox"),
    ("I14", "UPDATE mailglass_handler_outbox SET delivery_id = gen_random_uuid()"),
    ("I14", "DELETE FROM mailglass_handler_outbox WHERE handler = 'once'"),
    ("I14", "INSERT INTO witness.effects SELECT 'twice', event_id FROM mailglass_handler_outbox"),
    ("I14", "UPDATE mailglass_handler_outbox SET state = 'waiting', finished_at = NULL"),
]


def is_quick(broken: tuple[str, str]) -> bool:
    """Whether `make test` breaks it: the first way for each of some invariants."""
    return broken in [next(way for way in TAMPERING if way[0] == name) for name in ("I1", "I2", "I3", "I13", "I14")]


@pytest.mark.parametrize(("name", "sql"), slow_unless(is_quick, TAMPERING), ids=lambda value: str(value)[:40])
def test_what_breaks_an_invariant_is_found(handler_db, name, sql):
    """Each statement, run in the package's own scope with the ledger's guard off, fails the check it belongs to."""
    db = handler_db
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    factories.orphan(db, factories.postmark("two"))
    leaving("once")
    leaving("twice")
    assert mailglass_reconcile.reconcile().linked == 1
    assert mailglass_reconcile.dispatch().handled == 2
    invariants.check(db, db.witness, holding=invariants.ALL - {"I4"})
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("SET LOCAL search_path = public, pg_temp")
        connection.exec_driver_sql(sql)
    with pytest.raises(AssertionError):
        invariants.check(db, db.witness, holding=frozenset({name}))
    db.broken.update(invariants.ALL)


def test_an_orphan_that_no_sweep_links_is_found(db):
    """I6, with a delivery that somebody holds forever."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with db.engine.connect() as holder:
        holder.exec_driver_sql("SELECT FROM mailglass_deliveries FOR UPDATE")
        with pytest.raises(AssertionError):
            invariants.check(db, db.witness, holding=frozenset({"I6"}))


def test_a_message_before_its_commit_is_found(db):
    """I4, by a publisher that is given an event that nobody has appended."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with redis.Redis.from_url(db.settings.redis_url.get_secret_value()) as client:
        payload = json.dumps({"meta": {"event_id": factories.new_id()}})
        Publisher(client).publish([(factories.TENANT, factories.new_id(), payload)])
    with pytest.raises(AssertionError, match="before their commit"):
        invariants.check(db, db.witness, holding=frozenset({"I4"}))
    db.broken.add("I4")


def test_an_address_in_the_log_is_found(db):
    """I9, at the level that nobody reads."""
    logger = logging.getLogger("mailglass_reconcile.sweep.batch")
    logger.setLevel(logging.DEBUG)
    logger.debug("linking %s", factories.RECIPIENT)
    logger.setLevel(logging.NOTSET)
    with pytest.raises(AssertionError):
        invariants.check(db, db.witness, holding=frozenset({"I9"}))
    db.broken.add("I9")


@pytest.mark.parametrize("left", ["an idle transaction", "a process"])
def test_what_is_left_behind_is_found(db, monkeypatch, left):
    """I10."""
    monkeypatch.setattr(invariants, "PATIENCE_SECONDS", 0.1)
    with contextlib.ExitStack() as stack:
        if left == "a process":
            stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        else:
            stack.enter_context(db.engine.connect()).exec_driver_sql("SELECT 1")
        with pytest.raises(AssertionError, match="left behind"):
            invariants.check(db, db.witness, holding=frozenset({"I10"}))


def test_a_sweep_that_failed_in_part_and_does_not_say_so_is_found():
    """I12, on a result of hand."""
    with pytest.raises(AssertionError):
        invariants.check_statuses([SweepResult(scanned=1, failed=1)])


def test_counts_that_do_not_add_up_are_found():
    """I11, on results of hand: one state is missing; an orphan is counted twice."""
    for result in (SweepResult(scanned=3, linked=2), SweepResult(scanned=4, linked=2, unmatched=2)):
        with pytest.raises(AssertionError):
            invariants.check_counts([(result, 3)])


def test_what_breaks_an_invariant_in_a_transaction_that_is_rolled_back_is_found(tx):
    """I13, before anything is committed."""
    factories.orphan(tx, factories.postmark("one"))
    invariants.check_uncommitted(tx)
    tx.run("DELETE FROM mailglass_open_orphans")
    with pytest.raises(AssertionError):
        invariants.check_uncommitted(tx)
    tx.broken.add("I13")
