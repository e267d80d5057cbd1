"""Anymail's signals in the Django app: what is recorded, for which tenant, and what an error costs."""

import datetime as dt
import json
import logging
import re
import socket
from contextlib import suppress

import pytest
from anymail.signals import tracking
from django.apps import apps
from django.db import connection as djangos
from django.db import transaction
from django.db.utils import ProgrammingError
from django.test import override_settings
from pydantic import SecretStr

import mailglass_reconcile
from anymail_sends import ANN, BOB, STORY, Message
from anymail_webhooks import POSTMARK, SENDGRID
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.contrib.django import connection, project
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub import flush

pytestmark = [pytest.mark.usefixtures("app", "backends"), pytest.mark.python_dependent]

LEDGER = "SELECT count(*) FROM mailglass_events"
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no more %', NEW.metadata; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def beyond_all_times(event, **_options):
    """Give an event a time that no database can store and that only Anymail can read."""
    if event.event_type == "clicked":
        event.esp_event = None
        event.timestamp = dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))


def fail(subject):
    """Fail as a tenant function."""
    raise KeyError(ANN)


def lines(caplog):
    """Return the log lines of level ERROR."""
    result = [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR and not record.exc_info
    ]
    assert not [line for line in result if "\n" in line or ANN in line]
    return [line for line in result if "recorded" in line or "skipped" in line]


@pytest.mark.parametrize(
    ("tenant", "reason"),
    [
        (fail, r"KeyError in .*test_signals.py:\d+"),
        ("nowhere.tenant", "MAILGLASS_TENANT: cannot import nowhere.tenant"),
        (lambda subject: 5, "the value that MAILGLASS_TENANT returns must be a string"),
        ("a" * 600, "MAILGLASS_TENANT must be a string"),
    ],
    ids=["function", "name", "result", "text"],
)
def test_what_has_no_tenant_is_not_recorded(db, post, caplog, tenant, reason):
    """The default tenant would keep it for good. A line has the ids of a send; a provider repeats its webhook."""
    with override_settings(MAILGLASS_TENANT=tenant):
        message = Message.send_accepted(POSTMARK, 1)
        with pytest.raises(ConfigurationError, match=reason):
            post(message.requests(*STORY))
    assert db.value(LEDGER) == 0
    (line,) = [line for line in lines(caplog) if "record it manually" in line]
    assert re.match(f"a send by Postmark was not recorded: .*{reason}", line)
    assert f"(tenant ?, message ids {message.ids[ANN]}); record it manually: " in line
    db.broken.add("I9")  # an id may look like an address


def test_a_send_that_cannot_be_recorded_costs_its_caller_nothing(db, caplog):
    """The mail has been sent: `send` returns, the transaction goes on, and one line has tenant and message ids."""
    db.run(REFUSE)
    with transaction.atomic():
        with djangos.cursor() as cursor:
            cursor.execute("CREATE TABLE shop_order (number integer)")
        message = Message.send_accepted(POSTMARK, 1)
    assert db.value("SELECT count(*) FROM shop_order") == 0
    assert db.value(LEDGER) == 0
    (line,) = lines(caplog)
    assert line.startswith("a send by Postmark was not recorded: the database refused a statement (SQLSTATE P0001)")
    assert f"(tenant default, message ids {message.ids[ANN]}); record it manually: " in line
    db.broken.add("I9")  # an id may look like an address


def test_a_send_in_a_transaction_that_has_failed_already_does_not_raise(db, caplog):
    """The application caught an error of the database, and its next statement fails with the reason."""
    with transaction.atomic():
        with djangos.cursor() as cursor, pytest.raises(ProgrammingError):
            cursor.execute("SELECT nonsense")
        Message.send_accepted(POSTMARK, 1)
    (line,) = lines(caplog)
    assert line.startswith("a send by Postmark was not recorded: InternalError in ")
    db.broken.add("I9")  # an id may look like an address
    assert db.value(LEDGER) == 0


