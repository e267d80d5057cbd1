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
