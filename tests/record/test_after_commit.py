"""After-commit actions: the database is asked what was committed, and only that is broadcast."""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import factories
from drivers import Driver, on_drivers
from faults import proxy, servers
from mailglass_reconcile import (
    ConfigurationError,
    Sent,
    broadcast,
    broadcast_async,
    erase,
    flush,
    reconcile,
    record_send,
)
from mailglass_reconcile.record import after_commit
from mailglass_reconcile.rules.log_throttle import LogThrottle
from meter import before_statements, round_trips, statements_in_background
from recording import LEDGER, NOW, STORE_QUERIES, event, record
from waiting import PATIENCE, settle, wait_until

COMMIT = b"COMMIT\0"


@pytest.fixture(autouse=True)
def deliveries(db):
    """Two deliveries, `m-1` and `m-2`."""
    factories.insert(db, deliveries=[factories.delivery_row(f"m-{n}") for n in (1, 2)])


def read_published_message_ids(db):
    """Return the message ids of the deliveries that were published since the last call."""
    ids = {str(row[0]): row[1] for row in db.rows("SELECT id, provider_message_id FROM mailglass_deliveries")}
    return sorted(ids[payload["delivery_id"]] for _, payload in db.witness.messages())


def lines(caplog):
    """Return the log lines about after-commit actions that did not run."""
    result = [
        log_record.getMessage()
        for log_record in caplog.records
        if log_record.levelno >= logging.WARNING and not log_record.exc_info
    ]
    assert not [line for line in result if "\n" in line or "@" in line]
    return [line for line in result if "cannot broadcast" in line]


def roll_back_in_lower_case(session):
    """Record under a savepoint, and roll back to it."""
    connection = session if isinstance(session, sa.Connection) else session.connection()
    connection.exec_driver_sql("savepoint own")
    record(session, event("m-2", provider_event_id="2"))
    connection.exec_driver_sql("rollback to savepoint own")


def roll_back_without_the_word(session):
    """Record under a savepoint, and roll back to it without the word SAVEPOINT."""
    connection = session if isinstance(session, sa.Connection) else session.connection()
    connection.exec_driver_sql("SAVEPOINT own")
    record(session, event("m-2", provider_event_id="2"))
    connection.exec_driver_sql("ROLLBACK TO own")


UNDONE = (roll_back_in_lower_case, roll_back_without_the_word)


@on_drivers("undone", UNDONE, UNDONE[:1])
def test_what_a_savepoint_has_undone_is_not_broadcast(db, driver, undone):
    """A Session and `broadcast` notice it, however ROLLBACK TO is spelled."""

    def work(session):
        recorded = record(session, event("m-1"))
        undone(session)
        return recorded

    driver.run_session(work)
    wait_until(
        lambda: (len(ids := read_published_message_ids(db)) == 2 and ids == ["m-1", "m-1"]) or pytest.fail(str(ids))
    )


@pytest.mark.parametrize("undone", UNDONE)
def test_broadcast_publishes_nothing_that_a_savepoint_has_undone(db, undone):
    """Nor does it broadcast what the caller has rolled back."""
    with db.engine.connect() as connection:
        recorded = record(connection, event("m-1"))
        undone(connection)
        recorded += record(connection, event("m-1", "opened"))
        connection.rollback()
    broadcast(recorded)
    assert read_published_message_ids(db) == []


def test_what_psycopgs_own_transaction_has_undone_is_not_broadcast(db):
    """Psycopg's transaction is a savepoint that SQLAlchemy does not see."""
    with Session(db.engine) as session:
        record(session, event("m-1"))
        with session.connection().connection.driver_connection.transaction() as own:
            record(session, event("m-2", provider_event_id="2"))
            raise psycopg.Rollback(own)
        session.commit()
    assert read_published_message_ids(db) == ["m-1", "m-1"]


def test_a_commit_that_postgres_answers_with_rollback_tells_nothing(db, driver):
    """An error was swallowed before it, and no driver reports the rollback."""

    def work(session):
        record(session, event("m-1"))
        with suppress(DBAPIError):
            session.execute(sa.text("SELECT 1/0"))

    driver.run_session(work)
    assert db.value(LEDGER) == 0
    assert read_published_message_ids(db) == []


