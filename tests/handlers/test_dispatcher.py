"""An event on its way to handlers, in one process, on the application's connection."""

import datetime as dt
import enum
import gc
import logging
import os
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import sqlalchemy as sa
import sqlalchemy.orm

import factories
import mailglass_reconcile
import meter
import processes
from handling import EFFECT, effects, failing, handle, leave_effect, leaving, make_due, register, states
from mailglass_reconcile import Sent, dispatch, on_event, record_send
from mailglass_reconcile.handlers import execution
from mailglass_reconcile.handlers.dispatcher import DispatchResult
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.store.tables import handler_jobs
from mailglass_reconcile.store.tables.handler_jobs import Failure
from marking import slow_unless
from recording import NOW, event, record
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.long


def counts(result: DispatchResult) -> tuple[int, int, int]:
    """Return a dispatcher's counts of done, failed and dead jobs."""
    return result.handled, result.failed, result.dead


def link_orphans(db, number=1):
    """Register this process's handlers, link *number* orphans by a sweep, and return the first one's id."""
    register(db)
    for n in range(number):
        factories.delivery(db, f"m-{n}")
    rows = [factories.orphan_row(factories.postmark(f"m-{n}"), type="bounced") for n in range(number)]
    factories.insert(db, events=rows)
    assert mailglass_reconcile.reconcile().linked == number
    return rows[0]["id"]


def test_a_handler_gets_a_linked_orphan_under_its_own_type_and_id(handler_db):
    """It gets everything that event, delivery and outbox have, including the recipient."""
    received = leaving("suppress", "bounced")
    delivery_id = factories.delivery(handler_db, "m-1", recipient="Ada@Example.com")
    orphan_id = factories.orphan(
        handler_db, factories.postmark("m-1"), type="bounced", occurred_at="2026-03-01 12:00:00"
    )
    mailglass_reconcile.reconcile()
    assert counts(dispatch()) == (1, 0, 0)
    assert received == [
        mailglass_reconcile.DeliveryEvent(
            event_id=uuid.UUID(orphan_id),
            type="bounced",
            occurred_at=dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC),
            tenant_id=factories.TENANT,
            delivery_id=uuid.UUID(delivery_id),
            provider="postmark",
            message_id="m-1",
            recipient="Ada@Example.com",
            reject_reason=None,
            attempt=1,
        )
    ]
    assert "Ada" not in repr(received)


def test_a_handler_gets_sends_and_webhooks_in_the_same_way(handler_db):
    """It gets the `dispatched` event of `record_send`, what that links, and what `record_webhook` attaches."""
    received = leaving("audit")
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "opened", provider_event_id="1"))
        record_send(
            connection,
            tenant_id=factories.TENANT,
            provider="postmark",
            sent=[Sent(recipient="ada@example.com", message_id="m-1", occurred_at=NOW)],
        )
        record(connection, event("m-1", "bounced", provider_event_id="2", reject_reason="bounced"))
    assert counts(dispatch()) == (3, 0, 0)
    assert {(received_event.type, received_event.reject_reason) for received_event in received} == {
        ("opened", None),
        ("dispatched", None),
        ("bounced", "bounced"),
    }
    assert {
        (received_event.provider, received_event.message_id, received_event.recipient) for received_event in received
    } == {("postmark", "m-1", "ada@example.com")}


