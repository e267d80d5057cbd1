"""Django's own connection under SQLAlchemy: Django commits or rolls back what is written there."""

import datetime as dt
import unittest

import psycopg
import pytest
import sqlalchemy as sa
from django.apps import apps
from django.db import connection as djangos
from django.db import connections, transaction
from django.test import TestCase, override_settings

import mailglass_reconcile
from django_project import another_database
from mailglass_reconcile import DatabaseRefusedError, Sent, WebhookEvent, record_send, record_webhook
from mailglass_reconcile.contrib.django import connection
from mailglass_reconcile.contrib.django import database as django_database
from mailglass_reconcile.errors import ConfigurationError

pytestmark = [pytest.mark.usefixtures("shop"), pytest.mark.python_dependent]

EVENTS = "SELECT count(*) FROM mailglass_events"
ORDERS = "SELECT array_agg(number ORDER BY number) FROM shop_order"
XACT = "SELECT pg_current_xact_id()::text"


@pytest.fixture
def shop(app, db):
    """Install our app and a table of the application."""
    db.run("CREATE TABLE shop_order (number integer PRIMARY KEY)")


def order(number):
    """Write a row of the application."""
    with djangos.cursor() as cursor:
        cursor.execute("INSERT INTO shop_order VALUES (%s)", [number])


def send(connection, message_id="m-1"):
    """Record a send."""
    return record_send(connection, provider="postmark", sent=[Sent(recipient="ann@example.org", message_id=message_id)])


def webhook(connection, message_id="m-1"):
    """Record an event."""
    at = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
    event = WebhookEvent(type="delivered", occurred_at=at, provider_event_id=1, message_id=message_id)
    return record_webhook(connection, provider="postmark", events=[event])


def record_refused_webhook():
    """Record a send, and an event that the database refuses."""
    with connection() as shared_connection:
        send(shared_connection)
        shared_connection.exec_driver_sql("SET LOCAL transaction_read_only = on")
        webhook(shared_connection)


def nonsense():
    """Record a send, and run a statement that Postgres does not know."""
    with connection() as shared_connection:
        send(shared_connection)
        shared_connection.exec_driver_sql("SELECT nonsense")


def rows(db):
    """Return the number of events, and the application's orders."""
    return db.value(EVENTS), db.value(ORDERS)


def test_what_is_written_commits_with_the_applications_own_and_not_before(db):
    with transaction.atomic():
        order(1)
        with connection() as shared_connection:
            (recorded,) = webhook(shared_connection)
            (sent,) = send(shared_connection)
            transaction_id = shared_connection.exec_driver_sql(XACT).scalar_one()
        order(2)
        with djangos.cursor() as cursor:
            cursor.execute(XACT)
            assert cursor.fetchone() == (transaction_id,)
        assert rows(db) == (0, None)
    assert (recorded.delivery_id, sent.linked) == (None, 1)
    assert rows(db) == (3, [1, 2])


def test_a_rollback_of_the_application_drops_our_rows(db):
    """Neither our rows nor the application's stay."""
    with transaction.atomic():
        order(1)
        with connection() as shared_connection:
            send(shared_connection)
        transaction.set_rollback(True)
    assert rows(db) == (0, None)


def test_a_rolled_back_savepoint_of_the_application_drops_our_rows(db):
    """The application continues and keeps the rest."""
    with transaction.atomic():
        order(1)
        with connection() as shared_connection:
            send(shared_connection, "m-1")
        with transaction.atomic():
            order(2)
            with connection() as shared_connection:
                send(shared_connection, "m-2")
            transaction.set_rollback(True)
        order(3)
    assert rows(db) == (1, [1, 3])


@pytest.mark.parametrize("first", [True, False], ids=["in the first use", "in a later one"])
def test_an_error_of_ours_keeps_the_rows_of_the_application(db, first):
    """Whether the database refuses or the block raises, the savepoint is rolled back."""
    django_database._shared_engine.cache_clear()
    if not first:
        with connection():
            pass
    with transaction.atomic():
        order(1)
        with pytest.raises(DatabaseRefusedError):
            record_refused_webhook()
        order(2)
        with pytest.raises(sa.exc.ProgrammingError):
            nonsense()
        order(3)
    assert rows(db) == (0, [1, 2, 3])


def test_in_autocommit_mode_a_block_is_a_transaction(db):
    """The block commits at its end."""
    with connection() as shared_connection:
        send(shared_connection)
        assert rows(db) == (0, None)
    assert rows(db) == (1, None)
    assert djangos.get_autocommit()


def test_the_connection_is_as_it_was_afterwards(db):
    """Settings, cursors and notice handlers are Django's again."""
    djangos.ensure_connection()
    handlers = list(djangos.connection._notice_handlers)
    with transaction.atomic(), djangos.cursor() as cursor:
        cursor.execute("SHOW search_path")
        before = cursor.fetchone()
        for _ in range(3):
            with connection() as shared_connection:
                send(shared_connection)
        cursor.execute("SHOW search_path")
        assert cursor.fetchone() == before
    assert djangos.connection._notice_handlers == handlers


def test_it_works_in_a_testcase_of_djangos(db):
    """The test case rolls back at its end."""
    counted = []

    class Case(TestCase):
        def setUp(self):
            with connection() as shared_connection:
                send(shared_connection)

        def test_one(self):
            with self.captureOnCommitCallbacks(execute=True) as callbacks, connection() as shared_connection:
                django_database.after_commit(send(shared_connection))
            assert callbacks
            with djangos.cursor() as cursor:
                cursor.execute(EVENTS)
                counted.append(cursor.fetchone()[0])

        test_two = test_one

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.errors, result.failures, counted) == ([], [], [1, 1])
    assert db.value(EVENTS) == 0


@pytest.mark.parametrize("name", ["absent", "other"])
def test_a_database_that_is_not_postgres_is_refused_by_name(name):
    """The error names the setting."""
    message = f"DATABASES\\['{name}'\\].*MAILGLASS_DATABASE_ALIAS"
    with another_database(ENGINE="django.db.backends.sqlite3"), pytest.raises(ConfigurationError, match=message):
        connection(name).__enter__()


def test_the_tables_may_be_in_another_database_than_the_applications(app, monkeypatch):
    """Receivers, models and our own connections use `MAILGLASS_DATABASE_ALIAS`."""
    mailglass_reconcile.configure()
    with another_database(), override_settings(MAILGLASS_DATABASE_ALIAS="other"):
        monkeypatch.setitem(connections["default"].settings_dict, "NAME", "nowhere")
        app.ready()
        with connection() as shared_connection:
            send(shared_connection)
        assert apps.get_model("mailglass_reconcile", "Delivery").objects.get().provider == "postmark"
        assert mailglass_reconcile.reconcile().status == "ok"


def test_our_own_connections_have_the_role_and_the_options_of_djangos(monkeypatch):
    """This includes `assume_role` and libpq's options, but not Django's cursors or prepared statements."""
    options = {"assume_role": "pg_monitor", "application_name": "shop"}
    monkeypatch.setitem(djangos.settings_dict, "OPTIONS", options)
    with django_database.engine("default").connect() as own_connection:
        row = own_connection.exec_driver_sql("SELECT current_user, current_setting('application_name')").one()
        driver = own_connection.connection.driver_connection
        assert (*row, driver.cursor_factory, driver.prepare_threshold) == ("pg_monitor", "shop", psycopg.Cursor, None)
