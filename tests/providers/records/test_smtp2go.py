"""SMTP2GO's events, by the fields that its documentation names."""

import json
from contextlib import nullcontext
from urllib.parse import urlencode

import pytest

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.webhooks import SignatureError, parse, verify
from senders import load_payloads

pytestmark = pytest.mark.version_independent

FORM = "application/x-www-form-urlencoded"
PROCESSED = load_payloads("smtp2go")[0].payload
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


def test_a_message_that_is_processed_for_several_recipients_is_an_event_of_each():
    """`recipients` has them all, and there is no `rcpt`."""
    recipients = ["a@example.org", "b@example.org"]
    events = parse("smtp2go", json.dumps({**PROCESSED, "rcpt": None, "recipients": recipients}).encode())
    assert [(event.type, event.recipient) for event in events] == [("queued", address) for address in recipients]
    assert len({event.provider_event_id for event in events}) == 2
    assert parse("smtp2go", json.dumps({**PROCESSED, "rcpt": None, "recipients": recipients}).encode()) == events


@pytest.mark.parametrize(
    ("name", "type_"),
    [("opened", "opened"), ("clicked", "clicked"), ("unsubscribed", "unsubscribed"), ("spam_complaint", "complained")],
)
def test_the_names_in_callbacks_differ_from_those_of_the_subscription(name, type_):
    """https://github.com/alos-no/Smtp2Go.NET: "captured from live webhook callbacks"."""
    (event,) = parse("smtp2go", json.dumps({**PROCESSED, "event": name}).encode())
    assert event.type == type_


TOKEN = "a-token-of-the-webhook"  # noqa: S105


@pytest.mark.parametrize(
    ("header", "accepted"),
    [(f"Bearer {TOKEN}", True), ("Bearer another", False), (f"bearer  {TOKEN}", True), (TOKEN, False)],
)
def test_a_secret_without_a_colon_is_a_bearer_token(header, accepted):
    """https://developers.smtp2go.com/docs/webhooks-overview."""
    with nullcontext() if accepted else pytest.raises(SignatureError):
        verify("smtp2go", b"{}", {"Authorization": header}, secret=TOKEN)


def test_a_short_bearer_token_is_a_fault_of_configuration():
    """It could be guessed."""
    with pytest.raises(ConfigurationError, match="16 characters"):
        verify("smtp2go", b"{}", {"Authorization": "Bearer x"}, secret="x")  # noqa: S106


@pytest.mark.parametrize("time", ["2026-03-01T12:00:00Z", "2026-03-01 12:00:00", 1772366400, "1772366400"])
def test_the_time_is_utc_in_any_format(time):
    """The page says "UTC timestamp" only."""
    (event,) = parse("smtp2go", json.dumps({**BOUNCE, "time": time}).encode())
    assert event.occurred_at.isoformat() == "2026-03-01T12:00:00+00:00"