@on_drivers("fault", ["before", "after"], ["after"])
def test_a_commit_whose_answer_is_lost_tells_nothing_until_the_caller_asks(db, driver, fault):
    """The Session raises; once the server is back, `broadcast` publishes what was committed."""
    recorded = []
    with proxy.postgres_proxy(db.url) as (between, url):
        through = Driver(make_url(url).set(drivername=driver.url.drivername))
        if driver.url.drivername.endswith("asyncpg"):
            through = Driver(through.url.set(query={}))

        def work(session):
            recorded.extend(record(session, event("m-1")))
            between.arm(b"COMMIT", fault, at=1)

        with pytest.raises(Exception, match=r"."):
            through.run_session(work)
        assert between.dropped == 1
    committed = fault == "after"
    assert (db.value(LEDGER), read_published_message_ids(db)) == (int(committed), [])
    recorded[0].action.engine = db.engine
    broadcast(recorded)
    assert read_published_message_ids(db) == ["m-1", "m-1"] * committed
    broadcast(recorded)
    assert read_published_message_ids(db) == []


MODES = ["conditional_savepoint", "rollback_only", "create_savepoint"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_session_that_joined_a_transaction_leaves_the_step_to_broadcast(db, mode, commits):
    """It does not know when the caller commits; `broadcast` also links what overlapped."""
    with db.engine.connect() as overlapping, db.engine.connect() as connection:
        outer = connection.begin()
        record(overlapping, event("m-3", "opened"))
        with Session(connection, join_transaction_mode=mode) as session:
            recorded = record(session, event("m-1"))
            recorded += record_one_send(session, "m-3")
            session.commit()
        assert not connection.dispatch.before_cursor_execute  # no listener of ours stays on it
        overlapping.commit()
        assert read_published_message_ids(db) == []
        if commits:
            outer.commit()
        else:
            outer.rollback()
    broadcast(recorded)
    assert read_published_message_ids(db) == (["m-1", "m-1", "m-3", "m-3"] if commits else [])
    assert db.count_links() == int(commits)


def test_a_session_that_controls_the_transaction_takes_the_step_itself(db):
    """Its commit is the connection's, also if the connection was in no transaction."""
    with db.engine.connect() as connection:
        connection.begin()
        with Session(connection, join_transaction_mode="control_fully") as session:
            recorded = record(session, event("m-1"))
            session.commit()
        assert read_published_message_ids(db) == ["m-1", "m-1"]
        with Session(connection) as session:
            recorded += record(session, event("m-2", provider_event_id="2"))
            session.commit()
        assert read_published_message_ids(db) == ["m-2", "m-2"]
        assert not connection.in_transaction()
    broadcast(recorded)
    assert read_published_message_ids(db) == []


def record_one_send(connection, message_id):
    """Record a send of the factories' tenant."""
    accepted = Sent(recipient="ada@example.com", message_id=message_id, occurred_at=NOW)
    return record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=[accepted])


ASYNCHRONOUS = pytest.mark.parametrize("name", ["psycopg_async", "asyncpg"])


@ASYNCHRONOUS
@pytest.mark.parametrize("pool", [{"poolclass": sa.NullPool}, {"pool_size": 1, "max_overflow": 0}], ids=["none", "one"])
def test_broadcast_async_after_an_async_connections_commit(db, name, pool):
    async def main():
        engine = create_async_engine(make_url(db.url).set(drivername=f"postgresql+{name}"), **pool)
        with db.engine.connect() as overlapping:
            record(overlapping, event("m-3", "opened"))
            async with engine.begin() as connection:
                recorded = await connection.run_sync(record, event("m-1"))
                recorded += await connection.run_sync(record_one_send, "m-3")
            overlapping.commit()
        assert read_published_message_ids(db) == []
        await broadcast_async(recorded)
        await engine.dispose()

    asyncio.run(main())
    observed = []
    wait_until(
        lambda: observed.extend(read_published_message_ids(db)) or sorted(observed) == ["m-1", "m-1", "m-3", "m-3"]
    )
    assert db.count_links() == 1


@ASYNCHRONOUS
def test_broadcast_async_after_an_async_session_that_joined(db, name):
    async def main():
        engine = create_async_engine(make_url(db.url).set(drivername=f"postgresql+{name}"), poolclass=sa.NullPool)
        async with engine.begin() as connection:
            async with AsyncSession(connection) as session:
                recorded = await session.run_sync(record, event("m-1"))
                await session.commit()
            assert isinstance(connection, AsyncConnection)
        await broadcast_async(recorded)
        await engine.dispose()

    asyncio.run(main())
    wait_until(lambda: read_published_message_ids(db) == ["m-1", "m-1"])


