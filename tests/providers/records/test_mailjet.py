"""Mailjet's events, as documented: https://dev.mailjet.com/email/guides/webhooks/."""

import json

import pytest

from mailglass_reconcile.record.webhooks import validate_events
from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

GUID = "1ab23cd4-e567-8901-2345-6789f0gh1i2j"
BOUNCE = {
    "event": "bounce",
    "time": 1430812195,
    "MessageID": 13792286917004336,
    "Message_GUID": GUID,
    "email": "bounce@mailjet.com",
    "customcampaign": "",
    "blocked": False,
    "hard_bounce": True,
    "error_related_to": "recipient",
    "error": "user unknown",
    "comment": "Host or domain name not found.",
}


def read(**fields):
    """Return the only event of a request."""
    (event,) = parse("mailjet", json.dumps([BOUNCE | fields]).encode())
    return event


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("bounced", "bounced", "hard")),
        ({"hard_bounce": False, "error": "quota exceeded"}, ("bounced", "bounced", "soft")),
        ({"hard_bounce": False, "error": "connection issue"}, ("bounced", "other", "soft")),
        ({"hard_bounce": False, "error": "greylisted"}, ("deferred", "other", "soft")),
        ({"hard_bounce": True, "error": "greylisted"}, ("bounced", "other", "hard")),
        ({"event": "blocked", "error": "preblocked"}, ("rejected", "blocked", None)),
    ],
)
def test_hard_bounce_says_whether_a_bounce_is_hard(fields, expected):
    """`hard_bounce` is "true if error was permanent"; the errors are those of the page's table."""
    event = read(**fields)
    assert (event.type, event.reject_reason, event.bounce) == expected


@pytest.mark.parametrize(
    ("related", "reason"),
    [
        ("policy issue", "blocked"),
        ("spam", "spam"),
        ("mailjet", "blocked"),
        ("recipient", "bounced"),
        ("domain", "bounced"),
        ("content", "other"),
        ("system", "other"),
        ("", "other"),
        (None, "other"),
    ],
)
def test_an_empty_error_leaves_the_reason_to_what_it_is_related_to(related, reason):
    """Captured: github.com/symfony/symfony, Mailer/Bridge/Mailjet/Tests/Webhook/Fixtures/bounce.json, the first.

    The others are the values of `error_related_to` in the page's table.
    """
    assert read(error="", error_related_to=related).reject_reason == reason


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"event": "sent", "smtp_reply": "sent (250 2.0.0 OK 1433333948 fa5si8.199 - gsmtp)"}, "250 2.0.0"),
        ({"event": "sent", "smtp_reply": "250 2.0.0 OK  1685518742 k22-2.181 - gsmtp"}, "250 2.0.0"),
        ({"comment": "421 4.7.0 [TSS04] Messages from 192.0.2.7 temporarily deferred"}, "421 4.7.0"),
        ({}, None),
        ({"comment": None, "smtp_reply": 7}, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(fields, status):
    """The page's `smtp_reply`, and those that Symfony's mailer has captured; `comment` is "the raw SMTP error code"."""
    assert read(**fields).smtp_status == status


def test_a_message_sent_over_smtp_is_found_by_its_guid():
    """`Message_GUID` "equals the value of MessageUUID returned after the message is sent"."""
    event = read()
    assert (event.message_id, event.smtp_message_id) == ("13792286917004336", GUID)
    validate_events("acme", "mailjet", [event], strict=False)