@pytest.mark.parametrize("webhook_first", [True, False])
def test_a_handler_gets_hard_or_soft_and_the_smtp_codes_of_a_bounce(handler_db, webhook_first):
    """This holds for linked and for attached events."""
    received = leaving("audit", "bounced")
    with handler_db.engine.begin() as connection:
        if not webhook_first:
            factories.insert(connection, deliveries=[factories.delivery_row("m-1")])
        record(
            connection,
            event("m-1", "bounced", provider_event_id="1", bounce="hard", smtp_status="550 5.1.1"),
            event("m-1", "bounced", provider_event_id="2", bounce="soft"),
            event("m-1", "bounced", provider_event_id="3"),
        )
    if webhook_first:
        factories.delivery(handler_db, "m-1")
        handler_db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
        assert mailglass_reconcile.reconcile().linked == 3
    assert dispatch().handled == 3
    rows = {(received_event.bounce, received_event.smtp_status) for received_event in received}
    assert rows == {("hard", "550 5.1.1"), ("soft", None), (None, None)}


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({"bounce": {"bounceType": "Permanent"}, "smtp_status": "550 <ada@example.com>: unknown"}, "550"),
        ({"bounce": "Permanent", "smtp_status": {"code": 550}}, None),
    ],
)
def test_what_another_writer_has_stored_under_these_names_is_not_passed_on(handler_db, metadata, status):
    """Another writer may store a provider's whole payload; a handler gets one of two words, and digits."""
    received = leaving("audit", "bounced")
    factories.delivery(handler_db, "m-1")
    factories.orphan(handler_db, factories.postmark("m-1", **metadata), type="bounced")
    assert mailglass_reconcile.reconcile().linked == 1
    assert dispatch().handled == 1
    assert [(received_event.bounce, received_event.smtp_status) for received_event in received] == [(None, status)]


def test_a_handler_works_with_the_connection_s_own_settings(handler_db):
    """It has its own search path and time zone, and a timeout for its statements."""
    url = sa.make_url(handler_db.url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, connect_args={"options": "-c search_path=witness,public -c timezone=Asia/Tokyo"})
    mailglass_reconcile.configure(engine=engine, settings=mailglass_reconcile.runtime.get_settings())
    observed = []

    @on_event("bounced")
    def look(connection, event):
        names = ("search_path", "TimeZone", "row_security", "enable_seqscan", "statement_timeout")
        observed.extend(connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names)

    link_orphans(handler_db)
    assert dispatch().handled == 1
    assert observed == ["witness,public", "Asia/Tokyo", "on", "on", "30s"]
    engine.dispose()


def test_a_failed_handler_is_retried_without_repeating_others(handler_db):
    """The other handler's effect stays, its own is rolled back, and the retry has the next number."""
    received, failed = leaving("good"), failing("bad", ValueError("Ada@Example.com"), times=1)
    link_orphans(handler_db)
    assert counts(dispatch()) == (1, 1, 0)
    bad, good = handler_db.rows("SELECT * FROM mailglass_handler_outbox ORDER BY handler")
    assert (good.handler, good.state, good.attempts, good.error) == ("good", "done", 1, None)
    assert (bad.handler, bad.state, bad.attempts, bad.error) == ("bad", "waiting", 1, "ValueError")
    delay = (bad.next_at - dt.datetime.now(dt.UTC).replace(tzinfo=None)).total_seconds()
    assert 0 < delay <= 5 * 1.25
    assert counts(dispatch()) == (0, 0, 0), "it is not due yet"
    make_due(handler_db)
    assert counts(dispatch()) == (1, 0, 0)
    assert effects(handler_db) == {"good": 1, "bad": 1}
    assert len(received) == 1
    assert [failed_event.attempt for failed_event in failed] == [1, 2]


DELAY = "SELECT extract(epoch FROM next_at - now()::timestamp) FROM mailglass_handler_outbox"


def test_an_event_whose_handler_always_fails_is_dead_in_the_end(handler_db):
    """It fails nine times, the last time a day after the one before; then it can be retried manually."""
    failing("bad", ValueError(), times=handler_jobs.MOST_ATTEMPTS)
    link_orphans(handler_db)
    delays = []
    for _ in range(handler_jobs.MOST_ATTEMPTS):
        make_due(handler_db)
        assert dispatch().failed == 1
        delays.append(float(handler_db.value(DELAY)))
    assert states(handler_db) == {"dead": 1}
    for planned, delay in zip(handler_jobs.DELAYS_SECONDS, delays, strict=False):
        assert planned - 1 < delay < planned * 1.25 + 1
    assert counts(dispatch()) == (0, 0, 0)
    assert effects(handler_db) == {}


def test_an_event_whose_commit_fails_does_not_affect_others(handler_db):
    """A constraint that is checked at COMMIT refuses one event's work."""
    handler_db.run("""CREATE TABLE witness.few (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)""")

    @on_event("bounced", name="insert")
    def insert(connection, event):
        number = 1 if str(event.event_id) == first else int(event.message_id[2:]) - 1
        connection.execute(sa.text("INSERT INTO witness.few VALUES (:n)"), {"n": number})
        leave_effect("insert", connection, event)

    first = link_orphans(handler_db, 3)
    result = dispatch()
    assert (result.handled, result.failed) == (2, 1)
    assert states(handler_db) == {"done": 2, "waiting": 1}
    assert handler_db.value("SELECT count(*) FROM witness.few") == 2


