"""The writers on every driver that an application may use: psycopg, psycopg2, and asyncpg inside `run_sync`."""

import asyncio
import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import factories
import mailglass_reconcile
import meter
from drivers import Driver, on_drivers
from handling import handle
from mailglass_reconcile import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    SchemaOutdatedError,
    Sent,
    append,
    attempt_link,
    erase,
    find_orphans,
    link,
    record_send,
)
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from own_settings import OWN, settings_of, take
from projecting import Report, apply_projection
from recording import LEDGER, NAMELESS, NOW, event, record
from waiting import PATIENCE, settle, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.python_dependent]

HARD = "50% of \"Zoë\\\" → {NULL} :ids $1 'x'"
"""What a driver, or an array's literal, may take for something else than text."""


def send(connection, *sent, **more):
    """Record a send of the factories' tenant through Postmark."""
    return record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent, **more)


def test_an_application_s_trigger_that_misses_a_table_is_named(db, driver):
    """Each driver reports the place of an error in its own way."""
    with db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(NAMELESS)
    with pytest.raises(DatabaseRefusedError, match=r"the trigger function public\.audit\(\) of your application"):
        driver.run(lambda connection: send(connection, Sent(recipient="ada@example.com", message_id="m-1")))


@pytest.mark.guard
def test_every_writer_and_reader_works(db, driver):
    """Webhooks come before and after their send, twice, for one id with two recipients; texts come back unchanged."""
    settings = db.settings.model_copy(update={"grace_seconds": 0})
    handle(db, ("audit", "delivered"), ("audit", "bounced"), ("suppress", "bounced"))
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    quoted = HARD.lower().replace("\\", "\\\\").replace('"', '\\"')
    ada, bob = f'"{quoted}"@example.com', "bob@example.com"
    early = [event("m-1", recipient=ada, metadata={HARD: [HARD, 1, None, "\x00"]}), event("m-2", "opened")]

    def work(connection):
        assert [delivery.delivery_id for delivery in record(connection, *early)] == [None, None]
        orphans = find_orphans(connection)
        assert {(orphan.candidate_ids, orphan.recipient) for orphan in orphans} == {(("m-1",), ada), (("m-2",), None)}
        to_ada, to_bob = send(
            connection, Sent(recipient=ada, message_id="m-1"), Sent(recipient=bob, message_id="m-1"), metadata={HARD: 1}
        )
        assert (to_ada.linked, to_bob.linked) == (1, 0)
        assert [attempt_link(connection, orphan).state for orphan in find_orphans(connection)] == ["unmatched"]
        late = record(connection, *early, event("m-1", "bounced", provider_event_id="3", recipient=bob))
        assert [recorded.event_id is not None for recorded in late] == [False, False, True]
        assert late[-1].delivery_id == to_bob.delivery_id
        assert append(connection, tenant_id=HARD, type="sent", occurred_at=NOW, metadata={HARD: HARD}) is not None
        with use_caller_transaction(connection, db.settings) as tx:
            report = Report(str(to_ada.delivery_id), "clicked", "2026-04-01")
            assert (apply_projection(tx, [report]), apply_projection(tx, [report])) == (1, 0)

    driver.run(work)
    deliveries = db.rows("SELECT recipient, last_event_type, metadata FROM mailglass_deliveries ORDER BY recipient")
    assert deliveries == [(ada, "clicked", {HARD: 1}), (bob, "bounced", {HARD: 1})]
    assert db.value("SELECT metadata FROM mailglass_events WHERE type = 'sent'") == {HARD: HARD}
    assert db.value("SELECT metadata FROM mailglass_events WHERE type = 'delivered'")[HARD] == [HARD, 1, None, "\ufffd"]
    jobs = db.rows("SELECT type, handler FROM mailglass_handler_outbox ORDER BY type, handler")
    assert jobs == [("bounced", "audit"), ("bounced", "suppress"), ("delivered", "audit")]
    db.broken.add("I2")  # the ledger does not have the projected event


def test_an_event_is_linked_manually_and_a_person_erased(db, driver):
    """Texts reach the ledger unchanged; the address in another driver's row is found."""
    to, orphan = factories.delivery(db, "m-1", recipient="ada@bücher.example"), factories.orphan(db, {})

    def work(connection):
        assert str(link(connection, orphan, to, reason=HARD, actor="Zoë").delivery_id) == to
        erased = [
            erase(connection, recipient="Ada@XN--bcher-kva.example", tenant_id=tenant_id)
            for tenant_id in ("other", None)
        ]
        assert [result.deliveries for result in erased] == [0, 1]

    driver.run(work)
    assert db.value("SELECT metadata FROM mailglass_events WHERE type = 'reconciled'")["reason"] == HARD
    assert db.value("SELECT recipient FROM mailglass_deliveries").endswith("@erased.invalid")


