"""The Django app in requests, threads and event loops: Anymail's events are recorded before the response."""

import asyncio
from base64 import b64encode

import pytest
import sqlalchemy as sa
from anymail.signals import tracking
from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import connection as djangos
from django.db import connections, transaction
from django.test import AsyncClient, Client

import senders
from anymail_sends import ANN, BOB, STORY, Message, send_accepted
from anymail_webhooks import POSTMARK, SENDGRID
from meter import round_trips, statements_in_background
from waiting import settle, wait_until

pytestmark = [
    pytest.mark.usefixtures("app", "backends"),
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support"),
    pytest.mark.python_dependent,
]

LEDGER = "SELECT count(*) FROM mailglass_events"
TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND datname = current_database()
"""
AUTHORIZATION = {"authorization": f"Basic {b64encode(senders.AUTH.encode()).decode()}"}


def post_over_wsgi(request):
    """Post a webhook, and return the response's status."""
    return Client(raise_request_exception=False, headers=AUTHORIZATION).post(**request).status_code


def post_over_asgi(request):
    """Post through Django's ASGI handler, whose views run in a thread of asgiref's."""

    async def post():
        try:
            arguments = {**request, "headers": {**AUTHORIZATION, **request["headers"]}}
            answer = await AsyncClient(raise_request_exception=False).post(**arguments)
        finally:
            await sync_to_async(connections.close_all)()
        return answer.status_code

    return asyncio.run(post())


@pytest.fixture(params=[post_over_wsgi, post_over_asgi], ids=["WSGI", "ASGI"])
def answer(request):
    """Return a function that posts a webhook in either way."""
    return request.param


@pytest.mark.parametrize("atomic", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "ATOMIC_REQUESTS"])
def test_each_event_of_a_webhook_is_recorded_before_its_answer(db, answer, monkeypatch, atomic):
    """Each is broadcast, although Anymail passes them one by one."""
    monkeypatch.setitem(djangos.settings_dict, "ATOMIC_REQUESTS", atomic)
    message = Message.send_accepted(SENDGRID, 1)
    (request,) = message.requests(*STORY)
    assert answer(request) == 200
    assert db.value(LEDGER) == 2 + len(STORY)
    assert [delivery["last_event_type"] for delivery in message.deliveries(db)] == ["clicked", "bounced"]
    wait_until(lambda: len(db.witness.messages()) == 2 * len(STORY))
    messages = db.witness.messages()
    db.witness.messages = lambda: messages


def test_a_webhook_that_cannot_be_recorded_is_an_error_and_recorded_on_redelivery(db, answer):
    """Nothing of it is stored before, and everything once afterwards."""
    message = Message.send_accepted(SENDGRID, 1)
    (request,) = message.requests(*STORY)
    db.broken.add("I3")
    db.run("ALTER TABLE mailglass_events RENAME TO hidden")
    assert answer(request) == 500
    db.run("ALTER TABLE hidden RENAME TO mailglass_events")
    assert db.value(LEDGER) == 2
    assert [answer(request), answer(request)] == [200, 200]
    assert db.value(LEDGER) == 2 + len(STORY)


@pytest.mark.parametrize("late", [False, True], ids=["in the event loop", "in a task that outlives its request"])
def test_a_send_from_async_code_is_recorded_linked_and_broadcast(db, late):
    """Django refuses queries there, so another thread records."""
    post_over_wsgi(Message.from_status(POSTMARK, send_without_our_receiver(1)).requests(*STORY[:1])[0])

    async def send():
        send_accepted("Postmark", [ANN], ["<1-0@example.com>"])

    async def request():
        task = asyncio.create_task(send())
        if not late:
            await task
        return task

    async def main():
        task = await request()
        await task

    asyncio.run(main())
    assert db.value("SELECT last_event_type FROM mailglass_deliveries") == "delivered"
    wait_until(lambda: len(db.witness.messages()) == 2)
    messages = db.witness.messages()
    db.witness.messages = lambda: messages


def send_without_our_receiver(number):
    """Return the status of a send of which our app has not been notified."""
    from anymail.signals import post_send  # noqa: PLC0415

    post_send.disconnect(dispatch_uid="mailglass_reconcile.on_post_send")
    status = send_accepted("Postmark", [ANN], [f"<{number}-0@example.com>"])
    apps.get_app_config("mailglass_reconcile").connect()
    return status