@ASYNCHRONOUS
def test_broadcast_after_an_async_connection_works_in_any_thread(db, name):
    """No event loop has to run, because the background thread has a loop of its own."""

    async def main():
        engine = create_async_engine(make_url(db.url).set(drivername=f"postgresql+{name}"), poolclass=sa.NullPool)
        async with engine.begin() as connection:
            recorded = await connection.run_sync(record, event("m-1"))
        await asyncio.to_thread(broadcast, recorded)
        await engine.dispose()

    asyncio.run(main())
    assert read_published_message_ids(db) == ["m-1", "m-1"]


@contextmanager
def engine_of(db, dialect="psycopg", **options) -> Iterator[sa.Engine]:
    """Create an application's engine."""
    engine = sa.create_engine(make_url(db.url).set(drivername=f"postgresql+{dialect}"), **options)
    try:
        yield engine
    finally:
        engine.dispose()


POOLS = [{"poolclass": sa.NullPool}, {"pool_size": 1, "max_overflow": 0}, {"poolclass": sa.StaticPool}]


@pytest.mark.parametrize("pool", POOLS, ids=["none", "one connection", "static"])
def test_the_callers_pool_is_not_used_and_may_be_exhausted(db, pool):
    """The caller still holds its only connection, and gets no second one."""
    with engine_of(db, **pool) as engine, engine.connect() as connection:
        recorded = record(connection, event("m-1"))
        connection.commit()
        checked_out = []
        sa.event.listen(engine, "checkout", lambda *_arguments: checked_out.append(1))
        broadcast(recorded)
        assert read_published_message_ids(db) == ["m-1", "m-1"]
        assert len(checked_out) == 1, "of the thread's own pool, which has the listeners of the caller's"


SESSIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def test_a_flush_closes_the_connection_of_the_thread(db, driver):
    """DROP DATABASE is not blocked."""
    driver.run_session(lambda session: record(session, event("m-1")))
    wait_until(flush)
    wait_until(lambda: db.value(SESSIONS) == 0, 5)


def test_a_connection_without_work_is_closed_after_a_second(db):
    """No flush is needed."""
    with engine_of(db, poolclass=sa.NullPool) as engine:
        with Session(engine) as session:
            record(session, event("m-1"))
            connected = []
            sa.event.listen(engine, "connect", lambda *_arguments: connected.append(1))
            session.commit()
        wait_until(lambda: connected and db.value(SESSIONS) == 0)


def test_the_thread_asks_in_read_committed_whatever_the_default_is(db):
    """An application may set another isolation level for its engine or its database."""
    levels = []

    def note(connection, statement, _parameters):
        if threading.current_thread().name == "mailglass after commit" and "after_commit" in statement:
            levels.append(connection.connection.dbapi_connection.isolation_level)

    with before_statements(sa.Engine, note):
        with engine_of(db, isolation_level="SERIALIZABLE") as engine, Session(engine) as session:
            record(session, event("m-1"))
            session.commit()
        assert read_published_message_ids(db) == ["m-1", "m-1"]
    assert levels == [psycopg.IsolationLevel.READ_COMMITTED]


def test_a_connection_that_was_lost_meanwhile_is_replaced(db):
    """The server restarts less than a second after the last call."""
    with engine_of(db, poolclass=sa.NullPool) as engine:
        connected = []
        sa.event.listen(engine, "connect", lambda driver, _record: connected.append(driver.info.backend_pid))
        for number in range(2):
            with Session(engine) as session:
                record(session, event("m-1", provider_event_id=number))
                session.commit()
            wait_until(lambda: len(db.witness.messages(settled=False)) == 2)
            if not number:
                db.run("SELECT pg_terminate_backend(:pid, 10000)", pid=connected[-1])
    db.witness.early.clear()


class OddError(Exception):
    """An error that an application's listener may raise."""


def odd(*_arguments, **_options):
    """Raise an OddError with an address."""
    raise OddError("ada@example.com")