def test_an_error_of_ours_leaves_the_callers_rows_and_settings(db, driver):
    """This holds after a refusal by the database as after success; the SQLSTATE gives the reason."""
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK (type <> 'clicked')")
    db.run("CREATE TABLE own (id int)")

    def work(connection):
        take(connection)
        connection.exec_driver_sql("INSERT INTO public.own VALUES (1)")
        record(connection, event("m-1"))
        assert settings_of(connection) == OWN
        with pytest.raises(MailglassReconcileError, match="23514"):
            record(connection, event("m-2", "clicked", recipient="ada@example.com"))
        assert settings_of(connection) == OWN
        connection.exec_driver_sql("INSERT INTO public.own VALUES (2)")

    driver.run(work)
    assert (db.value("SELECT count(*) FROM own"), db.value(LEDGER)) == (2, 1)


def test_events_that_cannot_be_linked_cost_no_send(db, driver, caplog):
    """A savepoint inside ours is rolled back; the SQLSTATE distinguishes a failed link from an outage."""
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK (type <> 'reconciled') NOT VALID")
    driver.run(lambda connection: record(connection, event("m-1")))
    (sent,) = driver.run(lambda connection: send(connection, Sent(recipient="a@example.com", message_id="m-1")))
    assert (sent.linked, "23514" in caplog.text) == (0, True)
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 1
    db.run("ALTER TABLE mailglass_events DROP CONSTRAINT odd")


def test_a_rollback_takes_everything_along(db, driver):
    """The transaction is the caller's."""

    def work(connection):
        record(connection, event("m-1"))
        send(connection, Sent(recipient="a@example.com", message_id="m-1"))
        connection.rollback()

    driver.run(work)
    assert db.value(LEDGER) == 0
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_a_send_and_its_webhook_at_the_same_time_are_linked_by_whoever_commits_last(db, driver):
    """The webhook commits while the send is open, and neither waits; then the send's Session asks."""

    def work(session):
        send(session, Sent(recipient="a@example.com", message_id="m-1"))
        with ThreadPoolExecutor() as threads:
            (recorded,) = threads.submit(
                driver.run_session, lambda session_of_webhook: record(session_of_webhook, event("m-1"))
            ).result(PATIENCE)
        assert recorded.delivery_id is None

    driver.run_session(work)
    settle()
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    assert db.value("SELECT last_event_type FROM mailglass_deliveries") == "delivered"


def test_a_call_that_fails_takes_no_broadcast_of_an_earlier_one_along(db, driver):
    """Only the events of the caller's own savepoint are dropped."""
    delivery = factories.delivery(db, "m-1")
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK (type <> 'clicked')")

    def work(session):
        record(session, event("m-1"))
        with pytest.raises(MailglassReconcileError, match="23514"):
            record(session, event("m-1", "clicked"))

    driver.run_session(work)
    received = []
    wait_until(lambda: received.extend(db.witness.messages()) or received)
    assert {m["delivery_id"] for _, m in received} == {delivery}


MISSING_FUNCTIONS = [
    "mailglass_reconcile_find_deliveries_v1",
    "mailglass_reconcile_store_sends_v1",
    "mailglass_reconcile_append_event_v1",
]


@on_drivers("function", MISSING_FUNCTIONS, MISSING_FUNCTIONS[:1])
def test_a_call_without_its_function_says_what_to_run_and_the_transaction_is_aborted(db, driver, function):
    """Any failed statement aborts it, also if the process is newer than the schema; a rollback frees it."""
    db.run(f"DROP FUNCTION {function}")

    def work(connection):
        connection.exec_driver_sql("CREATE TABLE public.own (id int)")
        with pytest.raises(SchemaOutdatedError, match="run `mailglass-reconcile migrate`"):
            calls(connection)[MISSING_FUNCTIONS.index(function)]()
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        connection.rollback()
        connection.exec_driver_sql("SELECT 1")

    driver.run(work)
    assert db.value(LEDGER) == 0
    assert db.value("SELECT to_regclass('own') IS NULL")


FAILS = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  RAISE SQLSTATE '{state}' USING MESSAGE = 'ada@example.com is not allowed';
END $$;
CREATE TRIGGER fail AFTER INSERT ON mailglass_events FOR EACH STATEMENT EXECUTE FUNCTION fail();
"""
"""A trigger that refuses every event, after the function has returned its rows."""


def calls(connection):
    """Return a function for each writer's call."""
    return [
        lambda: record(connection, event("m-1"), event("m-2", "opened")),
        lambda: send(connection, Sent(recipient="ada@example.com", message_id="m-3")),
        lambda: append(connection, tenant_id="acme", type="sent", occurred_at=NOW),
    ]


@on_drivers("state", ["23514", "22023", "42P01", "54000", "55P03", "P0001", "0A000"], ["23514"], in_ci=["23514"])
def test_what_a_function_catches_costs_its_own_work_only(db, driver, state):
    """The caller's rows stay and its transaction goes on; the error has the SQLSTATE and quotes no value."""
    factories.delivery(db, "m-1")
    db.run("CREATE TABLE own (id int)")
    db.run(FAILS.format(state=state))

    def work(connection):
        take(connection)
        connection.exec_driver_sql("INSERT INTO public.own VALUES (1)")
        for call in calls(connection):
            with pytest.raises(MailglassReconcileError, match=state) as caught:
                call()
            assert "ada" not in repr(caught.value)
            assert caught.value.__cause__ is None
        assert settings_of(connection) == OWN
        connection.exec_driver_sql("INSERT INTO public.own VALUES (2)")

    driver.run(work)
    assert (db.value("SELECT count(*) FROM own"), db.value(LEDGER)) == (2, 0)
    assert db.rows("SELECT last_event_type FROM mailglass_deliveries") == [("dispatched",)]


