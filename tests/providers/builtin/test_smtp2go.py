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


def test_a_message_that_is_processed_for_several_recipients_is_an_event_of_each():
    """`recipients` has them all, and there is no `rcpt`."""
    recipients = ["a@example.org", "b@example.org"]
    events = parse("smtp2go", json.dumps({**PROCESSED, "rcpt": None, "recipients": recipients}).encode())
    assert [(event.type, event.recipient) for event in events] == [("queued", address) for address in recipients]
    assert len({event.provider_event_id for event in events}) == 2
    assert parse("smtp2go", json.dumps({**PROCESSED, "rcpt": None, "recipients": recipients}).encode()) == events


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
