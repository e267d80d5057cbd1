"""Retention while others write, in two prunes at once, and against each writer: per delivery all or none."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from backdating import EVENTS_BY_DELIVERY, batch, check, days_ago, fill, prune
from factories import delivery, orphan
from mailglass_reconcile import InvalidEventError, Sent, WebhookEvent, append, link, record_send, record_webhook
from mailglass_reconcile.errors import ConfigurationError
from roles import temporary_role
from waiting import wait_until

WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
LEDGER = "SELECT type FROM mailglass_events ORDER BY type"


@pytest.mark.slow
def test_two_prunes_while_webhooks_come(db, set_limits):
    """Late webhooks of old deliveries are attached, or are orphans because the delivery has been deleted."""
    set_limits(batch_rows=20, retention_rows=20)
    filled = fill(db, 150)
    messages = list(filled.values())
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
        assert [future.result().failures for future in pruned] == [{}, {}]
        writing.result()
    check(db, filled)
    last = prune(db, 30, 30)
    deleted = [*(future.result() for future in pruned), last]
    old = {row.id for row in db.rows(EVENTS_BY_DELIVERY) if row.old}
    assert sum(item.events for item in deleted) == 3 * (len(filled) - len(old))
    assert db.value("SELECT count(*) FROM mailglass_events WHERE type = 'clicked'") == len(filled)
    deleted_deliveries = len(filled) - db.value("SELECT count(*) FROM mailglass_deliveries")
    assert sum(result.deliveries for result in deleted) == deleted_deliveries
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == deleted_deliveries


def test_a_batch_whose_connection_is_lost_is_rolled_back_and_retried(db):
    filled = fill(db, 5)
    with ThreadPoolExecutor(1) as pool, db.engine.connect() as holder:
        holder.exec_driver_sql("SELECT FROM mailglass_events ORDER BY id DESC LIMIT 1 FOR UPDATE")
        pruned = pool.submit(prune, db)
        wait_until(db.find_waiting)
        (waiting,) = db.find_waiting()
        assert db.value("SELECT pg_terminate_backend(:pid)", pid=waiting)
        check(db, filled)
        assert db.value("SELECT count(*) FROM mailglass_events") == 15
        holder.rollback()
        result = pruned.result()
    assert (result.events, result.failures) == (15, {})


@contextmanager
def write_behind_batch(db, name: str, write: Callable[..., Any], *arguments: str) -> Iterator[Future[Any]]:
    """Delete one row by a batch of retention, start *write*, and commit the batch once *write* waits."""
    with ThreadPoolExecutor(1) as pool, db.engine.connect() as pruning:
        assert pruning.exec_driver_sql(f"SELECT deleted FROM {batch(name, 30)}").scalar_one() == 1  # noqa: S608

        def writing() -> Any:
            with db.engine.begin() as connection:
                return write(connection, *arguments)

        written = pool.submit(writing)
        wait_until(lambda: written.done() or db.rows(WAITING))
        assert not written.done()
        pruning.commit()
        yield written


def link_manually(connection, event_id: str, delivery_id: str) -> Any:
    """Link an event."""
    return link(connection, event_id, delivery_id, reason="by hand")


def append_event(connection, delivery_id: str) -> Any:
    """Append an event for a delivery."""
    return append(connection, tenant_id="acme", type="opened", occurred_at=datetime.now(UTC), delivery_id=delivery_id)


def record_opened(connection, delivery_id: str, message_id: str = "m-1") -> Any:
    """Record a webhook for a message; return the delivery to which it was attached."""
    event = WebhookEvent(type="opened", occurred_at=datetime.now(UTC), provider_event_id="1", message_id=message_id)
    [recorded] = record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
    return recorded.delivery_id


def record_again(connection) -> str:
    """Record the send of `m-1` again, and return its delivery."""
    sent = [Sent(recipient="ada@example.com", message_id="m-1", occurred_at=datetime(2026, 1, 2, tzinfo=UTC))]
    return str(record_send(connection, tenant_id="acme", provider="postmark", sent=sent)[0].delivery_id)


def test_an_expired_event_that_is_linked_manually_is_not_deleted(db, caplog):
    """This holds before the link commits too, and a rollback leaves it to the next prune."""
    event, to = orphan(db, {}, age_seconds=40 * 86_400), delivery(db)
    prune(db, None)
    for commits in (False, True):
        with db.engine.connect() as linking:
            link_manually(linking, event, to)
            assert prune(db).events == 0
            assert "prune: 1 expired event is left to the next prune: another session is linking some" in caplog.text
            (linking.commit if commits else linking.rollback)()
    assert prune(db).events == 0
    assert [row.type for row in db.rows(LEDGER)] == ["delivered", "reconciled"]


HOLDING = (
    "SELECT mailglass_reconcile_hold_expired_v1()",
    "LOCK TABLE mailglass_reconcile_retention IN ROW SHARE MODE",
    "SELECT FROM mailglass_reconcile_retention FOR SHARE",
)


def test_a_role_that_may_only_connect_keeps_nothing_from_retention(db, admin):
    """No lock that such a role can take counts, and it may not take the one that does."""
    orphan(db, {}, age_seconds=40 * 86_400)
    prune(db, None)
    with temporary_role(admin) as role, db.engine.connect() as stranger:
        stranger.exec_driver_sql(f"SET ROLE {role}")
        stranger.exec_driver_sql("SELECT pg_advisory_lock(hashtext('mailglass_reconcile expired'))")
        for statement in HOLDING:
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), stranger.begin_nested():
                stranger.exec_driver_sql(statement)
        assert prune(db).events == 1
        stranger.exec_driver_sql("RESET ROLE; SELECT pg_advisory_unlock_all()")


def test_an_expired_event_that_is_being_deleted_is_not_linked(db):
    """The link waits for the batch, and its error says that the event has been deleted."""
    event, to = orphan(db, {}, age_seconds=40 * 86_400), delivery(db)
    prune(db, None)
    with (
        write_behind_batch(db, "events", link_manually, event, to) as linked,
        pytest.raises(InvalidEventError, match=f"there is no event {event}"),
    ):
        linked.result()
    assert db.rows("SELECT FROM mailglass_events UNION ALL SELECT FROM mailglass_open_orphans") == []


def test_an_expired_event_is_not_linked_in_a_snapshot_that_may_be_older_than_its_deletion(db):
    """An open orphan may be linked, because no prune deletes it."""
    expired, event, to = orphan(db, {}, age_seconds=40 * 86_400), orphan(db, {}), delivery(db)
    prune(db, None)
    with db.engine.connect().execution_options(isolation_level="REPEATABLE READ") as linking:
        with pytest.raises(ConfigurationError, match=f"event {expired} has expired.*READ COMMITTED"):
            link_manually(linking, expired, to)
        link_manually(linking, event, to)
        linking.commit()


@pytest.mark.parametrize("write", [append_event, record_opened])
def test_a_delivery_with_an_event_being_written_is_not_deleted(db, write):
    """No event is left without its delivery, although `append` projects nothing."""
    db.broken.add("I2")
    with days_ago(db, 40):
        old = delivery(db, "m-1")
    with db.engine.begin() as writing:
        write(writing, old)
        assert prune(db, 30, 30).deliveries == 0
    assert prune(db, 30, 30).deliveries == 0
    assert db.value("SELECT delivery_id::text FROM mailglass_events") == old


@pytest.mark.parametrize("write", [append_event, record_opened])
def test_a_delivery_with_an_event_being_written_keeps_its_old_events(db, write):
    """Retention deletes all events of a delivery or none; it does not wait for the writer."""
    db.broken.add("I2")
    [old] = fill(db, 1)
    with db.engine.begin() as writing:
        write(writing, old, *(["m-0"] if write is record_opened else []))
        assert prune(db).events == 0
    assert prune(db).events == 0
    assert [row.type for row in db.rows(LEDGER)] == 4 * ["opened"]


def test_an_append_for_a_delivery_that_is_being_deleted_says_that_it_is_gone(db):
    """It waits for the batch."""
    with days_ago(db, 40):
        old = delivery(db, "m-1")
    with (
        write_behind_batch(db, "deliveries", append_event, old) as result,
        pytest.raises(InvalidEventError, match=f"there is no delivery {old} of this tenant"),
    ):
        result.result()
    assert db.rows(LEDGER) == []


def test_a_webhook_for_a_delivery_that_is_being_deleted_becomes_an_orphan(db):
    """It waits for the batch."""
    with days_ago(db, 40):
        old = delivery(db, "m-1")
    with write_behind_batch(db, "deliveries", record_opened, old) as result:
        assert result.result() is None
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 1


def test_a_send_that_is_repeated_while_its_event_is_being_deleted_is_new(db):
    """It waits for the batch, which has locked its key."""
    with days_ago(db, 40), db.engine.begin() as connection:
        first = record_again(connection)
    with write_behind_batch(db, "events", record_again) as result:
        second = result.result()
    assert second != first
    assert prune(db, 30, 30).deliveries == 1
    assert db.value("SELECT delivery_id::text FROM mailglass_events") == second


def test_append_requires_a_delivery_of_the_tenant(db):
    """Nothing is written."""
    foreign = delivery(db, tenant_id="other")
    for id_ in (foreign, "00000000-0000-7000-8000-000000000000"):
        with db.engine.begin() as connection, pytest.raises(InvalidEventError, match=f"there is no delivery {id_}"):
            append_event(connection, id_)
    assert db.rows(LEDGER) == []
