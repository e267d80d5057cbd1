"""A send and a webhook whose transactions overlap: the after-commit action links them without a sweep."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import factories
import mailglass_reconcile
from handling import handle
from mailglass_reconcile import Sent, Settings, broadcast, reconcile, record_send
from meter import before_statements, statements_in_background
from recording import NOW, event, record
from waiting import PATIENCE, settle, wait_until

pytestmark = pytest.mark.slow

ADA = "ada@example.com"
OPEN = "SELECT count(*) FROM mailglass_open_orphans"
TYPES = "SELECT last_event_type, count(*) FROM mailglass_deliveries GROUP BY 1"


def send(connection, *sent):
    """Record a send of the factories' tenant through Postmark, by default to one recipient."""
    sent = sent or (Sent(recipient=ADA, message_id="m-1", occurred_at=NOW),)
    return record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)


def receive(connection):
    """Record the webhook of that message."""
    return record(connection, event())


def publish(recorded):
    """Broadcast, and wait until the background thread is done."""
    broadcast(recorded)
    settle()


def count_link_messages(db):
    """Count the messages about links by kind of channel; each link is published once on each."""
    return Counter(channel.count(":") for channel, payload in db.witness.messages() if "reconciled" in str(payload))


ORDERS = pytest.mark.parametrize("order", [(send, receive), (receive, send)], ids=["send first", "webhook first"])
LAST = pytest.mark.parametrize("last", [0, 1], ids=["the first commits last", "the first commits first"])
LINKED = Counter({2: 1, 3: 1})


@pytest.mark.guard
@ORDERS
@LAST
def test_of_two_connections_the_later_one_links(db, order, last):
    """Whichever begins or commits first, there is one link and one message per channel."""
    with db.engine.connect() as first, db.engine.connect() as second:
        pending = list(zip((first, second), [order[0](first), order[1](second)], strict=True))
        for connection, recorded in pending[:: 1 if last else -1]:
            assert db.count_links() == 0
            connection.commit()
            publish(recorded)
    assert (db.value(OPEN), db.count_links()) == (0, 1)
    assert db.rows(TYPES) == [("delivered", 1)]
    assert count_link_messages(db) == LINKED


@ORDERS
@LAST
def test_of_two_sessions_the_later_one_links_by_itself(db, order, last):
    """The application calls nothing, and `broadcast` has nothing left to do."""
    with Session(db.engine) as first, Session(db.engine) as second:
        recorded = [order[0](first), order[1](second)]
        for session in (first, second)[:: 1 if last else -1]:
            assert db.count_links() == 0
            session.commit()
            settle()
    publish(recorded[0] + recorded[1])
    assert (db.value(OPEN), db.count_links()) == (0, 1)
    assert count_link_messages(db) == LINKED


@ORDERS
@LAST
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_of_two_async_sessions_the_later_one_links_by_itself(db, order, last, driver):
    """The background thread has a connection and an event loop of its own."""

    async def record_in_both():
        engine = create_async_engine(make_url(db.url).set(drivername=f"postgresql+{driver}"), poolclass=sa.NullPool)
        async with AsyncSession(engine) as first, AsyncSession(engine) as second:
            await first.run_sync(order[0])
            await second.run_sync(order[1])
            for session in (first, second)[:: 1 if last else -1]:
                await session.commit()
                await asyncio.to_thread(settle)
        await engine.dispose()

    asyncio.run(record_in_both())
    assert (db.value(OPEN), db.count_links()) == (0, 1)
    assert count_link_messages(db) == LINKED


@ORDERS
def test_a_rollback_of_the_other_transaction_changes_nothing(db, order):
    """The committed one looks again, finds nothing, and stays as it is."""
    with db.engine.connect() as stored, db.engine.connect() as lost:
        recorded = order[0](stored)
        order[1](lost)
        stored.commit()
        publish(recorded)
        lost.rollback()
    assert db.count_links() == 0
    assert db.value(OPEN) == (0 if order[0] is send else 1)
    assert count_link_messages(db) == Counter()
    with db.engine.begin() as connection:
        recorded = order[1](connection)
    publish(recorded)
    assert db.value(OPEN) == 0


