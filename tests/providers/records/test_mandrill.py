"""Mandrill's events, as documented: https://mailchimp.com/developer/transactional/docs/webhooks/."""

import json
from urllib.parse import urlencode

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

EVENTS = {e.payload["event"]: e.payload for e in load_payloads("mandrill") if "event" in e.payload}
FORM = "application/x-www-form-urlencoded"


def read(*payloads):
    """Return the events of a batch."""
    return parse("mandrill", urlencode({"mandrill_events": json.dumps(payloads)}).encode(), content_type=FORM)


def test_a_delivery_is_read():
    """The page: "Delivered: message has received a response from the recipient's mail server".

    Sent since June 2026: github.com/tutorcruncher/morpheus/pull/501.
    """
    (event,) = read({**EVENTS["send"], "event": "delivered"})
    assert (event.type, event.reject_reason, event.bounce) == ("delivered", None, None)


def test_the_reply_to_a_delivery_may_stand_beside_the_message():
    """Captured: github.com/tutorcruncher/morpheus/pull/501."""
    (event,) = read({"event": "delivered", "_id": "m", "ts": 1, "diag": "250 OK", "msg": {"email": "a@b.c"}})
    assert event.smtp_status == "250"


def test_a_repeated_event_is_the_same_when_its_message_has_been_indexed_meanwhile():
    """The page: `msg` "may be empty" when the message was not yet indexed. A later open is another event."""
    first = {"event": "open", "_id": "m", "ts": 1, "ip": "192.0.2.1", "user_agent": "x", "msg": {"email": "a@b.c"}}
    (event,) = read({**first, "msg": {}})
    for repeated in (first, {**first, "msg": {"email": "a@b.c", "_id": "m", "opens": [{"ts": 1}], "state": "sent"}}):
        assert read(repeated)[0].provider_event_id == event.provider_event_id
    for changed in ({"ts": 2}, {"_id": "n"}, {"ip": "192.0.2.2"}, {"event": "click", "url": "https://shop.example"}):
        assert read({**first, **changed})[0].provider_event_id != event.provider_event_id


def test_the_id_may_be_in_the_message_only():
    """Captured: github.com/symfony/symfony, Mailer/Bridge/Mailchimp/Tests/Webhook/Fixtures."""
    message = {"ts": 1, "email": "foo@example.com", "smtp_events": None, "_id": "7761630", "diag": None}
    (event,) = read({"ts": 1365109999, "event": "send", "msg": message})
    assert (event.message_id, event.recipient, event.smtp_status) == ("7761630", "foo@example.com", None)