def test_an_event_that_can_never_be_recorded_is_skipped_and_the_rest_of_its_batch_is_recorded(db, post, caplog):
    """Otherwise the provider would send the batch again for ever."""
    message = Message.send_accepted(SENDGRID, 1)
    (request,) = message.requests(*STORY)
    document = json.loads(request["data"])
    document[1]["anymail_id"] = [document[1]["anymail_id"]]
    tracking.disconnect(dispatch_uid="mailglass_reconcile.on_tracking")
    tracking.connect(beyond_all_times, dispatch_uid="beyond")
    apps.get_app_config("mailglass_reconcile").connect()
    post([{**request, "data": json.dumps(document)}])
    tracking.disconnect(dispatch_uid="beyond")
    assert db.value(LEDGER) == 2 + len(STORY) - 2
    assert [delivery["last_event_type"] for delivery in message.deliveries(db)] == ["opened", "dispatched"]
    assert [line.partition(":")[0] for line in lines(caplog)] == ["an event of SendGrid was skipped"] * 2


def test_a_payload_that_cannot_be_read_is_skipped(db, caplog):
    """Anymail reads it, but it has a value that no provider sends."""
    tracking.send(None, event=object(), esp_name="Postmark")
    assert lines(caplog)[0].startswith("an event of Postmark was skipped: AttributeError in ")
    assert db.value(LEDGER) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "tenant", ["acme", lambda subject: "acme", f"{__name__}.acme"], ids=["text", "function", "name"]
)
def test_rows_belong_to_the_tenant_of_the_setting(db, post, tenant):
    with override_settings(MAILGLASS_TENANT=tenant):
        post(Message.send_accepted(POSTMARK, 1).requests(*STORY))
    assert db.rows("SELECT DISTINCT tenant_id FROM mailglass_events") == [("acme",)]


def acme(subject):
    """Return the tenant of a message or an event."""
    assert hasattr(subject, "anymail_status") or subject.recipient in (ANN, BOB)
    return "acme"


def test_a_text_is_also_the_tenant_of_calls_without_one(db):
    """`record_send` in application code uses it, also if a test changes the setting."""
    mailglass_reconcile.configure()
    with override_settings(MAILGLASS_TENANT="acme"), connection() as shared_connection:
        record_send(shared_connection, provider="postmark", sent=[Sent(recipient=ANN, message_id="m-1")])
    assert db.rows("SELECT DISTINCT tenant_id FROM mailglass_events") == [("acme",)]


def test_a_text_with_a_dot_must_name_a_function():
    """A misspelled name must not become a tenant."""
    with override_settings(MAILGLASS_TENANT="acme.example"), pytest.raises(ConfigurationError, match="cannot import"):
        project.load_tenant_function()


def test_what_was_attached_is_published_after_the_commit_and_not_after_a_rollback(db, post):
    """The checker compares each message with the ledger; this test counts them."""
    with transaction.atomic():
        message = Message.send_accepted(POSTMARK, 1)
        post(message.requests(*STORY[:2]))
        assert db.witness.messages() == []
    messages = db.witness.messages()
    assert len(messages) == 4
    with transaction.atomic():
        post(message.requests(*STORY[2:]))
        transaction.set_rollback(True)
    assert db.witness.messages() == []
    db.witness.messages = lambda: messages


def calls_of(deaf):
    """Return the number of calls to a server that never answers."""
    deaf.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            deaf.accept()[0].close()
            count += 1
    return count


def test_a_batch_asks_a_redis_that_does_not_answer_once(db, post):
    """Anymail passes its events one by one; their broadcasts and their second look are made once per request."""
    message = Message.send_accepted(SENDGRID, 1)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf:
        url = SecretStr(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"redis_url": url}))
        post(message.requests(*STORY))
        flush()
        assert calls_of(deaf) == 1
    assert [delivery["last_event_type"] for delivery in message.deliveries(db)] == ["clicked", "bounced"]