@contextmanager
def own_engine(db, **options) -> Iterator[sa.Engine]:
    """Create an engine of the application beside the one that the test reads with."""
    engine = sa.create_engine(make_url(db.url).set(drivername="postgresql+psycopg"), **options)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.mark.parametrize("end", [Session.rollback, Session.close])
def test_a_session_that_does_not_commit_looks_for_nothing(db, end):
    with own_engine(db) as engine, Session(engine) as session, statements_in_background() as sent:
        receive(session)
        end(session)
        session.commit()
        settle()
        assert sent == []
        with session.begin_nested():
            receive(session)
        send(session)
        session.commit()
        settle()
        assert len([statement for statement in sent if "after_commit" in statement]) == 1


def test_an_event_that_has_its_delivery_is_not_looked_for(db):
    """Unmatchable, repeated, and id-less events are not looked for either."""
    factories.delivery(db, "m-1")
    with db.engine.begin() as connection:
        attached = record(connection, event())
        others = record(connection, event(None, provider_event_id="2"), event())
        others += send(connection, Sent(recipient=ADA, message_id=None, type="rejected"))
    assert not attached[0].action.look_ups
    with statements_in_background() as sent:
        publish(others)
    assert sent == []


@pytest.mark.guard
@pytest.mark.parametrize("count", [1, 40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_look_that_finds_nothing_is_one_statement(db, count):
    """Its transaction does not begin with the package's usual settings."""
    sent = [Sent(recipient=ADA, message_id=f"s-{n}") for n in range(count)]
    for writer, arguments in ((send, sent), (record, [event(f"m-{n}") for n in range(count)])):
        with db.engine.begin() as connection:
            recorded = writer(connection, *arguments)
        with statements_in_background() as statements:
            publish(recorded)
        assert len(statements) <= 1


def test_calls_that_commit_while_the_thread_is_busy_are_asked_about_together(db):
    """A hundred calls cost two statements, the first call's and one for all others."""
    is_asked, may_answer = Event(), Event()

    def delay(_connection, statement, _parameters):
        if "after_commit" in statement and not is_asked.is_set():
            is_asked.set()
            assert may_answer.wait(PATIENCE)

    with before_statements(sa.Engine, delay), statements_in_background() as statements:
        for number in range(100):
            with Session(db.engine) as session:
                record(session, event(f"m-{number}", provider_event_id=str(number)))
                session.commit()
            if not number:
                assert is_asked.wait(PATIENCE)
        may_answer.set()
    assert len(statements) <= 2


def test_a_pool_of_one_connection_is_enough(db):
    """The thread has its own connection, so it does not wait for the caller's pool."""
    with own_engine(db, pool_size=1, max_overflow=0, pool_timeout=3) as engine, db.engine.connect() as sending:
        recorded = send(sending)
        with Session(engine) as session:
            receive(session)
            sending.commit()
            session.commit()
            session.connection()
            settle()
    assert recorded[0].linked == 0
    assert db.count_links() == 1


@contextmanager
def locked_row(db, table: str) -> Iterator[sa.Connection]:
    """Lock the only row of a table in another session."""
    with db.engine.connect() as holder:
        holder.exec_driver_sql(f"SELECT FROM {table} FOR UPDATE")
        yield holder


def store_overlapping(db):
    """Store an orphan and its delivery that have not seen each other; return what the later one has to broadcast."""
    with db.engine.connect() as sending, db.engine.connect() as receiving:
        send(sending)
        recorded = receive(receiving)
        sending.commit()
        receiving.commit()
    return recorded


def test_what_overlapped_is_linked_whatever_isolation_is_the_default(db):
    """SERIALIZABLE would refuse one of two transactions, which a trigger simulates."""
    recorded = store_overlapping(db)
    for sql in (
        "CREATE FUNCTION contend() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('transaction_isolation') <> 'read committed' THEN RAISE SQLSTATE '40001'; END IF;"
        " RETURN NULL; END $$",
        "CREATE TRIGGER contend AFTER INSERT ON mailglass_events FOR EACH STATEMENT EXECUTE FUNCTION contend()",
    ):
        db.run(sql)
    recorded[0].action.engine = db.engine.execution_options(isolation_level="SERIALIZABLE")
    publish(recorded)
    assert db.count_links() == 1


EITHER_TABLE = pytest.mark.parametrize("table", ["mailglass_deliveries", "mailglass_open_orphans"])


@EITHER_TABLE
def test_a_locked_row_is_retried_until_it_is_free(db, table):
    """The holder may be about to commit; nobody waits for its lock."""
    recorded = store_overlapping(db)
    with locked_row(db, table) as holder, statements_in_background() as statements:
        broadcast(recorded)
        wait_until(lambda: sum("_link_v1" in statement for statement in statements) >= 2)
        assert db.count_links() == 0
        holder.rollback()
        settle()
    assert db.count_links() == 1
    assert count_link_messages(db) == LINKED


@EITHER_TABLE
def test_a_row_that_stays_locked_is_left_to_the_sweep(db, table):
    """The thread gives up after ten attempts."""
    recorded = store_overlapping(db)
    with locked_row(db, table), statements_in_background() as statements:
        publish(recorded)
    assert 2 <= sum("_link_v1" in statement for statement in statements) <= 10
    assert db.count_links() == 0
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert reconcile().linked == 1


def test_one_call_whose_event_is_held_does_not_delay_the_broadcasts_of_others(db):
    """The thread retries it later, and does the rest meanwhile."""
    factories.delivery(db, "m-2")
    recorded = store_overlapping(db)
    with locked_row(db, "mailglass_open_orphans") as holder, statements_in_background() as statements:
        broadcast(recorded)
        wait_until(lambda: any("_link_v1" in statement for statement in statements))
        with Session(db.engine) as session:
            record(session, event("m-2", provider_event_id="2"))
            session.commit()
        heard = []
        wait_until(lambda: heard.extend(db.witness.messages(settled=False)) or len(heard) == 2)
        assert db.count_links() == 0
        holder.rollback()


def redirect_to_closed_port(_dialect, _record, _arguments, parameters):
    """Redirect a new connection to a port where nothing listens."""
    parameters.update(host="127.0.0.1", port=1)


def test_an_engine_that_cannot_connect_any_more_costs_the_step_and_a_line_in_the_log(db, caplog):
    """The call itself has committed."""
    factories.delivery(db, "m-2")
    with own_engine(db, poolclass=sa.NullPool) as engine:
        with db.engine.connect() as sending, engine.begin() as receiving:
            send(sending)
            recorded = record(receiving, event(), event("m-2"))
            sending.commit()
        attempts = []
        sa.event.listen(engine, "do_connect", lambda *_arguments: attempts.append(1))
        sa.event.listen(engine, "do_connect", redirect_to_closed_port)
        for _ in range(3):
            publish(recorded)
        assert len(attempts) == 1, "it is left alone for five seconds"
    assert db.witness.messages() == []
    (line,) = [entry.getMessage() for entry in caplog.records if "cannot broadcast" in entry.getMessage()]
    assert "MAILGLASS_DATABASE_URL" in line
    assert "\n" not in line


def test_the_engine_of_the_call_is_asked_not_that_of_the_settings(db):
    """`MAILGLASS_DATABASE_URL` is not read."""
    factories.delivery(db, "m-1")
    with db.engine.begin() as connection:
        recorded = record(connection, event())
    mailglass_reconcile.configure(settings=Settings(database_url=None, redis_url=db.settings.redis_url))
    publish(recorded)
    assert len(db.witness.messages()) == 2


def test_an_orphan_that_the_database_refuses_to_link_costs_a_line_in_the_log(db, caplog):
    """The action ends, and the orphan stays open."""
    recorded = store_overlapping(db)
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK (type <> 'reconciled')")
    publish(recorded)
    db.run("ALTER TABLE mailglass_events DROP CONSTRAINT odd")
    assert "23514" in caplog.text
    assert db.value(OPEN) == 1


def test_a_refused_orphan_does_not_hold_up_those_of_other_calls(db, caplog):
    """The calls of one look-up are halved until the refused orphan's stands alone."""
    with db.engine.connect() as sending, db.engine.connect() as receiving:
        sent = [send(sending, Sent(recipient=ADA, message_id=f"m-{n}", occurred_at=NOW)) for n in range(4)]
        events = [record(receiving, event(f"m-{n}", provider_event_id=str(n)))[0] for n in range(4)]
        receiving.commit()
        sending.commit()
    refused = f"idempotency_key <> 'reconciled:{events[1].event_id}'"
    db.run(f"ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK ({refused})")
    publish([delivery for deliveries in sent for delivery in deliveries])
    db.run("ALTER TABLE mailglass_events DROP CONSTRAINT odd")
    assert caplog.text.count("23514") == 1
    assert (db.value(OPEN), db.count_links()) == (1, 3)


@pytest.mark.guard
def test_handlers_run_on_what_an_after_commit_action_links(db):
    """Their job is written with the link."""
    handle(db, ("suppress", "delivered"))
    recorded = store_overlapping(db)
    outbox = "SELECT count(*) FROM mailglass_handler_outbox"
    assert db.value(outbox) == 0
    publish(recorded)
    assert (db.value(outbox), db.count_links()) == (1, 1)


def test_recipients_of_one_id_that_overlap_each_get_their_own_event(db):
    people = ["a@example.com", "B <b@example.com>", "c@example.com"]
    with db.engine.connect() as first, db.engine.connect() as second, db.engine.connect() as receiving:
        told_of = send(first, *(Sent(recipient=person, message_id="m-1") for person in people[:2]))
        told_of += send(second, Sent(recipient=people[2], message_id="m-2"))
        events = [event(recipient=people[0]), event(recipient="B@Example.com", provider_event_id="2")]
        events += [event("m-2", "opened", recipient="<C@example.com>", provider_event_id="3"), event("m-3")]
        recorded = record(receiving, *events)
        for connection in (receiving, first, second):
            connection.commit()
        publish(recorded + told_of)
    rows = db.rows("SELECT recipient, last_event_type FROM mailglass_deliveries ORDER BY 1")
    assert [tuple(row) for row in rows] == [
        ("a@example.com", "delivered"),
        ("b@example.com", "delivered"),
        ("c@example.com", "opened"),
    ]
    assert (db.value(OPEN), db.count_links()) == (1, 3)


def test_more_than_a_batch_is_linked_in_several(db):
    """This holds for any number of ids and of events of one id."""
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"batch_size": 5}))
    with db.engine.connect() as sending, db.engine.connect() as receiving:
        sent = send(sending, *(Sent(recipient=ADA, message_id=f"m-{n}") for n in range(12)))
        record(receiving, *(event(f"m-{n // 2}", provider_event_id=str(n)) for n in range(24)))
        receiving.commit()
        sending.commit()
    publish(sent)
    assert (db.value(OPEN), db.count_links()) == (0, 24)


