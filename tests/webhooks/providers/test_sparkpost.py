"""SparkPost's events, as documented: https://support.sparkpost.com/docs/tech-resources/webhook-event-reference."""

import json

import pytest

from mailglass_reconcile.webhooks import parse

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


def read(class_="message_event", **told):
    """Return the events of a batch with one."""
    return parse("sparkpost", json.dumps([{"msys": {class_: EVENT | told}}]).encode())


@pytest.mark.parametrize(
    ("class_", "reason", "bounce"),
    [
        ("1", "other", None),
        ("10", "invalid", "hard"),
        ("20", "other", "soft"),
        ("21", "other", "soft"),
        ("22", "other", "soft"),
        ("23", "other", "soft"),
        ("24", "timed_out", "soft"),
        ("25", "blocked", "hard"),
        ("30", "bounced", "hard"),
        ("40", "other", "soft"),
        ("50", "blocked", "soft"),
        ("51", "spam", "soft"),
        ("52", "spam", "soft"),
        ("53", "other", "soft"),
        ("54", "blocked", "soft"),
        ("70", "other", "soft"),
        (10, "invalid", "hard"),
    ],
)
@pytest.mark.parametrize("type_", ["bounce", "out_of_band"])
def test_the_class_of_a_bounce_says_whether_it_is_hard(type_, class_, reason, bounce):
    """https://support.sparkpost.com/docs/deliverability/bounce-classification-codes.

    "`soft`, `block` and `undetermined` are usually temporary"; Hard and Admin are those that SparkPost suppresses for.
    """
    (event,) = read(type=type_, bounce_class=class_)
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", reason, bounce)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"bounce_class": "60"}, "autoresponded"),
        ({"bounce_class": "80"}, "subscribed"),
        ({"bounce_class": "90"}, "unsubscribed"),
        ({"bounce_class": "100"}, "autoresponded"),
        ({"type": "delay", "bounce_class": "21"}, "deferred"),
        ({"type": "policy_rejection", "bounce_class": "25"}, "rejected"),
    ],
)
def test_what_is_no_bounce_is_neither_hard_nor_soft(told, expected):
    """Though it has a class."""
    (event,) = read(**told)
    assert (event.type, event.bounce) == (expected, None)


@pytest.mark.parametrize(
    ("class_", "told"),
    [
        ("message_event", {"type": "policy_rejection", "bounce_class": "25", "error_code": "550"}),
        ("gen_event", {"type": "generation_rejection", "bounce_class": None}),
        ("message_event", {"type": "bounce", "bounce_class": "25"}),
    ],
)
@pytest.mark.parametrize("why", ["was suppressed due to system policy", "suppressed due to customer policy"])
def test_what_a_list_of_sparkposts_stops_is_suppressed(class_, told, why):
    """Captured: github.com/anymail/django-anymail, tests/test_sparkpost_webhooks.py. Nothing was sent."""
    reply = f"550 5.7.1 recipient address {why}"
    (event,) = read(class_, **told, raw_reason=reply, reason=reply)
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == ("suppressed", "other", None, None)


@pytest.mark.parametrize("type_", ["open", "initial_open", "amp_open", "amp_initial_open"])
def test_each_of_the_two_pixels_is_an_open(type_):
    """https://support.sparkpost.com/docs/tech-resources/open-pixel-location: one at the top, one at the bottom.

    A mail client that cuts a long message off never shows the second.
    """
    (event,) = read("track_event", type=type_)
    assert event.type == "opened"


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({}, "554"),
        ({"raw_reason": "550 5.1.1 <ann@example.org> unknown"}, "550 5.1.1"),
        ({"raw_reason": None, "reason": "452 4.2.2 over quota"}, "452 4.2.2"),
        ({"type": "delay", "raw_reason": "454 4.4.4 [internal] no MX", "error_code": "454"}, "454 4.4.4"),
        ({"type": "injection", "raw_reason": None, "reason": None, "error_code": None}, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(told, status):
    """`raw_reason` is the reply, `error_code` its code: the page's bounce and delay."""
    (event,) = read(**told)
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