def sessions(db):
    """Return the server processes of Django's connections."""
    with djangos.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()


def test_a_transaction_looks_once_more_for_all_that_it_has_recorded(db):
    """Rolled back calls are left out; the background thread uses its own connection."""
    djangos.ensure_connection()
    before = sessions(db)
    with statements_in_background() as sent:
        with transaction.atomic():
            for number in range(1, 4):
                with transaction.atomic():
                    Message.send_accepted(POSTMARK, number, [ANN])
                    transaction.set_rollback(number == 3)
            assert sent == []
        settle()
        count = len(sent)
        assert 1 <= count <= 2, "one for all, or the first of both alone"
        with transaction.atomic():
            Message.send_accepted(POSTMARK, 4, [ANN])
            transaction.set_rollback(True)
        settle()
        assert len(sent) == count
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 2
    assert sessions(db) == before


def test_a_call_is_two_round_trips_at_most_besides_begin_and_commit(db):
    """The savepoint is sent with the first and the last statement."""
    sent, early = Message.send_accepted(POSTMARK, 1, [ANN]), Message.from_status(POSTMARK, send_without_our_receiver(2))
    calls = {
        "a send": (lambda: Message.send_accepted(POSTMARK, 3, [ANN]), 1),
        "an event": (lambda: post_over_wsgi(sent.requests(*STORY[:1])[0]), 2),
        "an early event": (lambda: post_over_wsgi(early.requests(*STORY[:1])[0]), 2),
    }
    djangos.ensure_connection()
    for name, (call, most) in calls.items():
        with round_trips(djangos.connection) as counts:
            call()
        assert counts[0] <= most + 2, name


CONTENDED = (
    "CREATE SEQUENCE attempts",
    "CREATE FUNCTION contend() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF nextval('public.attempts') = 1 THEN RAISE SQLSTATE '40001'; END IF; RETURN NULL; END $$",
    "CREATE TRIGGER contend AFTER INSERT ON mailglass_deliveries FOR EACH STATEMENT EXECUTE FUNCTION contend()",
)
"""Refuses the first send, as Postgres refuses one of two transactions."""


def test_no_send_is_lost_because_transactions_conflict(db):
    """SERIALIZABLE is the default here, and Django's connection keeps its level."""
    name = sa.make_url(db.url).database
    for sql in (f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'", *CONTENDED):
        db.run(sql)
    connections.close_all()
    Message.send_accepted(SENDGRID, 1)
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 2
    with djangos.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("serializable",)


def test_a_conflict_at_the_commit_is_retried_and_a_refusal_there_records_nothing(db):
    """Django commits for us, so its errors are ours."""
    deferred = (
        "CREATE CONSTRAINT TRIGGER contend AFTER INSERT ON mailglass_deliveries DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION contend()"
    )
    for sql in (*CONTENDED[:2], deferred):
        db.run(sql)
    sent = Message.send_accepted(POSTMARK, 1, [ANN])
    assert db.value("SELECT last_value FROM attempts") == 2
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 1
    db.run("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    db.run(deferred.replace("contend", "refuse").replace("deliveries", "events"))
    assert post_over_wsgi(sent.requests(*STORY[:1])[0]) == 500
    db.run("DROP TRIGGER refuse ON mailglass_events")
    assert db.value("SELECT count(*) FROM mailglass_events") == 1
    assert post_over_wsgi(sent.requests(*STORY[:1])[0]) == 200
    assert db.value("SELECT count(*) FROM mailglass_events") == 2


def test_the_first_send_after_a_restart_of_the_database_is_recorded(db):
    """Django keeps its connection with `CONN_MAX_AGE`, and would only notice in the next request."""
    Message.send_accepted(POSTMARK, 1, [ANN])
    db.run(TERMINATE)
    assert djangos.connection is not None
    Message.send_accepted(POSTMARK, 2, [ANN, BOB])
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 3


def test_a_receiver_of_the_application_that_fails_is_still_an_error(db, answer):
    """Anymail has read the request, and the provider sends it again."""

    def fails(**_options):
        raise KeyError(ANN)

    message = Message.send_accepted(SENDGRID, 1)
    (request,) = message.requests(*STORY)
    tracking.connect(fails)
    try:
        assert answer(request) == 500
    finally:
        tracking.disconnect(fails)
    assert answer(request) == 200
    assert db.value(LEDGER) == 2 + len(STORY)