def _swallow(connection):
    with pytest.raises(sa.exc.DBAPIError):
        connection.exec_driver_sql("SELECT 1/0")


def _replace(connection):
    connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("SELECT 1")


def _session(connection):
    with sa.orm.Session(connection) as session:
        session.execute(sa.text("SELECT 1"))
        session.rollback()


def _failing_session(connection):
    with suppress(sa.exc.DBAPIError), sa.orm.Session(connection) as session, session.begin():
        session.execute(sa.text("SELECT 1/0"))


def _committing_session(connection):
    with (
        suppress(execution.HandlerCommittedError),
        sa.orm.Session(connection, join_transaction_mode="control_fully") as session,
    ):
        session.execute(sa.text("SELECT 1"))
        session.commit()


def _leave(connection):
    with connection:
        pass


ENDINGS = {
    "commits": lambda connection: connection.commit(),
    "rolls back": lambda connection: connection.rollback(),
    "rolls back in SQL": lambda connection: connection.exec_driver_sql("ROLLBACK"),
    "puts another transaction in its place": _replace,
    "loses the connection": lambda connection: connection.exec_driver_sql(
        "SELECT pg_terminate_backend(pg_backend_pid())"
    ),
    "swallows an error": _swallow,
    "rolls back its session": _session,
    "swallows an error of its session": _failing_session,
    "lets its session commit": _committing_session,
    "closes the connection": _leave,
}


QUICK = ("commits", "rolls back", "loses the connection", "swallows an error")


@pytest.mark.parametrize("ending", slow_unless(QUICK.__contains__, ENDINGS))
def test_a_handler_that_ends_the_transaction_fails_alone(handler_db, ending):
    """The other events' effects are committed once, its own is not, although it raised no error."""

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        if event.message_id == "m-1":
            ENDINGS[ending](connection)

    leaving("other")
    link_orphans(handler_db, 3)
    result = dispatch()
    assert counts(result) == (5, 1, 0)
    assert states(handler_db) == {"done": 5, "waiting": 1}
    assert effects(handler_db) == {"effect": 2, "other": 3}


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_what_a_commit_in_sql_has_committed_is_not_repeated(handler_db, raises):
    """COMMIT in SQL cannot be refused, and commits the job's mark too."""

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        if event.message_id == "m-1":
            connection.exec_driver_sql("COMMIT")
            if raises:
                raise ValueError

    leaving("other")
    link_orphans(handler_db, 3)
    assert counts(dispatch()) == (6, 0, 0)
    assert effects(handler_db) == {"effect": 3, "other": 3}


def test_what_a_joined_session_has_flushed_stays(handler_db):
    """A Session on the connection joins the handler's transaction, whether it is committed or not."""

    @on_event("bounced", name="effect")
    def handler(connection, event):
        with sa.orm.Session(connection) as session:
            session.execute(EFFECT, {"handler": "effect", "event_id": event.event_id})
            session.flush()
            if event.message_id == "m-1":
                session.commit()

    link_orphans(handler_db, 3)
    assert counts(dispatch()) == (3, 0, 0)
    assert effects(handler_db) == {"effect": 3}


def test_a_handler_may_roll_back_a_savepoint_of_its_own(handler_db):
    """An INSERT may fail in `begin_nested` of a connection or a session, and the rest is kept."""
    handler_db.run("CREATE TABLE witness.once (n integer PRIMARY KEY)")
    handler_db.run("INSERT INTO witness.once VALUES (1)")
    duplicate = sa.text("INSERT INTO witness.once VALUES (1)")

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        if event.message_id == "m-0":
            with suppress(sa.exc.IntegrityError), connection.begin_nested():
                connection.execute(duplicate)
        else:
            with sa.orm.Session(connection) as session, suppress(sa.exc.IntegrityError), session.begin_nested():
                session.execute(duplicate)

    link_orphans(handler_db, 2)
    assert counts(dispatch()) == (2, 0, 0)
    assert effects(handler_db) == {"effect": 2}