def test_a_hundred_and_fifty_pairs_that_overlap_at_random_are_all_linked(db):
    """Two threads record a send and its webhook in each pair, with a few other statements in between."""
    pairs, barrier, chance = 150, Barrier(2), random.Random(7)
    pauses = [[(chance.randrange(4), chance.randrange(4)) for _ in range(pairs)] for _ in range(2)]

    def one_side(side):
        engine = sa.create_engine(make_url(db.url).set(drivername="postgresql+psycopg"))
        for n, (before, after) in enumerate(pauses[side]):
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
                barrier.wait(timeout=PATIENCE)
                for _ in range(before):
                    connection.exec_driver_sql("SELECT 1")
                argument = (
                    event(f"m-{n}", provider_event_id=str(n)) if side else Sent(recipient=ADA, message_id=f"m-{n}")
                )
                recorded = (record if side else send)(connection, argument)
                for _ in range(after):
                    connection.exec_driver_sql("SELECT 1")
                connection.commit()
            publish(recorded)
        engine.dispose()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one_side, range(2))) == [None, None]
    assert db.value(OPEN) == 0
    assert db.rows(TYPES) == [("delivered", pairs)]
    reconciled = db.count_links()
    assert 20 < reconciled <= pairs
    assert count_link_messages(db)[2] == reconciled
