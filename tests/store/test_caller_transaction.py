"""The caller's transaction: which connections are accepted, and what is restored or kept if a call fails."""

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import factories
from handling import handle
from mailglass_reconcile import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidEventError,
    MailglassReconcileError,
    Sent,
    append,
    find_orphans,
    record_send,
)
from meter import before_statements
from own_settings import OWN, settings_of, take
from recording import LEDGER, NOW, event, record


def append_one(connection):
    """Append a single event."""
    return append(connection, tenant_id="acme", type="sent", occurred_at=NOW)


WRITERS = pytest.mark.parametrize("write", [record, append_one])


def test_settings_are_the_callers_again_when_all_went_well(db):
    """Every writer is tried, with an orphan and with an existing delivery; times in the ledger are in UTC."""
    factories.delivery(db, "m-1")
    with db.engine.begin() as connection:
        take(connection)
        record(connection, event("m-1"), event("m-2"))
        sent = Sent(recipient="żoë@example.com", message_id="m-3")
        record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=[sent])
        append_one(connection)
        find_orphans(connection, tenant_id=factories.TENANT)
        assert settings_of(connection) == OWN
        assert connection.exec_driver_sql("SELECT current_setting('enable_sort')").scalar_one() == "on"
    assert db.value("SELECT recipient FROM mailglass_deliveries WHERE provider_message_id = 'm-3'") == "żoë@example.com"
    offset = "SELECT max(abs(extract(epoch FROM inserted_at - now() AT TIME ZONE 'UTC'))) FROM mailglass_events"
    assert db.value(offset) < 600


NAIVE = NOW.replace(tzinfo=None)


@pytest.mark.parametrize(
    "write",
    [
        lambda connection: record(connection, event(), event(occurred_at=NAIVE)),
        lambda connection: record(connection, event(), event(metadata={"k": object()})),
        lambda connection: append(connection, tenant_id="acme", type="sent", occurred_at=NAIVE),
    ],
)
def test_settings_are_the_callers_again_when_an_event_is_refused(db, write):
    """The rest of the caller's transaction is unaffected."""
    with db.engine.begin() as connection:
        take(connection)
        with pytest.raises(InvalidEventError):
            write(connection)
        assert settings_of(connection) == OWN


def test_an_error_of_the_database_rolls_back_our_own_work_only(db):
    """The caller's writes and settings stay, no half of a webhook does, and no value is quoted."""
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK (type <> 'clicked')")
    delivery = factories.delivery(db, "m-1")
    with db.engine.begin() as connection:
        take(connection)
        connection.exec_driver_sql("UPDATE mailglass_deliveries SET stream = 'bulk'")
        with pytest.raises(MailglassReconcileError, match="23514") as caught:
            record(connection, event(recipient="ada@example.com"), event("m-1", "clicked"))
        assert settings_of(connection) == OWN
    assert "ada@" not in repr(caught.value)
    assert db.value(LEDGER) == 0
    assert db.rows("SELECT id::text, stream, lock_version FROM mailglass_deliveries") == [(delivery, "bulk", 1)]


ONE_SEND = Sent(recipient="ada@example.com", message_id="m-2")


@pytest.mark.parametrize(
    "write",
    [
        lambda connection: record(connection, event("m-1")),
        lambda connection: record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=[ONE_SEND]),
    ],
)
def test_nothing_is_written_if_the_handlers_outbox_refuses_it(db, write):
    """The function rolls back all of its work, though the ledger had accepted the event."""
    db.run("ALTER TABLE mailglass_handler_outbox ADD CONSTRAINT odd CHECK (type = '')")
    factories.delivery(db, "m-1")
    handle(db, ("audit", "delivered"), ("audit", "dispatched"))
    with db.engine.begin() as connection, pytest.raises(MailglassReconcileError, match="23514"):
        write(connection)
    assert db.value(LEDGER) == 0


@WRITERS
def test_an_autocommit_connection_is_refused(db, write):
    """Each statement would be a transaction: half a webhook, or a lost projection."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            write(connection, *([event()] if write is record else []))
        assert db.value(LEDGER) == 0


@WRITERS
def test_a_raw_psycopg_connection_is_told_what_to_pass_instead(db, write):
    """The TypeError is one line, and nothing happens."""
    with (
        psycopg.connect(db.url) as connection,
        pytest.raises(TypeError, match="pass a SQLAlchemy Connection or Session"),
    ):
        write(connection)


def test_a_session_uses_its_own_connection_and_transaction(db):
    """Its rollback drops our rows and its commit keeps them; a scoped session too."""
    with Session(db.engine) as session:
        append_one(session)
        record(session, event())
        assert session.execute(sa.text(LEDGER)).scalar_one() == 2
        session.rollback()
        record(session, event())
        session.commit()
    scoped = scoped_session(sessionmaker(db.engine))
    append_one(scoped)
    scoped.commit()
    scoped.remove()
    assert db.value(LEDGER) == 2


def test_a_webhook_without_events_writes_nothing(db):
    """It returns nothing."""
    with db.engine.begin() as connection:
        assert record(connection) == []


def test_a_delivery_that_is_deleted_in_between_leaves_an_orphan(db):
    """Another session deletes it between the decision and the lock."""
    factories.delivery(db, "m-1")

    def delete(_connection, statement, _parameters):
        if "_append_v1" in statement:
            db.run("DELETE FROM mailglass_deliveries")

    with db.engine.begin() as connection, before_statements(connection, delete):
        (recorded,) = record(connection, event("m-1"))
    assert recorded.event_id is not None
    assert recorded.delivery_id is None
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 1


def test_a_pool_learns_from_the_first_call_that_its_connections_are_lost(db):
    """The next call opens a new one."""
    engine = sa.create_engine(sa.make_url(db.url).set(drivername="postgresql+psycopg"), pool_size=2)
    with engine.connect() as connection, engine.connect() as second_connection:
        pids = [
            pooled_connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            for pooled_connection in (connection, second_connection)
        ]
    for pid in pids:
        db.run("SELECT pg_terminate_backend(:pid, 10000)", pid=pid)
    with Session(engine) as session, pytest.raises(DatabaseUnavailableError):
        record(session, event())
    with Session(engine) as session:
        record(session, event())
        session.commit()
    engine.dispose()
    assert db.value(LEDGER) == 1


@pytest.mark.parametrize("threshold", [None, 0, 5])
def test_the_application_decides_when_its_connection_prepares_statements(db, threshold):
    """Its settings apply to our statements too: PgBouncer may not keep prepared statements."""
    url = sa.make_url(db.url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, connect_args={"prepare_threshold": threshold})
    with engine.begin() as connection:
        for number in range(7):
            record(connection, event(f"m-{number}", provider_event_id=str(number)))
            sent = Sent(recipient="ada@example.com", message_id=f"m-{number}")
            record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=[sent])
        prepared = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
    engine.dispose()
    assert (prepared > 0, db.value(LEDGER)) == (threshold is not None, 21)
