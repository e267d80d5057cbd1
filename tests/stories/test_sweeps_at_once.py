"""Sweeps beside other sessions that work on the same rows."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

import mailglass_reconcile
from factories import delivery_row, insert, orphan_row, postmark, reconciled_row
from mailglass_reconcile import reconcile, runtime
from mailglass_reconcile.pubsub.publisher import Publisher
from mailglass_reconcile.store import database as databases
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep.reconciler import Sweep
from sweeping import refusals

WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


def rows_of(count):
    """Return some deliveries and an orphan for each."""
    deliveries = [delivery_row(str(n)) for n in range(count)]
    return deliveries, [orphan_row(postmark(str(n)), age_seconds=1_000 - n) for n in range(count)]


def links_of(db):
    """Return the number of `reconciled` events and of orphans that they link."""
    return db.rows(
        "SELECT count(*), count(DISTINCT metadata ->> 'reconciled_from_event_id') FROM mailglass_events"
        " WHERE type = 'reconciled'"
    )[0]


def test_a_sweep_does_not_wait_for_another_open_transaction(db):
    """The other session holds three keys without a commit: the sweep links the rest and skips those three."""
    deliveries, orphans = rows_of(20)
    insert(db, deliveries, orphans)
    linked_elsewhere = range(5, 8)
    with db.engine.connect() as writer, writer.begin():
        insert(writer, events=[reconciled_row(orphans[n]["id"], deliveries[n]["id"]) for n in linked_elsewhere])
        with refusals(db.engine) as refused:
            result = reconcile()
        assert (result.linked, result.skipped, result.failed) == (17, 3, 0)
        assert result.status == "ok"
        assert refused == [], "no statement waited for a lock"
    assert links_of(db) == (20, 20)
    assert reconcile().scanned == 0


def test_what_another_rolls_back_is_linked_by_the_next_sweep(db):
    """Its keys are free again, and so are the orphans."""
    deliveries, orphans = rows_of(4)
    insert(db, deliveries, orphans)
    with db.engine.connect() as writer, writer.begin() as transaction:
        insert(writer, events=[reconciled_row(orphans[0]["id"], deliveries[0]["id"])])
        assert reconcile().linked == 3
        transaction.rollback()
    assert reconcile().linked == 1


def test_another_never_waits_for_a_sweeps_claims(db):
    """The trigger skips an orphan that a sweep has locked; the test holds the sweep's claim open."""
    deliveries, orphans = rows_of(5)
    insert(db, deliveries, orphans)
    with db.engine.connect() as sweeping, sweeping.begin():
        sweeping.exec_driver_sql("SELECT event_id FROM mailglass_open_orphans FOR UPDATE")
        with db.engine.begin() as writer:
            writer.exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
            insert(writer, events=[reconciled_row(o["id"], d["id"]) for o, d in zip(orphans, deliveries, strict=True)])
    result = reconcile()
    assert (result.linked, result.remaining) == (0, 0)


def test_a_locked_delivery_is_left_for_the_next_sweep(db):
    """Nobody waits for its holder."""
    deliveries, orphans = rows_of(3)
    insert(db, deliveries, orphans)
    with db.engine.connect() as holder, holder.begin():
        lock = sa.text("SELECT FROM mailglass_deliveries WHERE id = CAST(:id AS uuid) FOR UPDATE")
        holder.execute(lock, {"id": deliveries[1]["id"]})
        with refusals(db.engine) as refused:
            result = reconcile()
        assert (result.linked, result.skipped, result.status) == (2, 1, "ok")
        assert refused == [], "no statement waited for a lock"
    assert reconcile().linked == 1


def test_a_locked_twin_does_not_make_an_ambiguous_id_look_unique(db):
    """Another session has locked one of two deliveries."""
    twins = [delivery_row("one"), delivery_row("one")]
    insert(db, twins, [orphan_row(postmark("one"))])
    with db.engine.connect() as holder, holder.begin():
        lock = sa.text("SELECT FROM mailglass_deliveries WHERE id = CAST(:id AS uuid) FOR UPDATE")
        holder.execute(lock, {"id": twins[0]["id"]})
        assert reconcile().ambiguous == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sweeps_and_another_reconciler_never_deadlock(db, seed):
    """The other reconciler closes the same orphans in random order, several per transaction, and rolls some back."""
    deliveries, orphans = rows_of(300)
    insert(db, deliveries, orphans)
    settings = db.settings.model_copy(update={"batch_size": 40})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    draw = random.Random(seed)
    order = draw.sample(range(300), 300)
    failures = []

    def other_reconciler():
        engine = engines.create_engine(db.settings)
        settle = sa.text(
            "INSERT INTO mailglass_events"
            " (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, inserted_at)"
            " VALUES (CAST(:id AS uuid), :tenant_id, CAST(:delivery_id AS uuid), 'reconciled', now()::timestamp,"
            " :idempotency_key, CAST(:metadata AS jsonb), now()::timestamp)"
            " ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
        )
        with engine.connect() as connection:
            while order:
                chosen = [order.pop() for _ in range(min(len(order), draw.randint(1, 12)))]
                try:
                    with connection.begin() as transaction:
                        for n in chosen:
                            connection.execute(settle, reconciled_row(orphans[n]["id"], deliveries[n]["id"]))
                        if draw.random() < 0.3:
                            transaction.rollback()
                except DBAPIError as error:
                    failures.append(error.orig.sqlstate)

    reconciler = threading.Thread(target=other_reconciler)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    db.wait_until_alone()
    before = db.value(deadlocks)
    reconciler.start()
    results = [reconcile()]
    while reconciler.is_alive():
        results.append(reconcile())
    reconciler.join()
    results.append(reconcile())
    assert failures == []
    db.wait_until_alone()
    assert db.value(deadlocks) == before
    assert {result.status for result in results} == {"ok"}
    assert sum(result.linked for result in results) > 0
    assert links_of(db) == (300, 300)


def test_two_sweeps_at_once_link_each_orphan_once(db):
    deliveries, orphans = rows_of(150)
    more = [orphan_row(postmark(str(n % 150)), type="opened") for n in range(300)]
    insert(db, deliveries, [*orphans, *more])
    settings = db.settings.model_copy(update={"batch_size": 10})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    start = threading.Barrier(2)

    def sweep():
        engine = engines.create_engine(db.settings)
        start.wait()
        return Sweep(databases.Database(engine, settings), Publisher(runtime.get_redis())).run()

    with ThreadPoolExecutor(2) as pool:
        results = [future.result() for future in [pool.submit(sweep), pool.submit(sweep)]]
    results.append(reconcile())
    assert sum(result.linked for result in results) == 450
    assert sum(result.published for result in results) == 900
    assert {result.status for result in results} == {"ok"}
    assert links_of(db) == (450, 450)


def test_a_writer_does_not_wait_while_a_sweep_is_in_its_transaction(db):
    """New orphans arrive while all open ones are locked."""
    deliveries, orphans = rows_of(2)
    insert(db, deliveries, orphans)
    with db.engine.connect() as sweeping, sweeping.begin():
        sweeping.exec_driver_sql("SELECT event_id FROM mailglass_open_orphans FOR UPDATE")
        with db.engine.begin() as writer:
            writer.exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
            insert(writer, events=[orphan_row(postmark("1"), type="opened")])
        assert reconcile().linked == 1
    assert reconcile().linked == 2


def test_nothing_is_left_behind(db):
    """Once sweeps are over, no connection, idle transaction or lock is left (I10)."""
    insert(db, *rows_of(10))
    reconcile()
    db.wait_until_alone()
    assert db.value(WAITING) == 0