def test_whatever_a_listener_raises_is_one_line_in_the_log(db, caplog):
    """The line has its class and place, because its message may contain an address; this holds for a Session too."""
    with engine_of(db, poolclass=sa.NullPool) as engine:
        with engine.begin() as connection:
            recorded = record(connection, event("m-1"))
        sa.event.listen(engine, "do_connect", odd)
        broadcast(recorded)
        settle()
    with engine_of(db, dialect="psycopg2", poolclass=sa.NullPool) as engine, Session(engine) as session:
        record(session, event("m-2", provider_event_id="2"))
        sa.event.listen(engine, "connect", odd)
        session.commit()
        settle()
    assert db.value(LEDGER) == 2
    assert read_published_message_ids(db) == []
    first, second = lines(caplog)
    assert first.partition(": ")[2].startswith("OddError in ")
    assert second.partition(": ")[2].startswith("OddError in ")
    broadcast(5)
    assert "TypeError in " in lines(caplog)[-1]


def test_calls_while_the_database_cannot_be_reached_are_counted_and_logged_once(db, observed, caplog):
    """No connection is tried for five seconds; the next sweep links, and the counter has what was not broadcast."""
    with engine_of(db, poolclass=sa.NullPool) as engine:
        with engine.begin() as connection:
            recorded = [record(connection, event("m-1", provider_event_id=number)) for number in range(2)]
        sa.event.listen(engine, "do_connect", odd)
        for result in recorded:
            broadcast(result)
            settle()
    assert read_published_message_ids(db) == []
    assert len(lines(caplog)) == 1
    assert observed.counts("messages") == {"failed": 4}


@contextmanager
def busy_thread() -> Iterator[threading.Event]:
    """Block the background thread before it asks the database until the block ends; the event says that it waits."""
    is_asking, may_ask = threading.Event(), threading.Event()

    def delay(*_arguments):
        if threading.current_thread().name == "mailglass after commit" and not is_asking.is_set():
            is_asking.set()
            assert may_ask.wait(PATIENCE)

    with before_statements(sa.Engine, delay):
        try:
            yield is_asking
            assert is_asking.wait(PATIENCE)
        finally:
            may_ask.set()


def test_calls_that_do_not_fit_are_dropped_counted_and_logged_once(db, monkeypatch, observed, caplog):
    """Each is queued once, however often it is broadcast; the next sweep links what was dropped."""
    monkeypatch.setattr(after_commit._queue, "_limit", 3)
    monkeypatch.setattr(after_commit, "_throttle", LogThrottle())
    with db.engine.begin() as connection:
        recorded = [record(connection, event("m-1", provider_event_id=number))[0] for number in range(8)]
    with busy_thread():
        for _ in range(2):
            broadcast(recorded)
    assert read_published_message_ids(db) == ["m-1"] * 6
    assert len([line for line in lines(caplog) if "too many calls" in line]) == 1
    assert observed.counts("messages") == {"published": 6, "failed": 2 * 2 * 5}


def test_a_call_of_more_ids_than_may_wait_is_broadcast_and_looked_up_whole(db, set_limits, monkeypatch, observed):
    """It is worked off in parts."""
    monkeypatch.setattr(after_commit._queue, "_limit", 3)
    set_limits(ids_per_batch=8)
    ids = [f"m-{number}" for number in range(10, 30)]
    with db.engine.begin() as connection:
        attached = [event("m-1", provider_event_id=number) for number in range(20)]
        recorded = record(connection, *attached, *(event(id_, provider_event_id=id_) for id_ in ids))
        factories.insert(db, deliveries=[factories.delivery_row(id_) for id_ in ids])
    broadcast(recorded)
    assert Counter(read_published_message_ids(db)) == {"m-1": 40, **dict.fromkeys(ids, 2)}
    assert observed.counts("messages") == {"published": 80}


def test_a_part_of_a_call_s_results_broadcasts_the_call_once(db):
    """All results of a call share its work."""
    with db.engine.begin() as connection:
        recorded = record(connection, event("m-1"), event("m-2", provider_event_id="2"))
    for result in recorded:
        broadcast([result])
    assert read_published_message_ids(db) == ["m-1", "m-1", "m-2", "m-2"]


