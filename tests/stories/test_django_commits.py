"""After-commit actions in Django, and connections of Django's that do not autocommit."""

import asyncio
import datetime as dt
import re
import unittest

import pytest
from anymail.message import AnymailRecipientStatus, AnymailStatus
from anymail.signals import post_send
from django.db import connection as djangos
from django.db import connections, transaction
from django.test import TestCase
from sqlalchemy.engine import make_url

import factories
from anymail_sends import ANN, STORY, Message
from anymail_webhooks import POSTMARK
from faults import proxy
from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook
from mailglass_reconcile.contrib.django import connection, database
from recording import STORE_QUERIES
from waiting import settle

pytestmark = [
    pytest.mark.usefixtures("app", "backends"),
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support"),
    pytest.mark.python_dependent,
]

ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7")

DELIVERIES = "SELECT count(*) FROM mailglass_deliveries"
EVENTS = "SELECT count(*) FROM mailglass_events"
OPEN = "SELECT count(*) FROM mailglass_open_orphans"


def send(shared_connection, message_id="m-1"):
    """Record a send of the factories' tenant."""
    sent = [Sent(recipient=ANN, message_id=message_id)]
    return record_send(shared_connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)


def receive(shared_connection, message_id="m-1"):
    """Record the webhook of that message."""
    at = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
    event = WebhookEvent(type="delivered", occurred_at=at, provider_event_id=message_id, message_id=message_id)
    return record_webhook(shared_connection, tenant_id=factories.TENANT, provider="postmark", events=[event])


def overlapping(db):
    """Record a webhook in a transaction that begins before Django's commits, and commits before it."""
    with db.engine.begin() as webhook_connection:
        receive(webhook_connection)


def test_no_value_is_in_the_text_of_a_statement(db, post):
    """Django's own cursors would put values there; early and late events and sends are recorded."""
    with db.engine.begin() as setup_connection:
        setup_connection.execution_options(no_parameters=True).exec_driver_sql(STORE_QUERIES)
    early = Message(POSTMARK, [Sent(recipient=ANN, message_id="<1-0@example.com>")])
    post(early.requests(*STORY[:1]))
    message = Message.send_accepted(POSTMARK, 1, [ANN])
    post(message.requests(STORY[2]))
    texts = [row[0] for row in db.rows("SELECT query FROM noted")]
    assert len(texts) >= 4
    assert [text for text in texts if "@" in text or "postmark" in text or ID.search(text)] == []


@pytest.fixture
def without_autocommit(app, monkeypatch):
    """Django's connection without autocommit, whose transactions the application ends, which Django advises against."""
    connections.close_all()
    monkeypatch.setitem(djangos.settings_dict, "AUTOCOMMIT", False)
    database._warn_of_autocommit.cache_clear()
    yield
    transaction.rollback()
    connections.close_all()


def test_broadcast_in_on_commit_publishes_links_and_lets_later_callbacks_run(db):
    """There is a message to publish, and an event that arrived in an overlapping transaction."""
    factories.delivery(db, "m-0")
    callbacks_run = []
    with transaction.atomic():
        with connection() as shared_connection:
            recorded = [*receive(shared_connection, "m-0"), *send(shared_connection)]
        overlapping(db)
        transaction.on_commit(lambda: broadcast(recorded))
        transaction.on_commit(lambda: callbacks_run.append(True))
    assert callbacks_run == [True]
    settle()
    assert (db.value(OPEN), db.count_links()) == (0, 1)
    assert len(db.witness.messages()) == 4


def test_broadcast_of_what_a_savepoint_of_djangos_has_undone_publishes_nothing(db):
    """The outer transaction commits without it."""
    factories.delivery(db, "m-0")
    with transaction.atomic():
        with transaction.atomic():
            with connection() as shared_connection:
                recorded = receive(shared_connection, "m-0")
            transaction.set_rollback(True)
        transaction.on_commit(lambda: broadcast(recorded))
    assert db.witness.messages() == []


