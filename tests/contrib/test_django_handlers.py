"""Handlers in Django: what they write by the ORM is committed with the note that they ran, or not at all."""

import pytest
from anymail_payloads import POSTMARK
from anymail_stories import ANN, STORY, Message
from django.db import connection as djangos
from django.db import transaction
from django.db.utils import ProgrammingError

from handling import effects, leaving, make_due, states
from mailglass_reconcile import DatabaseUnavailableError, dispatch, on_event

EFFECT = "INSERT INTO witness.effects VALUES (%s, %s)"


@pytest.fixture
def told(hooked, app, backends, post):
    """A message whose events have reached its delivery, and wait for handlers."""
    post(Message.accepted(POSTMARK, 1, [ANN]).requests(*STORY))
    return hooked


def writing(name, *, fails=()):
    """Register a handler that writes by Django's own cursor, and then fails at some of its calls."""
    calls = []

    @on_event("*", name=name)
    def handler(_connection, event):
        calls.append(event)
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, [name, event.event_id])
            if len(calls) in fails:
                cursor.execute("SELECT nonsense")

    return calls


def test_what_a_handler_writes_by_django_is_committed_once_for_each_event(told):
    """Also if it fails in between, and beside a handler that writes through the connection that it is given."""
    calls = writing("orm", fails=(2, 3))
    given = leaving("given")
    first = dispatch()
    events = told.value("SELECT count(*) FROM mailglass_hook_outbox")
    assert (first.failed, effects(told)) == (2, {"orm": events - 2, "given": events})
    make_due(told)
    dispatch()
    assert effects(told) == {"orm": events, "given": events}
    assert states(told) == {"dispatched": events}
    assert (len(calls), len(given)) == (events + 2, events)


def test_a_handler_that_goes_on_after_an_error_of_the_database_has_failed(told):
    """Postgres has undone what it wrote, so the note that it ran is not kept either."""

    @on_event("delivered", name="careless")
    def handler(_connection, event):
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, ["careless", event.event_id])
            with pytest.raises(ProgrammingError):
                cursor.execute("SELECT nonsense")

    told.hooked.clear()
    assert dispatch().failed == 1
    assert effects(told) == {}


def test_a_handler_cannot_commit(told):
    """Neither by Django nor through the connection that it is given."""
    told.hooked.clear()

    @on_event("delivered", name="django")
    def by_django(_connection, event):
        transaction.commit()

    @on_event("delivered", name="given")
    def by_the_connection(connection, event):
        with djangos.cursor() as cursor:
            cursor.execute(EFFECT, ["given", event.event_id])
        connection.commit()

    result = dispatch()
    assert (result.handled, result.failed, effects(told)) == (0, 2, {})


def test_a_database_that_is_away_is_named_as_django_names_it(told):
    """In one line, as every error of ours."""
    writing("orm")
    kept = dict(djangos.settings_dict)
    djangos.close()
    djangos.settings_dict.update(NAME="nowhere")
    try:
        with pytest.raises(DatabaseUnavailableError, match=r"DATABASES\['default'\]"):
            dispatch()
    finally:
        djangos.settings_dict.update(kept)
    told.hooked.clear()