def test_an_orphan_that_the_database_refuses_to_link_costs_its_own_look_up_only(db, caplog):
    """The other events of its call are linked, and the log has one line."""
    ids = [f"m-{number}" for number in range(10, 210)]
    db.run("ALTER TABLE mailglass_deliveries ADD CHECK (NOT (terminal AND provider_message_id = 'm-57'))")
    with db.engine.begin() as connection:
        recorded = record(connection, *(event(id_, provider_event_id=id_) for id_ in ids))
        factories.insert(db, deliveries=[factories.delivery_row(id_) for id_ in ids])
    broadcast(recorded)
    assert sorted(set(ids) - set(read_published_message_ids(db))) == ["m-57"]
    assert db.count_links() == 199
    assert len([line for line in caplog.messages if "cannot look up the ids of this call again" in line]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "recipients"), [(1, 6_000), (6, 1_000)])
def test_sends_to_thousands_link_and_broadcast_all_that_came_before(db, calls, recipients):
    """A call links a few thousand events itself, the thread the others; no look-up and no message is dropped."""
    with db.engine.begin() as connection:
        record(connection, *(event(f"c-{n}", provider_event_id=n) for n in range(calls * recipients)))
    with busy_thread():
        for start in range(0, calls * recipients, recipients):
            sent = [Sent(recipient=f"u{n}@example.com", message_id=f"c-{n}") for n in range(start, start + recipients)]
            with db.engine.begin() as connection:
                recorded = record_send(connection, provider="postmark", sent=sent, tenant_id=factories.TENANT)
            broadcast(recorded)
    assert len(db.witness.messages()) == 2 * calls * recipients
    assert db.count_links() == calls * recipients


def test_a_forked_child_begins_with_nothing_to_do_and_its_parent_goes_on(db):
    """Only the parent uses the parent's connection."""
    with engine_of(db, poolclass=sa.NullPool) as engine:
        with engine.begin() as connection:
            recorded = record(connection, event("m-1"))
        with busy_thread() as is_asking:
            broadcast(recorded)
            assert is_asking.wait(PATIENCE)
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    settle()
                    engine.dispose(close=False)
                    with engine.begin() as connection:
                        recorded_by_child = record(connection, event("m-2", provider_event_id="2"))
                    broadcast(recorded_by_child)
                    settle()
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
    assert read_published_message_ids(db) == ["m-1", "m-1", "m-2", "m-2"]


def test_a_process_that_is_killed_between_its_commit_and_the_thread_leaves_the_link_to_a_sweep(db):
    """Its send and a webhook overlapped, so that neither saw the other."""
    child = os.fork()
    if child == 0:
        after_commit._queue._delay = 60.0
        with suppress(Exception), engine_of(db, poolclass=sa.NullPool) as engine, Session(engine) as session:
            record_one_send(session, "m-9")
            with engine.begin() as overlapping:
                record(overlapping, event("m-9"))
            session.commit()
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 1
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert reconcile().linked == 1


def test_a_child_of_multiprocessing_publishes_before_it_ends(db):
    """Such a child runs no `atexit` handlers."""
    child = multiprocessing.get_context("fork").Process(target=_record_and_end, args=(db,))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert read_published_message_ids(db) == ["m-1", "m-1"]


def _record_and_end(db):
    with engine_of(db, poolclass=sa.NullPool) as engine:
        with engine.begin() as connection:
            recorded = record(connection, event("m-1"))
        broadcast(recorded)


WRITERS = {
    "record_webhook": lambda connection: record(connection, event("m-1")),
    "record_send": lambda connection: record_one_send(connection, "m-3"),
    "erase": lambda connection: erase(connection, recipient="ada@example.com"),
}


@on_drivers("writer", WRITERS, ["record_webhook"])
def test_a_connection_that_is_not_utf8_is_refused_in_a_line_that_says_what_to_set(db, driver, writer):
    """Whatever set its encoding, nothing is written and the transaction goes on."""

    def work(connection):
        connection.exec_driver_sql("SET LOCAL client_encoding = 'LATIN1'")
        with pytest.raises(ConfigurationError, match="client_encoding is LATIN1") as caught:
            WRITERS[writer](connection)
        assert 'client_encoding="utf8"' in str(caught.value)
        assert "\n" not in str(caught.value)
        connection.exec_driver_sql("SELECT 1")

    driver.run(work)
    assert db.value(LEDGER) == 0


