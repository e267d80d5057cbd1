"""Handlers in Django: what they write with the ORM is committed with their job, or not at all."""

import unittest
import uuid
from contextlib import nullcontext, suppress
from functools import partial

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection as djangos
from django.db import connections, transaction
from django.db.utils import IntegrityError, ProgrammingError
from django.test import TestCase
from sqlalchemy.orm import Session

import handling
from anymail_sends import ANN, STORY, Message
from anymail_webhooks import POSTMARK
from django_project import another_database
from handling import effects, enqueue, leaving, make_due, states
from mailglass_reconcile import ConfigurationError, DatabaseUnavailableError, dispatch, on_event

pytestmark = pytest.mark.python_dependent

EFFECT = "INSERT INTO witness.effects VALUES (%s, %s)"


@pytest.fixture
def site(app):
    """A table of the application with a constraint."""
    call_command("migrate", "contenttypes", verbosity=0)


@pytest.fixture
def waiting_db(handler_db, app, backends, post):
    """A message whose events have reached its delivery and wait for handlers."""
    post(Message.send_accepted(POSTMARK, 1, [ANN]).requests(*STORY))
    return handler_db


def writing(name, *, fails=()):
    """Register a handler that writes through Django's cursor and then fails on some of its calls."""
    calls = []

    @on_event("*", name=name)
    def handler(_connection, event):
        calls.append(event)
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, [name, event.event_id])
            if len(calls) in fails:
                cursor.execute("SELECT nonsense")

    return calls


def test_what_a_handler_writes_through_django_is_committed_once_for_each_event(waiting_db):
    """It may fail in between, and run beside a handler that writes through its own connection."""
    calls = writing("orm", fails=(2, 3))
    received = leaving("given")
    enqueue(waiting_db)
    first = dispatch()
    events = waiting_db.value("SELECT count(DISTINCT event_id) FROM mailglass_handler_outbox")
    assert (first.failed, effects(waiting_db)) == (2, {"orm": events - 2, "given": events})
    make_due(waiting_db)
    dispatch()
    assert effects(waiting_db) == {"orm": events, "given": events}
    assert states(waiting_db) == {"done": 2 * events}
    assert (len(calls), len(received)) == (events + 2, events)


def test_a_handler_that_goes_on_after_an_error_of_the_database_has_failed(waiting_db):
    """Postgres has rolled back what it wrote, so the job is not marked done either."""

    @on_event("delivered", name="careless")
    def handler(_connection, event):
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, ["careless", event.event_id])
            with pytest.raises(ProgrammingError):
                cursor.execute("SELECT nonsense")

    enqueue(waiting_db)
    assert dispatch().failed == 1
    assert effects(waiting_db) == {}


def test_a_handler_cannot_commit(waiting_db):
    """Django and the handler's connection both refuse."""

    @on_event("delivered", name="django")
    def by_django(_connection, event):
        transaction.commit()

    @on_event("delivered", name="given")
    def by_the_connection(connection, event):
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, ["given", event.event_id])
        connection.commit()

    enqueue(waiting_db)
    result = dispatch()
    assert (result.handled, result.failed, effects(waiting_db)) == (0, 2, {})


def test_an_unreachable_database_is_named_as_django_names_it(waiting_db):
    """The error is one line, like every error of ours."""
    writing("orm")
    stored = dict(djangos.settings_dict)
    djangos.close()
    djangos.settings_dict.update(NAME="nowhere")
    try:
        with pytest.raises(DatabaseUnavailableError, match=r"DATABASES\['default'\]"):
            dispatch()
    finally:
        djangos.settings_dict.update(stored)


def careless(name, act, *types):
    """Register a handler that writes, and then does what makes Django roll back without an error."""

    @on_event(*(types or ("delivered",)), name=name)
    def handler(_connection, event):
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, [name, event.event_id])
        act()


def _catch():
    """Catch an error without `atomic()`, which makes Postgres roll back to the last savepoint."""
    model = apps.get_model("contenttypes", "ContentType")
    with suppress(IntegrityError):
        model.objects.bulk_create([model(pk=10_000, app_label="shop", model=name) for name in ("a", "b")])


UNDONE = {"catches an error": _catch, "asks for a rollback": lambda: transaction.set_rollback(True)}


@pytest.mark.parametrize("act", UNDONE.values(), ids=UNDONE)
def test_a_handler_whose_work_django_rolls_back_has_failed(waiting_db, site, act):
    """It raised no error; the other handlers of the event are done."""
    careless("undone", act)
    received = leaving("given", "delivered")
    enqueue(waiting_db)
    result = dispatch()
    assert (result.handled, result.failed, effects(waiting_db)) == (1, 1, {"given": 1})
    assert (states(waiting_db)["waiting"] > 0, len(received)) == (True, 1)