def test_each_job_has_a_transaction_of_its_own_without_a_savepoint_of_ours(handler_db):
    """A transaction before it records the last job's end and claims the next one, in one statement."""
    observed = []

    @on_event("bounced", name="one")
    def observe(connection, event):
        assert connection.get_nested_transaction() is None
        observed.append(connection.exec_driver_sql("SELECT pg_current_xact_id()").scalar_one())

    on_event("bounced", name="two")(observe)
    link_orphans(handler_db, 3)
    with meter.statements(handler_db.engine) as sent:
        assert dispatch().handled == 6
    assert len(set(observed)) == 6
    assert len([text for text in sent if "pg_current_xact_id" not in text]) <= 2 * 6 + 12, sent


def test_dispatchers_in_serializable_transactions_run_every_handler(handler_db):
    """With SERIALIZABLE as the default, four dispatchers contend for rows, and none raises."""
    received = leaving("effect")
    link_orphans(handler_db, 20)
    handler_db.set_default("default_transaction_isolation", "serializable")
    with ThreadPoolExecutor(4) as pool:
        result = [future.result() for future in [pool.submit(dispatch) for _ in range(4)]]
    while states(handler_db) != {"done": 20}:
        make_due(handler_db)
        result.append(dispatch())
    assert (sum(dispatch_result.handled for dispatch_result in result), effects(handler_db)) == (20, {"effect": 20})
    assert sum(dispatch_result.failed for dispatch_result in result) == 0, (
        "a serialization failure is none of the handler's"
    )
    assert len(received) >= 20


