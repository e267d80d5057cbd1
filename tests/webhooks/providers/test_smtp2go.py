"""SMTP2GO's events, by the fields that its documentation names."""

import json
from urllib.parse import urlencode

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

FORM = "application/x-www-form-urlencoded"
BOUNCE = next(event.payload for event in load_payloads("smtp2go") if event.payload["event"] == "bounce")


@pytest.mark.parametrize("number", range(len(load_payloads("smtp2go"))))
def test_a_form_is_read_as_json_is(number):
    """The output of a webhook is one or the other: https://developers.smtp2go.com/docs/webhooks-overview."""
    payload = load_payloads("smtp2go")[number].payload
    (as_json,) = parse("smtp2go", json.dumps(payload).encode())
    form = urlencode({name: value if isinstance(value, str) else json.dumps(value) for name, value in payload.items()})
    (as_form,) = parse("smtp2go", form.encode(), content_type=FORM)
    fields = [
        (event.type, event.message_id, event.recipient, event.occurred_at, event.bounce) for event in (as_json, as_form)
    ]
    assert fields[0] == fields[1]


@pytest.mark.parametrize(("bounce", "expected"), [("hard", "hard"), ("soft", "soft"), ("newer", None), (None, None)])
def test_a_bounce_says_itself_whether_it_is_hard(bounce, expected):
    """`bounce` is "either hard or soft, depending on how we classify the bounce type"."""
    (event,) = parse("smtp2go", json.dumps({**BOUNCE, "bounce": bounce}).encode())
    assert (event.type, event.bounce, event.smtp_status) == ("bounced", expected, "550 5.1.1")


@pytest.mark.parametrize(
    ("fields", "recipient"),
    [
        ({"rcpt": "a@example.org", "recipients": ["a@example.org", "b@example.org"]}, "a@example.org"),
        ({"rcpt": None, "recipients": ["a@example.org"]}, "a@example.org"),
        ({"rcpt": None, "recipients": ["a@example.org", "b@example.org"]}, None),
        ({"rcpt": None, "recipients": None}, None),
    ],
)
def test_an_event_of_several_recipients_is_about_none_of_them(fields, recipient):
    """`rcpt` decides if it is present."""
    (event,) = parse("smtp2go", json.dumps({**BOUNCE, **fields}).encode())
    assert event.recipient == recipient


@pytest.mark.parametrize("time", ["2026-03-01T12:00:00Z", "2026-03-01 12:00:00", 1772366400, "1772366400"])
def test_the_time_is_utc_in_any_format(time):
    """The page says "UTC timestamp" only."""
    (event,) = parse("smtp2go", json.dumps({**BOUNCE, "time": time}).encode())
    assert event.occurred_at.isoformat() == "2026-03-01T12:00:00+00:00"