def test_in_a_test_case_of_djangos_nothing_is_published(db):
    """Its transaction is never committed, so the background thread does not see what was recorded."""
    factories.delivery(db, "m-0")

    class Records(TestCase):
        def test_records(self):
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                Message.send_accepted(POSTMARK, 1, [ANN])
                database.after_commit(receive_in_django("m-0"))
            assert len(callbacks) == 2
            settle()

    result = unittest.TestResult()
    unittest.TestSuite([Records("test_records")]).run(result)
    assert (result.failures, result.errors) == ([], [])
    assert db.value(EVENTS) == 0
    assert db.witness.messages() == []


def receive_in_django(message_id):
    """Record the webhook of a message on Django's connection."""
    with connection() as shared_connection:
        return receive(shared_connection, message_id)


def test_without_autocommit_nothing_is_registered_and_one_line_says_that_the_sweep_links(
    db, without_autocommit, post, caplog
):
    """The application commits sends and events itself; Django runs no callback at such a commit."""
    message = Message.send_accepted(POSTMARK, 1, [ANN])
    with transaction.atomic():
        Message.send_accepted(POSTMARK, 2, [ANN])
    post(message.requests(*STORY[:1]))
    assert (db.value(DELIVERIES), djangos.run_on_commit) == (0, [])
    transaction.commit()
    assert (db.value(DELIVERIES), db.value(EVENTS)) == (2, 3)
    assert db.value("SELECT last_event_type FROM mailglass_deliveries ORDER BY id LIMIT 1") == "delivered"
    assert db.witness.messages() == []
    [line] = [record.getMessage() for record in caplog.records if "autocommit is off" in record.getMessage()]
    assert line.endswith("is not broadcast, and the next sweep links it")


def test_without_autocommit_a_send_from_async_code_is_not_recorded_and_a_line_says_why(db, without_autocommit, caplog):
    """Nothing would ever commit on the connection of the thread that records it."""

    async def main():
        Message.send_accepted(POSTMARK, 1, [ANN])

    asyncio.run(main())
    assert db.value(DELIVERIES) == 0
    assert "a send by Postmark was not recorded: autocommit is off in DATABASES['default']" in caplog.text
    db.broken.add("I9")  # an id may look like an address


@pytest.fixture
def through(app, db, monkeypatch):
    """Connect Django through a proxy."""
    connections.close_all()
    with proxy.postgres_proxy(db.url) as (between, url):
        monkeypatch.setitem(djangos.settings_dict, "HOST", "127.0.0.1")
        monkeypatch.setitem(djangos.settings_dict, "PORT", make_url(url).port)
        monkeypatch.setitem(djangos.settings_dict, "OPTIONS", {"sslmode": "disable", "gssencmode": "disable"})
        yield between
        connections.close_all()


def refuse(recipients=(ANN,)):
    """Send a message that the provider refuses, so that it has no id."""
    status = AnymailStatus()
    status.set_recipient_status({recipient: AnymailRecipientStatus(None, "rejected") for recipient in recipients})
    post_send.send(None, message=None, status=status, esp_name="Postmark")


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_send_whose_commit_has_lost_its_answer_is_recorded_once(db, through, fault):
    """The repetition is recognised, even if the provider refused the send and gave it no id."""
    for call in (refuse, lambda: Message.send_accepted(POSTMARK, 1, [ANN])):
        before = db.value(DELIVERIES), db.value(EVENTS)
        djangos.ensure_connection()
        through.arm(b"COMMIT\0", fault, at=1)
        call()
        assert through.dropped == 1
        assert (db.value(DELIVERIES), db.value(EVENTS)) == (before[0] + 1, before[1] + 1)


def test_an_event_whose_commit_has_lost_its_answer_is_recorded_once(db, through, post):
    message = Message.send_accepted(POSTMARK, 1, [ANN])
    djangos.ensure_connection()
    through.arm(b"COMMIT\0", "after", at=1)
    post(message.requests(*STORY[:1]))
    assert through.dropped == 1
    assert db.value(EVENTS) == 2