def test_a_conflict_that_a_handler_raises_as_an_error_of_its_own_is_no_failure(handler_db):
    @on_event("bounced", name="wrapping")
    def _wrap(connection, event):
        try:
            connection.exec_driver_sql("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        except sa.exc.DBAPIError as error:
            raise LookupError("the row cannot be stored") from error

    link_orphans(handler_db)
    assert counts(dispatch()) == (0, 0, 0)
    assert states(handler_db) == {"waiting": 1}


def test_jobs_are_enqueued_in_the_order_of_events_and_handlers(handler_db):
    """Two transactions that enqueue jobs of the same events wait for each other one way only."""
    handle(handler_db, ("b", "bounced"), ("a", "bounced"))
    event_ids, delivery_ids = (sorted(factories.new_id() for _ in range(3)) for _ in range(2))
    factories.insert(
        handler_db,
        [factories.delivery_row(f"m-{n}", id=delivery_ids[n]) for n in range(3)],
        [factories.orphan_row(factories.postmark(f"m-{n}"), type="bounced", id=event_ids[-1 - n]) for n in range(3)],
    )
    assert mailglass_reconcile.reconcile().linked == 3
    jobs = handler_db.rows("SELECT event_id::text, handler FROM mailglass_handler_outbox ORDER BY ctid")
    assert jobs == [(event_id, handler) for event_id in event_ids for handler in ("a", "b")]


def test_a_dispatcher_leaves_the_jobs_of_handlers_and_types_that_it_does_not_have(handler_db):
    """They wait for a process that has them, and do not delay others."""
    handle(handler_db, ("elsewhere", "bounced"), ("suppress", "bounced"), ("suppress", "opened"))
    link_orphans(handler_db, 2)
    assert counts(dispatch()) == (0, 0, 0)
    on_event("opened", name="suppress")(_do_nothing)
    assert counts(dispatch()) == (0, 0, 0)
    assert states(handler_db) == {"waiting": 4}
    on_event("bounced", name="suppress")(_do_nothing)
    assert counts(dispatch()) == (2, 0, 0)
    assert states(handler_db) == {"waiting": 2, "done": 2}


def _do_nothing(connection, event):
    pass


def test_a_dispatch_without_handlers_asks_the_database_nothing(handler_db):
    """Beat's entry costs nothing where nobody has a handler."""
    with meter.statements(handler_db.engine) as sent:
        assert counts(dispatch()) == (0, 0, 0)
    assert sent == []


def test_a_dispatch_leaves_a_row_in_the_history(handler_db):
    """An idle one writes once a minute, into the row of its hour."""
    leaving("bounces", "bounced")
    link_orphans(handler_db, 2)
    dispatch()
    dispatch()
    assert handler_db.rows("SELECT origin, status, runs FROM mailglass_reconcile_runs WHERE kind = 'dispatch'") == [
        ("python", "ok", 1)
    ]


REGISTERED_RECENTLY = """
SELECT handler, type, seen_at > now()::timestamp - interval '1 minute' AS lately
  FROM mailglass_handled_types ORDER BY 1, 2
"""


def test_a_dispatcher_registers_its_handlers_and_from_then_on_every_process_enqueues_their_jobs(db):
    registry._registered.clear()
    factories.delivery(db, "m-1")
    leaving("audit", "bounced", "opened")
    leaving("suppress", "bounced")
    with db.engine.begin() as connection:
        record(connection, event("m-1", "bounced", provider_event_id="1"))
    assert states(db) == {}
    assert counts(dispatch()) == (0, 0, 0)
    assert db.rows(REGISTERED_RECENTLY) == [
        ("audit", "bounced", True),
        ("audit", "opened", True),
        ("suppress", "bounced", True),
    ]
    registry._registered.clear()
    with db.engine.begin() as connection:
        kinds = ("bounced", "opened", "clicked")
        record(connection, *(event("m-1", kind, provider_event_id=kind) for kind in kinds))
    jobs = db.rows("SELECT type, handler FROM mailglass_handler_outbox ORDER BY 1, 2")
    assert jobs == [("bounced", "audit"), ("bounced", "suppress"), ("opened", "audit")]


def test_a_handler_that_was_registered_within_ten_minutes_is_only_looked_at(handler_db):
    """It is read at each start and each minute, and written again after ten minutes."""
    leaving("bounces", "bounced", "opened")
    ages = {"bounced": 9, "opened": 11}
    for type_, minutes in ages.items():
        handler_db.run(
            "UPDATE mailglass_handled_types SET seen_at = now() - make_interval(mins => :minutes) WHERE type = :type",
            minutes=minutes,
            type=type_,
        )
    dispatch()
    assert [row.type for row in handler_db.rows(REGISTERED_RECENTLY) if row.lately] == ["opened"]


def test_a_dispatcher_that_works_for_long_keeps_its_handlers_alive(handler_db, set_limits):
    """Otherwise events would wait for an hour, and its handlers would seem to have no dispatcher."""
    set_limits(register_seconds=0)
    lately = []

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        lately.append({row.type: row.lately for row in connection.execute(sa.text(REGISTERED_RECENTLY))}["bounced"])
        connection.exec_driver_sql("UPDATE mailglass_handled_types SET seen_at = '2000-01-01'")

    link_orphans(handler_db, 2)
    dispatch()
    assert lately == [True, True]


async def _asynchronous(connection, event):
    pass


def _generator(connection, event):
    yield


async def _asynchronous_generator(connection, event):
    yield


def _hidden(function):
    return lambda connection, event: function(connection, event)  # noqa: PLW0108 - it hides what the function is


@pytest.mark.parametrize(
    "handler",
    [
        _asynchronous,
        _generator,
        _asynchronous_generator,
    ],
    ids=["async", "generator", "async generator"],
)
def test_what_would_not_run_when_it_is_called_is_refused(handler_db, handler):
    """Calling a coroutine function or a generator does nothing, so the event would be marked done."""
    with pytest.raises(mailglass_reconcile.ConfigurationError, match="must be an ordinary function"):
        on_event("bounced", name="never")(handler)


def test_a_handler_that_took_too_long_in_python_has_failed(handler_db):
    """Postgres limits its statements only."""
    on_event("bounced", name="slow")(_do_nothing)
    with pytest.raises(execution.HandlerTimeoutError):
        execution.call_handler(registry.get_handler("slow"), None, None, seconds=0)


@pytest.mark.filterwarnings("error")
def test_a_handler_that_returns_a_coroutine_has_failed(handler_db):
    """A decorator may hide that the function is one."""
    on_event("bounced", name="asynchronous")(_hidden(_asynchronous))
    on_event("bounced", name="generator")(_hidden(_generator))
    on_event("bounced", name="asynchronous generator")(_hidden(_asynchronous_generator))
    link_orphans(handler_db)
    assert counts(dispatch()) == (0, 3, 0)
    gc.collect()  # frees the coroutine, which warns if nobody has closed it


@pytest.mark.slow
def test_a_module_that_is_also_the_program_registers_its_handlers_once(tmp_path, handler_db):
    """The order does not matter; the name is that under which other processes import it."""
    (tmp_path / "shop_mail.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MAILGLASS_IMPORTS": "shop_mail"}
    for command in (["-m", "shop_mail"], [sys.executable, str(tmp_path / "shop_mail.py")]):
        result = processes.run(command, environment)
        assert (result.stdout, result.stderr) == ("['shop_mail.suppress']\n", "")


PROGRAM = """
from mailglass_reconcile import on_event, runtime
from mailglass_reconcile.rules import handlers

@on_event("bounced")
def suppress(connection, event):
    pass

if __name__ == "__main__":
    runtime.load_imports()
    print([registered.name for registered in handlers.registered_handlers()])
"""


class Kind(str, enum.Enum):  # noqa: UP042 - whose str() is its name, unlike a StrEnum's
    """An application's own event types."""

    BOUNCED = "bounced"


def test_an_enumeration_s_member_is_stored_as_its_value(handler_db):
    """This holds for types and metadata, because the ledger can never be corrected."""
    received = leaving("all", Kind.BOUNCED)
    factories.delivery(handler_db, "m-1")
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", Kind.BOUNCED, metadata={"kind": Kind.BOUNCED, Kind.BOUNCED: 1}))
    assert handler_db.value("SELECT type FROM mailglass_events WHERE type <> 'dispatched'") == "bounced"
    value = handler_db.value("SELECT metadata FROM mailglass_events WHERE type = 'bounced'")
    assert (value["kind"], value["bounced"]) == ("bounced", 1)
    assert (dispatch().handled, [item.type for item in received]) == (1, ["bounced"])


def test_a_backlog_of_one_handler_does_not_delay_another(handler_db):
    """Handlers take turns, and so do the types of one handler."""
    calls = []
    for name in ("slow", "quick"):
        on_event("bounced", "opened", name=name)(lambda _, event, name=name: calls.append((name, event.type)))
    link_orphans(handler_db, 6)
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "opened"))
    handler_db.run(
        "DELETE FROM mailglass_handler_outbox WHERE handler = 'quick' AND type = 'bounced' AND event_id <>"
        " (SELECT max(event_id::text)::uuid FROM mailglass_handler_outbox WHERE type = 'bounced')"
    )
    handler_db.broken.add("I14")
    assert counts(dispatch()) == (9, 0, 0)
    assert {name for name, _ in calls[:2]} == {name for name, _ in calls[2:4]} == {"slow", "quick"}
    assert {type_ for name, type_ in calls[:4] if name == "slow"} == {"bounced", "opened"}