@pytest.mark.guard
def test_a_call_is_two_round_trips_at_most_besides_begin_and_commit(db):
    """With psycopg, an event, an early event and a send are tried."""
    calls = {
        "an event": (lambda session: record(session, event("m-1")), 2),
        "an early event": (lambda session: record(session, event("m-4", provider_event_id="2")), 2),
        "a send": (lambda session: record_one_send(session, "m-3"), 1),
    }
    with engine_of(db, pool_size=1) as engine:
        with Session(engine) as session:
            session.execute(sa.text("SELECT 1"))
            driver = session.connection().connection.driver_connection
        for name, (call, most) in calls.items():
            with round_trips(driver) as counts, Session(engine) as session:
                call(session)
                session.commit()
            assert counts[0] <= most + 2, name


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"], indirect=True)
def test_no_value_is_in_the_text_of_a_statement(db, driver):
    """`pg_stat_activity` shows statements to other roles. Only psycopg2 has no way to avoid it."""
    with db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(STORE_QUERIES)

    def work(connection):
        record(connection, event("m-secret", recipient="ada@secret.example"))
        record_one_send(connection, "m-secret")
        record(connection, event("m-secret", "opened", provider_event_id="2", recipient="ada@secret.example"))

    driver.run(work)
    texts = [row[0] for row in db.rows("SELECT query FROM noted")]
    assert len(texts) >= 4
    assert [text for text in texts if "secret" in text or "ada@" in text or factories.TENANT in text] == []


def test_the_question_after_the_commit_has_no_value_in_its_text(db):
    """`pg_stat_activity` shows the last statement of an idle session."""
    with statements_in_background() as texts:
        with Session(db.engine) as session:
            record_one_send(session, "m-secret")
            session.commit()
        settle()
    assert len(texts) == 1
    assert "secret" not in texts[0]


PGBOUNCER = pytest.mark.skipif(servers.pgbouncer_path() is None, reason="pgbouncer is not installed")
CALLS = 40


def pairs_of(number):
    """Return two calls that record a send and an event of an existing delivery."""
    return [
        lambda connection: record_one_send(connection, f"p-{number}"),
        lambda connection: record(connection, event("m-1", provider_event_id=number)),
    ]


def check_pairs(db, caplog):
    """Check that each call was recorded and each event broadcast."""
    assert lines(caplog) == []
    observed = []
    wait_until(lambda: observed.extend(read_published_message_ids(db)) or len(observed) == 2 * CALLS)
    assert observed == ["m-1"] * 2 * CALLS
    assert db.value(LEDGER) == 2 * CALLS


@PGBOUNCER
@pytest.mark.slow
def test_calls_through_pgbouncer_in_transaction_mode(db, caplog):
    """There are more threads than connections to the server, and each transaction may get another connection."""

    def work(engine, number):
        for call in pairs_of(number):
            with Session(engine) as session:
                call(session)
                session.commit()

    with servers.pgbouncer(db.url, 2) as url:
        pgbouncer_url = make_url(url).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(
            pgbouncer_url, pool_size=8, client_encoding="utf8", connect_args={"prepare_threshold": None}
        )
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: work(engine, number), range(CALLS)))
        engine.dispose()
        settle()
    check_pairs(db, caplog)


@PGBOUNCER
@pytest.mark.slow
def test_asynchronous_calls_through_pgbouncer_in_transaction_mode(db, caplog):
    """Asyncpg is configured as SQLAlchemy's documentation says for PgBouncer."""
    options = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}

    async def work(engine, number):
        for call in pairs_of(number):
            async with AsyncSession(engine) as session:
                await session.run_sync(call)
                await session.commit()

    async def main(url):
        pgbouncer_url = make_url(url).set(drivername="postgresql+asyncpg")
        connect_args = {**options, "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__"}
        engine = create_async_engine(pgbouncer_url, pool_size=8, connect_args=connect_args)
        await asyncio.gather(*(work(engine, number) for number in range(CALLS)))
        await engine.dispose()

    with servers.pgbouncer(db.url, 2) as url:
        asyncio.run(main(url))
        settle()
    check_pairs(db, caplog)


def test_only_a_session_that_records_has_a_listener_and_one_however_often_it_records(db):
    """Other sessions of the process, and those of other libraries, are left alone."""
    engine, moments = db.engine, ("after_commit", "after_transaction_end")

    def count(session):
        return [len(list(getattr(session.dispatch, moment))) for moment in moments]

    with Session(engine) as recording, Session(engine) as other:
        for number in (1, 2):
            record_send(
                recording, provider="postmark", sent=[Sent(recipient="ada@example.com", message_id=f"m-{number}")]
            )
            recording.commit()
        assert (count(recording), count(other)) == ([1, 1], [0, 0])
    assert flush()
