"""Zoho ZeptoMail's events, in the shape that other projects show."""

import json
from urllib.parse import quote_plus

import pytest

from mailglass_reconcile.webhooks import SignatureError, parse, verify
from senders import NOW, load_payloads, secret_of, sign_request

FORM = "application/x-www-form-urlencoded"
BOUNCE, OPEN = load_payloads("zeptomail")[0].payload, load_payloads("zeptomail")[2].payload


def change_payload(payload, detail=None, **info):
    """Return a payload with other values of its detail and of its message."""
    copy = json.loads(json.dumps(payload))
    (message,) = copy["event_message"]
    message["email_info"] |= info
    message["event_data"][0]["details"] = [
        message["event_data"][0]["details"][0] | changes for changes in detail or [{}]
    ]
    return json.dumps(copy).encode()


def test_a_bounce_of_two_recipients_is_two_events():
    """Each detail has its own recipient."""
    body = change_payload(BOUNCE, [{"bounced_recipient": "a@example.org"}, {"bounced_recipient": "b@example.org"}])
    events = parse("zeptomail", body)
    assert [(event.recipient, event.bounce, event.smtp_status) for event in events] == [
        ("a@example.org", "hard", "550 5.1.1"),
        ("b@example.org", "hard", "550 5.1.1"),
    ]
    assert len({event.provider_event_id for event in events}) == 2


def test_an_open_of_a_message_to_several_is_about_none_of_them():
    """The event does not say who opened it."""
    to = [{"email_address": {"address": address}} for address in ("a@example.org", "b@example.org")]
    (event,) = parse("zeptomail", change_payload(OPEN, to=to))
    assert (event.type, event.recipient) == ("opened", None)
    (event,) = parse("zeptomail", change_payload(OPEN, to=to[:1]))
    assert event.recipient == "a@example.org"


def test_a_form_with_the_json_is_verified_and_read_as_the_json_is():
    """The signature is over the JSON in both: the validator of the page URL-decodes what follows the first `=`."""
    request = sign_request("zeptomail", json.dumps(BOUNCE).encode())
    form = b"data=" + quote_plus(request.body).encode()
    headers = {**request.headers, "Content-Type": FORM}
    verify("zeptomail", form, headers, secret=secret_of("zeptomail"), now=NOW)
    assert parse("zeptomail", form, headers) == parse("zeptomail", request.body, request.headers)
    with pytest.raises(SignatureError):
        verify("zeptomail", form.replace(b"hardbounce", b"softbounce"), headers, secret=secret_of("zeptomail"), now=NOW)


@pytest.mark.parametrize(
    "header", ["", "garbage", "ts=1;s=x", "ts=now;s=eA==;s-algorithm=HmacSHA256", "s=eA==;s-algorithm=none"]
)
def test_a_header_that_cannot_be_read_is_a_wrong_signature(header):
    """Another algorithm in it is refused, too."""
    with pytest.raises(SignatureError):
        verify("zeptomail", b"{}", {"producer-signature": header}, secret=secret_of("zeptomail"), now=NOW)