@on_drivers(
    "state",
    ["08006", "25006", "40001", "40P01", "53100", "57P01", "58000", "XX001"],
    ["08006", "40001", "57P01"],
    in_ci=["40001"],
)
def test_what_concerns_the_whole_transaction_is_raised_and_aborts_it(db, driver, state):
    """The caller rolls back, and may retry: a serialization failure says that it is transient."""
    db.run(FAILS.format(state=state))

    def work(connection):
        for number in range(3):
            with pytest.raises(MailglassReconcileError) as caught:
                calls(connection)[number]()
            assert caught.value.is_transient == (state[:2] in ("08", "25", "40", "53", "57"))
            with pytest.raises(DBAPIError):
                connection.exec_driver_sql("SELECT 1")
            connection.rollback()
        connection.exec_driver_sql("DROP TRIGGER fail ON mailglass_events")
        for call in calls(connection):
            call()

    driver.run(work)
    assert db.value(LEDGER) == 4


def test_a_usual_call_sends_no_savepoint_and_sets_nothing(db, driver):
    """A webhook sends two statements, a send and an event one each."""
    factories.delivery(db, "m-1")
    savepoints = []

    def work(connection):
        connection.exec_driver_sql("SELECT 1")
        sa.event.listen(connection, "savepoint", lambda *_arguments: savepoints.append(1))
        with meter.statements(connection) as sent:
            for call in calls(connection):
                call()
        assert len(sent) <= 4, sent

    driver.run(work)
    assert savepoints == []


def test_an_autocommit_connection_is_refused_on_every_driver(db, driver):
    """Each driver has its own autocommit mode."""
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        driver.run(lambda connection: record(connection, event()), isolation_level="AUTOCOMMIT")


def test_psycopg2_with_another_encoding_is_told_what_to_set(db):
    """Psycopg2 does not notice a changed encoding, and would send Latin-1 to a server that reads UTF-8."""
    url = sa.make_url(db.url).set(drivername="postgresql+psycopg2")
    with sa.create_engine(url, client_encoding="latin1", poolclass=sa.NullPool).begin() as connection:
        connection.exec_driver_sql("SET LOCAL client_encoding = 'UTF8'")
        with pytest.raises(ConfigurationError, match='client_encoding="utf8"'):
            record(connection, event())


def test_a_lost_connection_and_an_unreachable_server_are_the_same_error(db, driver):
    """The connection is killed between the caller's statement and ours, or a Session cannot connect."""

    def work(connection):
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        db.run("SELECT pg_terminate_backend(:pid, 10000)", pid=pid)
        record(connection, event())

    with pytest.raises(DatabaseUnavailableError, match="cannot reach"):
        driver.run(work)
    unreachable = Driver(driver.url.set(host="127.0.0.1", port=1, query={}))
    with pytest.raises(DatabaseUnavailableError, match="cannot reach"):
        unreachable.run_session(lambda session: record(session, event()))


CALLS = [
    record,
    send,
    find_orphans,
    lambda connection: append(connection, tenant_id="acme", type="sent", occurred_at=NOW),
    lambda connection: attempt_link(
        connection, mailglass_reconcile.Orphan(None, "acme", dt.datetime.now(dt.UTC), None, (), "")
    ),
]


def check_refused(argument):
    """Check that every function refuses *argument* with one line that says what to pass."""
    for call in CALLS:
        with pytest.raises(TypeError) as caught:
            call(argument)
        text = str(caught.value)
        assert type(argument).__name__ in text
        assert "pass a SQLAlchemy Connection or Session" in text
        assert "run_sync" in text
        assert "\n" not in text


def test_a_drivers_own_connection_is_refused_with_what_to_pass(db):
    async def with_asyncpg():
        plain = sa.make_url(db.url)
        connection = await asyncpg.connect(host=plain.query["host"], user=plain.username, database=plain.database)
        check_refused(connection)
        await connection.close()

    with psycopg.connect(db.url) as connection:
        check_refused(connection)
    asyncio.run(with_asyncpg())
    assert db.value(LEDGER) == 0


def test_an_asynchronous_connection_or_session_is_told_of_run_sync(db):
    """`await … .run_sync(…)` is often forgotten in asynchronous code."""

    async def by_mistake():
        engine = create_async_engine(sa.make_url(db.url).set(drivername="postgresql+asyncpg"), poolclass=sa.NullPool)
        async with engine.connect() as connection, AsyncSession(engine) as session:
            check_refused(connection)
            check_refused(session)

    asyncio.run(by_mistake())
