"""SparkPost's events, as documented: https://support.sparkpost.com/docs/tech-resources/webhook-event-reference."""

import json

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

EVENT = {
    "type": "bounce",
    "bounce_class": "1",
    "error_code": "554",
    "event_id": "92356927693813856",
    "message_id": "000443ee14578172be22",
    "raw_reason": "MAIL REFUSED - IP (19.99.99.99) is in black list",
    "reason": "MAIL REFUSED - IP (a.b.c.d) is in black list",
    "rcpt_to": "recipient@example.com",
    "raw_rcpt_to": "recipient@example.com",
    "timestamp": "1454442600",
    "transmission_id": "65832150921904138",
}


def read(class_="message_event", **fields):
    """Return the events of a batch with one."""
    return parse("sparkpost", json.dumps([{"msys": {class_: EVENT | fields}}]).encode())


@pytest.mark.parametrize(("class_", "reason", "bounce"), [("21", "other", "soft"), ("25", "blocked", "hard")])
def test_the_class_of_a_bounce_says_whether_it_is_hard(class_, reason, bounce):
    """https://support.sparkpost.com/docs/deliverability/bounce-classification-codes; the others have a payload.

    "`soft`, `block` and `undetermined` are usually temporary"; Hard and Admin are those that SparkPost suppresses for.
    """
    (event,) = read(bounce_class=class_)
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", reason, bounce)


BOUNCES = [
    pytest.param(event, id=class_)
    for event in load_payloads("sparkpost")
    if (class_ := event.payload["msys"].get("message_event", {}).get("bounce_class")) and event.bounce
]


@pytest.mark.parametrize("event", BOUNCES)
def test_a_bounce_after_the_delivery_and_a_class_as_a_number_are_read_the_same(event):
    """An `out_of_band` has the classes of a `bounce`."""
    fields = event.payload["msys"]["message_event"]
    for change in ({"type": "out_of_band"}, {"bounce_class": int(fields["bounce_class"])}):
        (parsed,) = read(**fields | change)
        assert (parsed.type, parsed.reject_reason, parsed.bounce) == (event.type, event.reason, event.bounce)


@pytest.mark.parametrize(
    ("class_", "fields"),
    [
        ("message_event", {"type": "policy_rejection", "bounce_class": "25", "error_code": "550"}),
        ("gen_event", {"type": "generation_rejection", "bounce_class": None}),
        ("message_event", {"type": "bounce", "bounce_class": "25"}),
    ],
)
@pytest.mark.parametrize("why", ["was suppressed due to system policy", "suppressed due to customer policy"])
def test_what_a_list_of_sparkposts_stops_is_suppressed(class_, fields, why):
    """Captured: github.com/anymail/django-anymail, tests/test_sparkpost_webhooks.py. Nothing was sent."""
    reply = f"550 5.7.1 recipient address {why}"
    (event,) = read(class_, **fields, raw_reason=reply, reason=reply)
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == ("suppressed", "other", None, None)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "554"),
        ({"raw_reason": "550 5.1.1 <ann@example.org> unknown"}, "550 5.1.1"),
        ({"raw_reason": None, "reason": "452 4.2.2 over quota"}, "452 4.2.2"),
        ({"type": "delay", "raw_reason": "454 4.4.4 [internal] no MX", "error_code": "454"}, "454 4.4.4"),
        ({"type": "injection", "raw_reason": None, "reason": None, "error_code": None}, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(fields, status):
    """`raw_reason` is the reply, `error_code` its code: the page's bounce and delay."""
    (event,) = read(**fields)
    assert event.smtp_status == status


@pytest.mark.parametrize(
    ("class_", "type_"),
    [
        ("relay_message", "relay_message"),
        ("relay_event", "relay_injection"),
        ("relay_event", "relay_rejection"),
        ("relay_event", "relay_delivery"),
        ("relay_event", "relay_tempfail"),
        ("relay_event", "relay_permfail"),
    ],
)
def test_inbound_mail_gives_no_event(class_, type_):
    """https://developers.sparkpost.com/api/webhooks/: relay events are about mail that SparkPost receives."""
    assert read(class_, type=type_) == []


def test_sparkposts_own_id_of_a_message_is_no_other_id():
    """`message_id` is "a unique identifier assigned to every message": no answer of its SMTP server names it."""
    (event,) = read()
    assert (event.message_id, event.smtp_message_id) == ("65832150921904138", None)
