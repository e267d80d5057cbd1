"""The checker itself: each broken invariant is found."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import factories
import invariants
import mailglass_reconcile
from handling import leaving
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.sweep.result import SweepResult
from marking import slow_unless

pytestmark = pytest.mark.version_independent

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
    """Return True if `make test` breaks an invariant in this way: the first way for some invariants."""
    return broken in [next(way for way in TAMPERING if way[0] == name) for name in ("I1", "I2", "I3", "I13", "I14")]


@pytest.mark.parametrize(("name", "sql"), slow_unless(is_quick, TAMPERING), ids=lambda value: str(value)[:40])
def test_what_breaks_an_invariant_is_found(handler_db, name, sql):
    """Each statement, run with the package's settings and without the ledger's guard, fails its check."""
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


PASSING = """
import functools, pytest, invariants

@pytest.fixture
def tx():
    yield
    invariants._run_checks({"I9": functools.partial(invariants.check_log, ["to ada@example.com"])}, invariants.ALL)

def test_passing(tx):
    pass
"""


@pytest.mark.slow
def test_what_is_found_after_a_test_that_passed_fails_it_with_the_name_of_the_invariant_first(tmp_path):
    (tmp_path / "test_passing.py").write_text(PASSING)
    support = Path(invariants.__file__).parent
    path = os.pathsep.join(map(str, (support, support.parent, support.parent.parent)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "real_servers", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "test_passing - AssertionError: I9: what this package has logged holds no address." in run.stdout
    assert "1 failed in" in run.stdout


def test_an_orphan_that_no_sweep_links_is_found(db):
    """I6: another session holds the delivery."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with db.engine.connect() as holder:
        holder.exec_driver_sql("SELECT FROM mailglass_deliveries FOR UPDATE")
        with pytest.raises(AssertionError):
            invariants.check(db, db.witness, holding=frozenset({"I6"}))


def test_a_message_before_its_commit_is_found(db):
    """I4: the publisher gets an event that nobody has appended."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with redis.Redis.from_url(db.settings.redis_url.get_secret_value()) as client:
        payload = json.dumps({"meta": {"event_id": factories.new_id()}})
        Publisher(client).publish([(factories.TENANT, factories.new_id(), payload)])
    with pytest.raises(AssertionError, match="before their commit"):
        invariants.check(db, db.witness, holding=frozenset({"I4"}))
    db.broken.add("I4")


def test_an_address_in_the_log_is_found(db):
    """I9: the record has the lowest level."""
    logger = logging.getLogger("mailglass_reconcile.sweep.batch")
    logger.setLevel(logging.DEBUG)
    logger.debug("linking %s", factories.RECIPIENT)
    logger.setLevel(logging.NOTSET)
    with pytest.raises(AssertionError):
        invariants.check(db, db.witness, holding=frozenset({"I9"}))
    db.broken.add("I9")


@pytest.mark.parametrize("leftover", ["an idle transaction", "a process"])
def test_what_is_left_behind_is_found(db, monkeypatch, leftover):
    """I10: a transaction or a process survives the test."""
    monkeypatch.setattr(invariants, "PATIENCE_SECONDS", 0.1)
    with contextlib.ExitStack() as stack:
        if leftover == "a process":
            stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        else:
            stack.enter_context(db.engine.connect()).exec_driver_sql("SELECT 1")
        with pytest.raises(AssertionError, match="left behind"):
            invariants.check(db, db.witness, holding=frozenset({"I10"}))


def test_a_sweep_that_failed_in_part_and_does_not_say_so_is_found():
    """I12: the result is made by hand."""
    with pytest.raises(AssertionError):
        invariants.check_statuses([SweepResult(scanned=1, failed=1)])


def test_counts_that_do_not_add_up_are_found():
    """I11: in results made by hand, a state is missing, or an orphan counts twice."""
    for result in (SweepResult(scanned=3, linked=2), SweepResult(scanned=4, linked=2, unmatched=2)):
        with pytest.raises(AssertionError):
            invariants.check_counts([(result, 3)])


def test_what_breaks_an_invariant_in_a_transaction_that_is_rolled_back_is_found(tx):
    """I13: nothing has been committed."""
    factories.orphan(tx, factories.postmark("one"))
    invariants.check_uncommitted(tx)
    tx.run("DELETE FROM mailglass_open_orphans")
    with pytest.raises(AssertionError):
        invariants.check_uncommitted(tx)
    tx.broken.add("I13")
