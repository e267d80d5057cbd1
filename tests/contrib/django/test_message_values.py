"""What a message says of itself: the values of its deliveries, and the tenant without which it is not sent."""

import asyncio
import logging
from contextvars import ContextVar

import pytest
from anymail.message import AnymailMessage
from anymail.signals import post_send
from django.db import connection, transaction
from django.test import override_settings

from mailglass_reconcile import ConfigurationError

pytestmark = [pytest.mark.usefixtures("app", "backend"), pytest.mark.python_dependent]

DELIVERY = "SELECT mailable, stream, metadata::text AS metadata FROM mailglass_deliveries"


@pytest.fixture
def backend():
    """Anymail's backend that sends nothing, and fires Anymail's signals."""
    with override_settings(EMAIL_BACKEND="anymail.backends.test.EmailBackend"):
        yield


def send(**options):
    """Send a message to Ada with these options of Anymail's, and return it."""
    message = AnymailMessage("Hello", "…", "shop@example.com", ["ada@example.com"], **options)
    message.send()
    return message


def logged(caplog):
    """Return the lines about sends, with their level."""
    return [(line.levelname, line.getMessage()) for line in caplog.records if line.levelno >= logging.WARNING
            and "send" in line.getMessage()]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"template_id": "welcome", "tags": ["a"], "metadata": {"order": 7}}, ("welcome", '{"order": 7}')),
        ({"template_id": 12}, ("12", "{}")),
        ({"tags": ["invoice", "b"]}, ("invoice", "{}")),
        ({}, ("python", "{}")),
        ({"tags": ["x" * 600 + "\n"]}, ("x" * 511 + "…", "{}")),
    ],
    ids=["template and metadata", "number", "tag", "nothing", "long"],
)
def test_a_delivery_has_the_template_or_the_first_tag_and_the_metadata_of_its_message(db, options, expected):
    send(**options)
    (row,) = db.rows(DELIVERY)
    assert tuple(row) == (expected[0], "transactional", expected[1])


def test_metadata_that_cannot_be_stored_is_left_out_with_a_warning(db, caplog):
    """Anymail sends an object's text; the send is recorded without it."""
    send(tags=["invoice"], metadata={"file": object()})
    assert [tuple(row) for row in db.rows(DELIVERY)] == [("invoice", "transactional", "{}")]
    ((level, line),) = logged(caplog)
    assert (level, line.startswith("a send is recorded without the metadata of its message: ")) == ("WARNING", True)


def returns(**values):
    """Return a function that returns these values for a message."""
    return lambda _message: values


def fail(_message):
    """Fail as an application's function."""
    raise KeyError("ada@example.com")


def test_the_settings_function_says_what_the_application_knows(db):
    """What it leaves out is the message's own."""
    values = returns(mailable="Invoice", stream="bulk")
    with override_settings(MAILGLASS_DELIVERY=values):
        send(metadata={"order": 7}, tags=["a"])
    assert [tuple(row) for row in db.rows(DELIVERY)] == [("Invoice", "bulk", '{"order": 7}')]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (fail, "KeyError in "),
        (returns(stream="fast"), "stream is not a known stream"),
        (returns(tenant="acme"), "it returned tenant; it may return mailable, stream, metadata"),
        (lambda _message: "Invoice", "it must return a mapping with some of mailable, stream, metadata"),
        ("nowhere.values", "MAILGLASS_DELIVERY: cannot import nowhere.values"),
    ],
    ids=["raises", "stream", "key", "type", "name"],
)
def test_a_function_that_fails_costs_its_values_and_not_the_send(db, caplog, function, reason):
    with override_settings(MAILGLASS_DELIVERY=function):
        send(tags=["a"])
    assert [tuple(row) for row in db.rows(DELIVERY)] == [("a", "transactional", "{}")]
    ((level, line),) = logged(caplog)
    assert (level, line.partition(": ")[0]) == ("ERROR", "a send is recorded without the values of MAILGLASS_DELIVERY")
    assert line.partition(": ")[2].startswith(reason)
    assert "ada@example.com" not in line


def divide_by_zero(_source):
    """Fail in the database, as a query of an application's function."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


@pytest.mark.parametrize(("setting", "recorded"), [("MAILGLASS_DELIVERY", 1), ("MAILGLASS_TENANT", 0)])
def test_a_query_that_fails_in_a_settings_function_leaves_the_transaction_usable(db, setting, recorded):
    with override_settings(**{setting: divide_by_zero}), transaction.atomic(), connection.cursor() as cursor:
        send(tags=["a"])
        cursor.execute("SELECT count(*) FROM mailglass_deliveries")
        assert cursor.fetchone() == (recorded,)


def count_deliveries(_message):
    """Query with Django's connection, which an event loop does not allow."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM mailglass_deliveries")
        return {"mailable": f"number {cursor.fetchone()[0]}"}


def test_a_settings_function_may_query_although_the_mail_is_sent_from_an_event_loop(db):
    async def send_in_loop():
        send()

    with override_settings(MAILGLASS_DELIVERY=count_deliveries):
        asyncio.run(send_in_loop())
    assert db.value("SELECT mailable FROM mailglass_deliveries") == "number 0"


def test_a_send_from_an_event_loop_waits_for_the_thread_once(db):
    """Both functions of the settings run in the same visit: a context is copied for each."""
    is_read = ContextVar("is_read", default=False)

    def delivery(_message):
        is_read.set(True)
        return {}

    async def send_in_loop():
        send()

    with override_settings(MAILGLASS_DELIVERY=delivery, MAILGLASS_TENANT=lambda _message: f"read {is_read.get()}"):
        asyncio.run(send_in_loop())
    assert db.value("SELECT tenant_id FROM mailglass_deliveries") == "read True"


@pytest.mark.parametrize("tenant", [fail, lambda _message: None, None], ids=["raises", "returns none", "not set"])
def test_a_mail_without_tenant_is_refused_before_the_provider_is_called_if_the_project_asks_for_it(db, tenant):
    called = []
    post_send.connect(lambda **_: called.append(1), weak=False, dispatch_uid="called")
    with override_settings(MAILGLASS_TENANT=tenant, MAILGLASS_TENANT_REQUIRED=True):
        with pytest.raises(ConfigurationError, match=r"the mail was not sent: .*MAILGLASS_TENANT"):
            send()
        assert (called, db.value("SELECT count(*) FROM mailglass_deliveries")) == ([], 0)
    with override_settings(MAILGLASS_TENANT=lambda _message: "acme", MAILGLASS_TENANT_REQUIRED=True):
        send()
    post_send.disconnect(dispatch_uid="called")
    assert db.value("SELECT tenant_id FROM mailglass_deliveries") == "acme"


def test_a_backend_whose_name_is_nearly_a_providers_is_recorded(db, caplog):
    """Its mail has been sent; the name may be right."""
    message = send()
    post_send.send(None, message=message, status=message.anymail_status, esp_name="Postmarkk")
    assert {row.provider for row in db.rows("SELECT provider FROM mailglass_deliveries")} == {"test", "postmarkk"}
    assert "no rule knows postmarkk; did you mean postmark?" in caplog.messages
