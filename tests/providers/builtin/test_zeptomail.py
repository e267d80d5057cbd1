"""Zoho ZeptoMail's events, in the shape that other projects show."""

import json
from contextlib import nullcontext
from urllib.parse import quote_plus

import pytest

from mailglass_reconcile.webhooks import SignatureError, parse, verify
from senders import NOW, change_payload, load_payloads, secret_of, sign_request

pytestmark = pytest.mark.version_independent

FORM = "application/x-www-form-urlencoded"
BOUNCE = load_payloads("zeptomail")[0].payload
DETAILS = "event_message/0/event_data/0/details"
(DETAIL,) = BOUNCE["event_message"][0]["event_data"][0]["details"]


def test_a_bounce_of_two_recipients_is_two_events():
    """Each detail has its own recipient."""
    details = [DETAIL | {"bounced_recipient": address} for address in ("a@example.org", "b@example.org")]
    events = parse("zeptomail", json.dumps(change_payload(BOUNCE, {DETAILS: details})).encode())
    assert [(event.recipient, event.bounce, event.smtp_status) for event in events] == [
        ("a@example.org", "hard", "550 5.1.1"),
        ("b@example.org", "hard", "550 5.1.1"),
    ]
    assert len({event.provider_event_id for event in events}) == 2


def test_a_form_with_the_json_is_verified_and_read_as_the_json_is():
    """The signature is over the JSON in both: the validator of the page URL-decodes what follows the first `=`."""
    request = sign_request("zeptomail", json.dumps(BOUNCE).encode())
    form = b"data=" + quote_plus(request.body).encode()
    headers = {**request.headers, "Content-Type": FORM}
    verify("zeptomail", form, headers, secret=secret_of("zeptomail"), now=NOW)
    assert parse("zeptomail", form, headers) == parse("zeptomail", request.body, request.headers)
    with pytest.raises(SignatureError):
        verify("zeptomail", form.replace(b"hardbounce", b"softbounce"), headers, secret=secret_of("zeptomail"), now=NOW)


def test_details_that_are_an_object_are_one_event():
    """Other projects read them as lists and as objects."""
    changed = change_payload(BOUNCE, {DETAILS: DETAIL})
    assert parse("zeptomail", json.dumps(changed).encode()) == parse("zeptomail", json.dumps(BOUNCE).encode())


AUTHORIZATION = "Bearer of-a-static-header"


@pytest.mark.parametrize(("header", "accepted"), [(AUTHORIZATION, True), ("Bearer another", False), ("", False)])
def test_the_header_authorization_is_compared_with_the_secret(header, accepted):
    """Forms of 2026 (Zoho CPaaS) let the user choose a header, and have no key to sign with."""
    with nullcontext() if accepted else pytest.raises(SignatureError):
        verify("zeptomail", json.dumps(BOUNCE).encode(), {"Authorization": header}, secret=AUTHORIZATION)


def test_a_wrong_header_is_refused_although_the_signature_is_right():
    request = sign_request("zeptomail", json.dumps(BOUNCE).encode())
    headers = {**request.headers, "Authorization": "Bearer another"}
    with pytest.raises(SignatureError):
        verify("zeptomail", request.body, headers, secret=secret_of("zeptomail"), now=NOW)


def test_a_short_secret_is_no_value_of_a_header():
    with pytest.raises(SignatureError):
        verify("zeptomail", b"{}", {"Authorization": "a-short-header"}, secret="a-short-header")  # noqa: S106


def test_the_test_call_of_the_webhook_form_gives_no_event():
    """It must be answered with 200 before the form can be saved."""
    assert parse("zeptomail", b'{"message": "test"}') == []


@pytest.mark.parametrize(
    "header", ["", "garbage", "ts=1;s=x", "ts=now;s=eA==;s-algorithm=HmacSHA256", "s=eA==;s-algorithm=none"]
)
def test_a_header_that_cannot_be_read_is_a_wrong_signature(header):
    """Another algorithm in it is refused, too."""
    with pytest.raises(SignatureError):
        verify("zeptomail", b"{}", {"producer-signature": header}, secret=secret_of("zeptomail"), now=NOW)
