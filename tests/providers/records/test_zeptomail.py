"""Zoho ZeptoMail's events, in the shape that other projects show."""

import json
from contextlib import nullcontext
from urllib.parse import quote_plus

import pytest

from mailglass_reconcile.webhooks import SignatureError, parse, verify
from senders import NOW, load_payloads, secret_of, sign_request

pytestmark = pytest.mark.version_independent

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


@pytest.mark.parametrize("name", ["fbl_compliant", "fbl_complaint", "fbl", "feedback_loop"])
def test_a_complaint_has_several_names_and_names_its_recipient(name):
    """`fbl_compliant` (sic) is what agents send: https://github.com/knadh/listmonk/issues/2754 and other projects."""
    to = [{"email_address": {"address": address}} for address in ("a@example.org", "b@example.org")]
    body = json.loads(change_payload(OPEN, [{"fblFrom": "fbl@isp.example", "to": ["b@example.org"]}], to=to))
    body["event_name"] = [name]
    (event,) = parse("zeptomail", json.dumps(body).encode())
    assert (event.type, event.recipient) == ("complained", "b@example.org")


@pytest.mark.parametrize("name", ["delivered", "email_delivery"])
def test_a_delivery_is_read_by_either_name(name):
    """The webhook's form of 2026 offers the event."""
    (event,) = parse("zeptomail", json.dumps({**OPEN, "event_name": [name]}).encode())
    assert (event.type, event.recipient) == ("delivered", "ann@example.org")


def test_details_that_are_an_object_are_one_event():
    """Other projects read them as lists and as objects."""
    body = json.loads(change_payload(BOUNCE))
    (message,) = body["event_message"]
    message["event_data"][0]["details"] = message["event_data"][0]["details"][0]
    assert parse("zeptomail", json.dumps(body).encode()) == parse("zeptomail", json.dumps(BOUNCE).encode())


def test_the_client_reference_of_a_mail_over_smtp_is_its_last_id():
    """The header `X-TM-CLIENT-REF` sets it."""
    (event,) = parse("zeptomail", json.dumps(BOUNCE).encode())
    assert (event.message_id, event.smtp_message_id) == ("13ef.12ad1d2b54bd7d5.m1.8d8a2e90", "order-1")


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