def test_a_failing_handler_backs_off_by_itself(handler_db):
    """Jobs of other handlers on the same event are done and not due again."""
    failing("bad", ValueError())
    good = leaving("good")
    link_orphans(handler_db)
    assert counts(dispatch()) == (1, 1, 0)
    make_due(handler_db)
    assert counts(dispatch()) == (0, 1, 0)
    assert len(good) == 1


WAITING = "SELECT attempts, error FROM mailglass_handler_outbox WHERE state = 'waiting' ORDER BY attempts"


def test_a_dispatcher_that_is_shut_down_counts_only_the_attempt_that_was_interrupted(handler_db):
    """Finished jobs stay done, and no other job is claimed."""
    handled = []

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        handled.append(event)
        if len(handled) == 3:
            raise KeyboardInterrupt

    link_orphans(handler_db, 4)
    with pytest.raises(KeyboardInterrupt):
        dispatch()
    assert states(handler_db) == {"done": 2, "waiting": 2}
    assert list(map(tuple, handler_db.rows(WAITING))) == [(0, None), (1, handler_jobs.UNFINISHED)]
    assert counts(dispatch()) == (1, 0, 0)
    make_due(handler_db)
    assert counts(dispatch()) == (1, 0, 0)
    assert effects(handler_db) == {"effect": 4}


