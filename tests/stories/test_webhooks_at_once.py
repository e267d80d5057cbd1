"""Webhooks that are recorded at the same time lock in one order, do not deadlock, and never restore an older state."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import factories
from mailglass_reconcile.record.webhooks import idempotency_key
from mailglass_reconcile.rules.event_types import PROVIDER_TYPES
from recording import LEDGER, NOW, WAITING, event, record, record_together
from waiting import PATIENCE, wait_until

EARLIER = NOW - dt.timedelta(hours=1)


@pytest.mark.slow
def test_webhooks_of_the_same_deliveries_in_opposite_order_do_not_deadlock(db):
    """Twenty rounds have two webhooks each, of twenty deliveries."""
    ids = [f"m-{n}" for n in range(20)]
    factories.insert(db, deliveries=[factories.delivery_row(id_) for id_ in ids])
    for turn in range(20):
        opened = [event(id_, "opened", provider_event_id=f"a-{turn}-{id_}") for id_ in ids]
        clicked = [event(id_, "clicked", provider_event_id=f"b-{turn}-{id_}") for id_ in reversed(ids)]
        for outcome in record_together(db, record, opened, clicked):
            assert all(delivery.delivery_id for delivery in outcome)
    assert db.value(LEDGER) == 20 * 2 * len(ids)


@pytest.mark.slow
def test_a_retry_in_opposite_order_beside_the_first_does_not_deadlock(db):
    """One of them records each event, whether it is an orphan or is attached."""
    ids = [f"m-{n}" for n in range(20)]
    factories.insert(db, deliveries=[factories.delivery_row(id_) for id_ in ids[:10]])
    for turn in range(20):
        events = [event(id_, provider_event_id=f"{turn}-{id_}") for id_ in ids]
        first, retry = record_together(db, record, events, events[::-1])
        assert all((a.event_id is None) != (b.event_id is None) for a, b in zip(first, retry[::-1], strict=True))
    assert db.value(LEDGER) == 20 * len(ids)


def test_events_are_inserted_in_the_order_of_their_keys(db):
    """While a call waits for the first of two rows, the second is not locked, whatever the order of the arguments."""
    first, second = sorted(
        (event(f"m-{n}", provider_event_id=f"evt-{n}") for n in range(2)),
        key=lambda e: idempotency_key(factories.TENANT, "postmark", e.provider_event_id, e.type, 0),
    )
    with ThreadPoolExecutor(1) as threads, db.engine.begin() as holder:  # closed first, whatever fails
        record(holder, first)
        waiting = threads.submit(record_together, db, record, [second, first])
        wait_until(lambda: db.value(WAITING) == 1)
        with db.engine.begin() as writer:
            writer.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            record(writer, second)
        holder.rollback()
        assert [recorded.event_id is None for recorded in waiting.result(timeout=PATIENCE)[0]] == [True, False]


def test_deliveries_are_locked_in_the_order_of_their_ids(db):
    """While a call waits for the first of two rows, it has not locked the second."""
    rows = sorted((factories.delivery_row(f"m-{n}") for n in range(2)), key=lambda row: row["id"])
    factories.insert(db, deliveries=rows)
    with ThreadPoolExecutor(1) as threads, db.engine.begin() as holder:  # closed first, whatever fails
        holder.execute(sa.text("SELECT FROM mailglass_deliveries WHERE id = :id FOR UPDATE"), {"id": rows[0]["id"]})
        events = [event(row["message_id"], provider_event_id=row["id"]) for row in reversed(rows)]
        waiting = threads.submit(record_together, db, record, events)
        wait_until(lambda: db.value(WAITING) == 1)
        free = "SELECT count(*) FROM (SELECT FROM mailglass_deliveries FOR UPDATE SKIP LOCKED) AS d"
        assert db.value(free) == 1
        holder.rollback()
        assert len(waiting.result(timeout=PATIENCE)[0]) == 2


def test_an_event_is_compared_with_what_another_transaction_committed_meanwhile(db):
    """The webhook waits, and its older reports do not change the delivery."""
    factories.delivery(db, "m-1")
    with ThreadPoolExecutor(1) as threads, db.engine.connect() as holder:
        record(holder, event("m-1", "clicked", provider_event_id="new"))
        older = [event("m-1", "opened", provider_event_id=id_, occurred_at=EARLIER) for id_ in ("one", "two")]
        waiting = threads.submit(record_together, db, record, older)
        wait_until(lambda: db.value(WAITING) == 1)
        holder.commit()
        assert all(delivery.delivery_id for delivery in waiting.result(timeout=PATIENCE)[0])
    assert db.value("SELECT last_event_type FROM mailglass_deliveries") == "clicked"


def test_an_event_whose_delivery_is_deleted_meanwhile_is_kept_as_an_orphan(db):
    """The webhook waits for the transaction that deletes it."""
    factories.delivery(db, "m-1")
    with ThreadPoolExecutor(1) as threads, db.engine.connect() as holder:
        holder.execute(sa.text("DELETE FROM mailglass_deliveries"))
        waiting = threads.submit(record_together, db, record, [event("m-1")])
        wait_until(lambda: db.value(WAITING) == 1)
        holder.commit()
        ((recorded,),) = waiting.result(timeout=PATIENCE)
    assert (recorded.event_id is None, recorded.delivery_id) == (False, None)
    assert db.rows("SELECT state FROM mailglass_open_orphans") == [(None,)], "it matched, but does so no longer"


def test_events_of_one_delivery_move_its_version_once(db):
    """A webhook is projected in one statement, which the row's version shows."""
    factories.delivery(db, "m-1")
    with db.engine.begin() as connection:
        record(connection, *(event("m-1", kind, provider_event_id=kind) for kind in PROVIDER_TYPES))
    row = db.rows("SELECT last_event_type, lock_version FROM mailglass_deliveries")[0]
    assert tuple(row) == ("complained", 2)
