"""The receiver's log: one line for each webhook, without an address."""

import json
import logging
import threading

import pytest

import senders
from mailglass_reconcile import Sent, broadcast, record_send
from mailglass_reconcile.receiver.admission import AdmissionControl
from mailglass_reconcile.rules import log_throttle
from receivers import first, mount_receiver, now, post
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import AUTH

pytestmark = pytest.mark.version_independent


def batch(*message_ids: str) -> senders.Posted:
    """Return a request of SendGrid with an event for each message."""
    common = {"event": "open", "timestamp": 1_772_366_400, "email": "ada@example.com"}
    events = [{**common, "sg_message_id": message_id, "sg_event_id": message_id} for message_id in message_ids]
    return senders.sign_request("sendgrid", json.dumps(events).encode(), now())


def lines(caplog) -> list[str]:
    """Return the receiver's lines of the log."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("mailglass_reconcile.receiver")]


def test_a_webhook_is_one_line_with_the_results_of_its_events(db, caplog):
    caplog.set_level(logging.INFO)
    with db.engine.begin() as connection:
        recorded = record_send(
            connection, provider="sendgrid", sent=[Sent(recipient="ada@example.com", message_id="m-1")]
        )
    broadcast(recorded)
    requests = batch("m-1", "m-2"), batch("m-1", "m-2", "m-3"), batch("m-1"), batch()
    post(mount_receiver(), "/webhooks/sendgrid", *requests)
    assert lines(caplog) == [
        "sendgrid: 2 events, 1 attached, 1 waiting",
        "sendgrid: 3 events, 1 waiting, 2 repeated",
        "sendgrid: 1 event, 1 repeated",
        "sendgrid: 0 events",
    ]
    assert "ada" not in caplog.text


def test_an_event_that_waits_for_more_than_its_delivery_is_counted_by_its_state(db, caplog):
    """It is known while the webhook is recorded, and `waiting` would hide that nothing will link it by itself."""
    caplog.set_level(logging.INFO)
    with db.engine.begin() as connection:
        record_send(connection, provider="sendgrid", sent=[Sent(recipient="bob@example.com", message_id="m-1")])
    post(mount_receiver(), "/webhooks/sendgrid", batch("m-1", "m-2"))
    assert lines(caplog) == ["sendgrid: 2 events, 1 waiting, 1 recipient_mismatch"]


def test_an_unknown_provider_is_a_warning_once_a_minute(db, caplog, monkeypatch):
    """The line suggests a name, unless it may be a person's; a provider without a secret has a line of its own."""
    at = 100.0
    monkeypatch.setattr(log_throttle.time, "monotonic", lambda: at)
    receiver = mount_receiver(secrets={"postmark": AUTH})
    paths = ["postmrk%0A", "ada@example.com", "x" * 5_000, "mailgun", "mailgun"]
    for time in (100.0, 130.0, 160.0):
        at = time
        for path in paths:
            assert post(receiver, f"/webhooks/{path}", first("postmark"))[0].status_code == 404
    assert [line.partition("404: ")[2] for line in lines(caplog)] == [
        "its address ends with no provider's name, but 'postmrk\\n'",
        "no secret is configured for this provider (MAILGLASS_WEBHOOK_SECRETS)",
    ] * 2
    at = 230.0
    post(receiver, "/webhooks/ada@example.com", first("postmark"))
    assert "ada" not in caplog.text


def test_a_wait_for_a_certificate_that_is_too_long_is_a_warning(db, caplog):
    """Strangers can fill the threads that wait, as they can fill the queue of the verification."""
    shop = mount_receiver()
    shop.routes[0].app.admission = AdmissionControl(turn_seconds=0.1)
    end, threads = threading.Event(), shop.routes[0].app._waiting_threads
    try:
        for _ in range(threads._max_workers):
            threads.submit(end.wait)
        assert post(shop, "/webhooks/ses", first("ses"))[0].status_code == 503
    finally:
        end.set()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "a webhook of ses was refused: too many webhooks are in flight")
    ]