HANGS = {
    "in a statement": lambda connection, seconds: connection.exec_driver_sql(f"SELECT pg_sleep({seconds})"),
    "in Python": lambda connection, seconds: time.sleep(seconds),
    "in Python, then in a statement": lambda connection, seconds: (
        time.sleep(seconds),
        connection.exec_driver_sql("SELECT 1"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", [*HANGS, "in many statements"])
def test_a_handler_that_takes_too_long_fails_and_its_timeout_is_named(handler_db, set_limits, caplog, way):
    """Its statement is cancelled; Python code goes on, but loses its connection or is rolled back at the end."""
    set_limits(handler_seconds=0.2)

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        if event.message_id == "m-0":
            until = time.monotonic() + 0.6
            if way in HANGS:
                HANGS[way](connection, 0.6)
            while time.monotonic() < until:
                connection.exec_driver_sql("SELECT 1")

    link_orphans(handler_db, 2)
    assert dispatch().handled == 1
    assert states(handler_db) == {"done": 1, "waiting": 1}
    assert effects(handler_db) == {"effect": 1}
    assert (
        handler_db.value("SELECT error FROM mailglass_handler_outbox WHERE state = 'waiting'") == "HandlerTimeoutError"
    )
    assert "attempt 1: HandlerTimeoutError at test_dispatcher.py:" in caplog.text


def test_an_attempt_that_ends_with_its_process_counts(handler_db):
    """After nine attempts the job is dead; other handlers and events are unaffected."""
    leaving("before")

    @on_event("bounced", name="effect")
    def handler(connection, event):
        leave_effect("effect", connection, event)
        if event.message_id == "m-0":
            raise SystemExit

    leaving("other")
    link_orphans(handler_db, 2)
    for _ in range(handler_jobs.MOST_ATTEMPTS):
        make_due(handler_db)
        with pytest.raises(SystemExit):
            dispatch()
    make_due(handler_db)
    assert dispatch().dead == 1
    assert effects(handler_db) == {"before": 2, "effect": 1, "other": 2}
    dead = handler_db.rows("SELECT handler, error FROM mailglass_handler_outbox WHERE state = 'dead'")
    assert dead == [("effect", handler_jobs.UNFINISHED)]


LOST = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)
VALUES (gen_random_uuid(), 'all', gen_random_uuid(), 'bounced', '2026-01-01', '2026-01-01')
"""


def test_a_job_whose_event_the_ledger_has_lost_fails_without_a_run(handler_db):
    """A TRUNCATE of the ledger causes it; no other job is delayed."""
    received = leaving("all")
    handler_db.run(LOST)
    link_orphans(handler_db)
    handler_db.broken.add("I14")
    assert counts(dispatch()) == (1, 1, 0)
    assert len(received) == 1
    error = handler_db.value("SELECT error FROM mailglass_handler_outbox WHERE state = 'waiting'")
    assert error == handler_jobs.EVENT_MISSING


def test_a_claim_that_another_dispatcher_has_taken_over_is_dropped(handler_db):
    """A dispatcher that was away for longer than its claim runs and records nothing."""
    leaving("x")
    link_orphans(handler_db)
    first, second = _claim(handler_db), _claim(handler_db)
    with handler_db.database.writing() as tx:
        assert handler_jobs.start(tx, first, 30) is None
        assert handler_jobs.claim(tx, [], synchronous=True, failure=Failure(first, "ValueError")) == (None, None)
        assert handler_jobs.start(tx, second, 30) is not None
        assert handler_jobs.start(tx, second, 30) is None, "it is done already"
        tx.connection.rollback()


def test_a_dispatcher_waits_for_a_claimed_job_that_another_one_locks_briefly(handler_db):
    """If it was skipped, the event would lose an attempt and wait seconds for the next one."""
    leaving("x")
    link_orphans(handler_db)
    claimed = _claim(handler_db)

    def start():
        with handler_db.database.writing() as tx:
            is_started = handler_jobs.start(tx, claimed, 30) is not None
            tx.connection.rollback()
            return is_started

    with (
        ThreadPoolExecutor(1) as pool,
        handler_db.engine.connect() as second_dispatcher,
        second_dispatcher.begin() as looking,
    ):
        second_dispatcher.exec_driver_sql("SELECT FROM mailglass_handler_outbox FOR UPDATE SKIP LOCKED")
        future = pool.submit(start)
        wait_until(lambda: future.done() or handler_db.value(WAITING_FOR_A_LOCK))
        looking.rollback()
        assert future.result(PATIENCE)


WAITING_FOR_A_LOCK = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def _claim(db):
    make_due(db)
    with db.database.writing() as tx:
        return handler_jobs.claim(tx, [("x", "bounced")], synchronous=True).job


def test_a_foreign_reconciled_event_calls_no_handler(handler_db):
    """Mailglass's own reconciler does not write to the outbox."""
    delivery_id = factories.delivery(handler_db, "m-1")
    orphan_id = factories.orphan(handler_db, factories.postmark("m-1"), type="bounced")
    factories.insert(handler_db, events=[factories.reconciled_row(orphan_id, delivery_id)])
    mailglass_reconcile.reconcile()
    assert states(handler_db) == {}


def test_values_that_python_cannot_hold_are_replaced(handler_db):
    """Times beyond 9999, a provider that is not a text, and an erased delivery are tried."""
    received = leaving("all")
    delivery_id = factories.delivery(handler_db, "m-1")
    factories.orphan(handler_db, factories.postmark("m-1"), type="bounced", occurred_at="infinity")
    mailglass_reconcile.reconcile()
    handler_db.run("DELETE FROM mailglass_deliveries WHERE id = CAST(:id AS uuid)", id=delivery_id)
    handler_db.broken.update({"I1", "I5", "I2"})
    assert dispatch().handled == 1
    assert received[0].occurred_at.tzinfo is dt.UTC
    assert received[0].recipient is received[0].message_id is None


def test_a_handler_gets_no_recipient_of_a_person_who_was_erased_meanwhile(handler_db):
    """The random address that replaces it must not be stored as one to suppress."""
    received = leaving("all")
    link_orphans(handler_db)
    with handler_db.engine.begin() as connection:
        mailglass_reconcile.erase(connection, recipient=factories.RECIPIENT)
    assert dispatch().handled == 1
    assert received[0].recipient is None


def test_a_handler_s_error_is_logged_by_its_class_and_place_only(handler_db, caplog):
    """Its message may contain an address."""
    failing("bad", ValueError("Ada@Example.com"))
    link_orphans(handler_db)
    with caplog.at_level(logging.DEBUG):
        dispatch()
    assert "handler bad failed on event" in caplog.text
    assert "ValueError at handling.py:" in caplog.text
    assert "@" not in caplog.text


def test_a_failing_handler_logs_one_line_for_each_cause_and_minute(handler_db, caplog):
    """Thousands of events fail with one error; another error is another cause."""
    failing("worse", ValueError())
    failing("worst", KeyError())
    link_orphans(handler_db, 5)
    assert dispatch().failed == 10
    lines = [record.getMessage() for record in caplog.records if "failed on event" in record.getMessage()]
    assert sorted(line.split()[1] for line in lines) == ["worse", "worst"]


def test_without_types_nothing_is_written(db):
    """An installation without handlers has no extra cost."""
    link_orphans(db, 2)
    with db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"))
    assert states(db) == {}


def test_a_batch_writes_its_jobs_with_its_links(handler_db):
    """One statement links any number of events, projects them, closes the orphans and enqueues jobs."""
    handle(handler_db, ("audit", "bounced"), ("suppress", "bounced"))
    with meter.statements(handler_db.engine) as sent:
        link_orphans(handler_db, 20)
    assert len([text for text in sent if "_link_v1" in text or ".mailglass_handler_outbox" in text]) == 1
    assert states(handler_db) == {"waiting": 40}


def test_a_repeated_event_is_in_the_outbox_once(handler_db):
    """It is recorded twice and linked later."""
    received = leaving("all")
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"))
        record(connection, event("m-1", "bounced"))
    factories.delivery(handler_db, "m-1")
    handler_db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '5 minutes'")
    mailglass_reconcile.reconcile()
    mailglass_reconcile.reconcile()
    dispatch()
    assert len(received) == 1