def test_a_callback_that_fails_costs_no_other_handler_s_callback_and_no_count(waiting_db, caplog):
    """`on_commit` runs after the handler's commit, so an error undoes nothing."""
    callbacks_run = []

    def callback(name):
        callbacks_run.append(name)
        if name == "bad":
            raise ValueError(ANN)

    for name in ("first", "bad", "last"):
        careless(name, lambda name=name: transaction.on_commit(lambda: callback(name)))
    enqueue(waiting_db)
    result = dispatch()
    assert (result.handled, result.failed, sorted(callbacks_run)) == (3, 0, ["bad", "first", "last"])
    assert "handler bad failed on event" in caplog.text
    assert "its work was committed" in caplog.text
    assert states(waiting_db) == {"done": 3}
    assert ANN not in caplog.text


MODES = {"autocommit": nullcontext, "atomic()": transaction.atomic}


def _handlers_of_all_kinds():
    """Register handlers of which some succeed and others lose their work; return the names of those that succeed."""

    def joined(connection, event, *, ends):
        with Session(connection) as session:
            session.execute(handling.EFFECT, {"handler": f"session {ends}", "event_id": event.event_id})
            session.flush()
            getattr(session, ends)()

    for ends in ("flush", "commit", "rollback"):
        on_event("delivered", name=f"session {ends}")(partial(joined, ends=ends))
    careless("catches an error", _catch, "delivered")
    careless("catches it in atomic()", _catch_in_atomic, "delivered")
    careless("raises", _raise, "delivered")
    leaving("given", "delivered")
    return ["session flush", "session commit", "catches it in atomic()", "given"]


def _raise():
    raise ValueError


def _catch_in_atomic():
    model = apps.get_model("contenttypes", "ContentType")
    with suppress(IntegrityError), transaction.atomic():
        model.objects.bulk_create([model(pk=10_000, app_label="shop", model=name) for name in ("a", "b")])


@pytest.mark.parametrize("mode", MODES)
def test_each_effect_is_there_once_in_a_transaction_of_ours_and_in_the_application_s(waiting_db, site, mode):
    """Work that a handler flushed or rolled back itself does not matter; work that was rolled back is detected."""
    good = _handlers_of_all_kinds()
    enqueue(waiting_db)
    with MODES[mode]():
        result = dispatch()
        with djangos.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout'), current_setting('row_security')")
            assert cursor.fetchone() == ("0", "on")
    assert (result.handled, result.failed) == (len(good), 3)
    assert effects(waiting_db) == dict.fromkeys(good, 1)
    rows = waiting_db.rows("SELECT handler FROM mailglass_handler_outbox WHERE state = 'done'")
    assert sorted(row.handler for row in rows) == sorted(good)


def test_what_the_application_rolls_back_has_not_been_done(waiting_db):
    """Effects, jobs and attempts are rolled back together."""
    received = leaving("given", "delivered")
    enqueue(waiting_db)
    with suppress(ZeroDivisionError), transaction.atomic():
        assert dispatch().handled == 1
        raise ZeroDivisionError
    assert (effects(waiting_db), "done" in states(waiting_db)) == ({}, False)
    assert dispatch().handled == 1
    assert ([event.attempt for event in received], effects(waiting_db)) == ([1, 1], {"given": 1})


def test_without_autocommit_handlers_are_refused_with_one_line(waiting_db):
    """Nothing would commit their work; in `atomic()` the application does."""
    leaving("given", "delivered")
    enqueue(waiting_db)
    djangos.close()
    djangos.settings_dict["AUTOCOMMIT"] = False
    try:
        with pytest.raises(ConfigurationError, match=r"^autocommit is off in DATABASES\['default'\], so nothing"):
            dispatch()
        assert effects(waiting_db) == {}
    finally:
        djangos.close()
        djangos.settings_dict["AUTOCOMMIT"] = True


def test_dispatch_in_a_transaction_leaves_its_connections_and_its_limits_alone(waiting_db):
    """The caller's rows on both aliases stay, and its own statement may take as long as before."""
    received = leaving("given")
    enqueue(waiting_db)
    with another_database(), transaction.atomic("other"), transaction.atomic():
        for alias in ("default", "other"):
            with connections[alias].cursor() as cursor:
                cursor.execute(EFFECT, [alias, uuid.uuid4()])
        assert dispatch().handled == len(received) > 0
        with djangos.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout'), current_setting('search_path')")
            assert cursor.fetchone() == ("0", '"$user", public')
    assert effects(waiting_db) == {"default": 1, "other": 1, "given": len(received)}
    waiting_db.broken.add("I14")


def test_a_testcase_can_test_a_handler(waiting_db):
    """The test case rolls all of it back at its end."""
    received = leaving("given", "delivered")
    enqueue(waiting_db)
    handled = []

    class Case(TestCase):
        databases = ("default",)

        def test_one(self):
            handled.append(dispatch().handled)
            handled.append(dispatch().handled)

        test_two = test_one

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.errors, result.failures, handled) == ([], [], [1, 0, 1, 0])
    assert (len(received), effects(waiting_db), "done" in states(waiting_db)) == (2, {}, False)
